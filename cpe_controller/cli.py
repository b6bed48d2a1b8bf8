"""What do you want done?

The only place that says something (screen.py prints it) and sets exit codes: 0 done, 1 it could not be done, 2 what was
written is wrong. Commands go to the controller that runs here, if one does, and else to its state directory.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import segno

from cpe_controller import arguments, audit, authorities, backup, cloudinit, commands, control, screen, setup
from cpe_controller.change import signed
from cpe_controller.commands import Answer, Command, answering, applying, sites
from cpe_controller.compile import rehearse
from cpe_controller.files import SetupError, read, save
from cpe_controller.parse import parse
from cpe_controller.rotateroot import rotate_root
from cpe_controller.screen import say
from cpe_controller.serve import Serving, serve
from cpe_controller.store import StoreError
from cpe_controller.wording import counted


def main(argv: Sequence[str] | None = None) -> int:
    told = arguments.read(argv)
    try:
        code = _answered(told)
        screen.finish()
        return code
    except screen.NotPrinted as error:
        screen.give_up()
        if error.gone:
            return 0
        screen.complain(str(error))
        return 1


def _answered(told: argparse.Namespace) -> int:
    try:
        return _run(told)
    except control.Refusal as refusal:
        screen.complain(str(refusal))
        return refusal.exit
    except answering.FAILURES as error:
        screen.complain(str(error))
        return answering.exit_code(error)


def _run(told: argparse.Namespace) -> int:
    match told.command:
        case "init":
            setup.init_state(told.state, told.name, told.address, told.port, told.enrol_port)
            say(f"network {told.name} is set up in {told.state}; next: apply a network.yaml, then serve")
            say(f"take {told.state / 'root.key'} away and keep it offline: it is for `renew`, years from now")
        case "check":
            _check(told)
        case "serve":
            _serve(told)
        case "cert":
            with setup.opened(told.state) as (store, _):
                for path in sites.certificate(told.state, store, told.site, told.out, control.user_name(os.getuid())):
                    say(str(path))
        case "renew":
            _renew(told)
        case "rotate-root":
            with setup.opened(told.state) as (store, found):
                by = control.user_name(os.getuid())
                for line in rotate_root(told.state, store, found, told.do, told.root_key, told.leave_behind, by):
                    say(line)
        case "backup":
            names = backup.backup(told.state, told.file, control.user_name(os.getuid()))
            say(f"{told.file}: {', '.join(names)}; it holds private keys, and not the root's")
        case "restore":
            return _restore(told)
        case "cloud-init":
            return _cloud_init(told)
        case "sign":
            change = signed(applying.decode(_text(told.file)), setup.signer(told.state, told.key))
            signed_in = told.out or told.file
            save(signed_in, applying.encode(change).encode(), 0o600)
            say(f"{signed_in}: signed, {len(change.drafts)} documents; next: cpe-controller import {signed_in}")
        case "apply":
            return _apply(told)
        case _:
            return _print(_do(told, _command(told)), told)
    return 0


def _command(told: argparse.Namespace) -> Command:
    match told.command:
        case "import":
            return commands.Import(_text(told.file), told.now)
        case "rollback":
            return commands.Rollback(told.number, told.now, told.list)
        case "rollout":
            return commands.Roll(told.do)
        case "status":
            return commands.Status(tuple(told.sites), tuple(told.state_is))
        case "drain" | "undrain":
            return commands.Drain(told.site, back=told.command == "undrain")
        case "diff":
            return commands.Diff(setup.read_network(told.file), str(told.file))
        case "token":
            return commands.Token(told.site, told.hours)
        case "replace":
            return commands.Replace(told.site, told.hours)
        case "revoke":
            return commands.Revoke(told.site)
        case "rotate":
            return commands.Rotate(told.do, None if told.public is None else _text(told.public), told.leave_behind)
        case "audit":
            return commands.Audit(told.check)
    raise AssertionError(told.command)


def _do(told: argparse.Namespace, command: Command) -> Answer:
    answer = control.ask(told.socket, command)
    if answer is None and told.socket_named:
        raise control.Refusal(
            f"nobody answers at {told.socket}: start the controller (serve), or leave --socket out to work on its "
            f"state directory",
            1,
        )
    if answer is None:
        answer = answering.run(told.state, command, control.user_name(os.getuid()))
    return answer


def _apply(told: argparse.Namespace) -> int:
    text = None if told.file is None else setup.read_network(told.file)
    if told.key is None and told.unsigned is None and text is not None:
        return _print(_do(told, commands.Apply(text, str(told.file), told.allow_mass_removal, told.now)), told)
    planned = _do(told, commands.Plan(text, str(told.file), told.allow_mass_removal))
    if told.unsigned is not None:
        save(told.unsigned, planned.data.encode(), 0o600)
        say(f"{told.unsigned}: {planned.lines[0]}; next: cpe-controller sign {told.unsigned} --key FILE")
        return 0
    change = signed(applying.decode(planned.data), setup.signer(told.state, told.key))
    return _print(_do(told, commands.Import(applying.encode(change), told.now)), told)


def _print(answer: Answer, told: argparse.Namespace) -> int:
    if getattr(told, "json", False):
        say(msgspec.json.format(msgspec.json.encode(answer.data)).decode(), whole=True)
        return answer.exit
    if told.command in ("token", "replace") and sys.stdout.isatty() and not told.no_qr:
        # White on black and black on white alike: the quiet zone is drawn.
        segno.make(answer.data["token"], error="l").terminal(compact=True)
    for line in answer.lines:
        say(line)
    return answer.exit


def _check(told: argparse.Namespace) -> None:
    network = parse(setup.read_network(told.file), str(told.file))
    documents = rehearse(network, dt.datetime.now(dt.UTC))
    # Where a controller is at hand it must be this network's, as apply will ask.
    with suppress(OSError, SetupError, StoreError):
        if setup.has_store(told.state):
            with setup.opened(told.state) as (_, found):
                setup.refuse_another(found, network)
    pairs = sum(len(documents[branch.name].pairs) for branch in network.branches)
    counts = [counted(len(network.hubs), "hub"), f"{len(network.branches)} branch{'es' * (len(network.branches) != 1)}"]
    say(f"{told.file}: good: {', '.join([*counts, counted(pairs, 'pair')])}")
    if not network.permits:
        say("but nobody may talk: permits lists nothing, and what is not permitted is dropped")


def _renew(told: argparse.Namespace) -> None:
    with setup.opened(told.state) as (store, found):
        root, now = authorities.root(told.state, told.root_key), dt.datetime.now(dt.UTC)
        audit.append(store, now, control.user_name(os.getuid()), "renew", {})
        authorities.renew(told.state, root, found.network, found.addresses, now)
    say("renewed: the server's certificate and the authority that issues sites' certificates")
    say("next: apply the network again, so that peers know the new authority; then restart the controller")


def _restore(told: argparse.Namespace) -> int:
    by = control.user_name(os.getuid())
    found = backup.restore(told.file, told.state, dt.datetime.now(dt.UTC), by)
    say(f"{told.state}: the network {found.network}, in epoch {found.epoch}")
    with setup.opened(told.state) as (store, _):
        try:
            again = applying.again(told.state, store, found, by)
        except SetupError as error:
            say(f"its documents are NOT signed for this epoch yet, and no site will take them: {error}")
            return 1
    return _print(again, told)


def _cloud_init(told: argparse.Namespace) -> int:
    answer = _do(told, commands.Token(told.site, told.hours))
    say(cloudinit.user_data(answer.data["token"], told.deb, told.sha256), end="", whole=True)
    return answer.exit


def _serve(told: argparse.Namespace) -> None:
    def announce(words: str) -> None:
        say(words)
        screen.finish()

    serve(
        told.state,
        Serving(
            listen=told.listen,
            port=told.port,
            enrol_port=told.enrol_port,
            heartbeat_s=told.heartbeat_s,
            socket=told.socket,
            group=told.group,
            metrics=told.metrics,
        ),
        announce,
    )


def _text(path: Path) -> str:
    try:
        return read(path).decode()
    except UnicodeDecodeError:
        raise SetupError(f"{path} is no text") from None
