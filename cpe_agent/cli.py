"""What can somebody ask of the agent at a shell?

The commands: the only place that prints and that sets exit codes. An expected failure is one sentence on stderr.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from cpe_agent import __version__, app, boot, down
from cpe_agent.listing import render_preview, render_verification
from cpe_agent.model.condition import DrainAnswer, Severity
from cpe_agent.model.document import MAX_BYTES, DocumentError
from cpe_agent.ports import EdgeError
from cpe_agent.render import render
from cpe_agent.settings import DEFAULT_PATH, Settings, SettingsError, load_settings

# What `status` says to a script; 4 (blocked) is kept free.
EXIT_CODES = {Severity.OK: 0, Severity.DEGRADED: 1, Severity.DOWN: 2}
NOT_RUNNING = 3
# What `verify` says to a script.
IN_SYNC, DIFFERS, NOT_VERIFIED = 0, 1, 3
# Apart from those, so that a script does not take a misspelt option for a broken site: sysexits.h has the numbers.
USAGE = 64
BAD_DATA = 65
NO_INPUT = 66
UNAVAILABLE = 69
NO_PERMISSION = 77
CONFIGURATION = 78

WATCH_INTERVAL_S = 1.0
CLEAR_SCREEN = "\x1b[H\x1b[2J"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Leaves by SystemExit for --help and for usage errors."""
    asked = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name outside the terminal's character set is no reason to fail.
        sys.stdout.reconfigure(errors="replace")
    if asked.command == "version":
        print(f"cpe-agent {__version__}")
        return 0
    try:
        configured = load_settings(asked.config)
    except SettingsError as error:
        return _failed(str(error), CONFIGURATION)
    if asked.command == "run":
        return _run(configured)
    if asked.command == "verify":
        return _printed(lambda: _verify(configured, asked.json))
    if asked.command in ("drain", "undrain"):
        return _drain(configured, asked.command == "drain", asked.json)
    if asked.command == "boot":
        return _boot(configured, asked.charon_group)
    if asked.command == "down":
        return _down(configured)
    if asked.command == "plan":
        return _printed(lambda: _plan(configured, asked.file, asked.json))
    return _status(configured, asked.json, asked.watch)


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument(
        "-c", "--config", type=Path, default=DEFAULT_PATH, metavar="FILE", help=f"settings (default {DEFAULT_PATH})"
    )
    parser = _Parser(prog="cpe-agent", description="The SD-WAN agent of this site.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("run", parents=[common], help="be the daemon, until SIGTERM")
    status = commands.add_parser(
        "status",
        parents=[common],
        help="how this site fares",
        epilog="Exits 0 healthy, 1 degraded, 2 down, 3 not running; 64 and above when it could not find out.",
    )
    form = status.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="the whole report, for programs")
    form.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")
    verify = commands.add_parser(
        "verify",
        parents=[common],
        help="compare the kernel and charon with the signed document, now",
        epilog="Exits 0 in sync, 1 with differences, 3 when it cannot be verified.",
    )
    verify.add_argument("--json", action="store_true", help="for programs")
    plan = commands.add_parser(
        "plan",
        parents=[common],
        help="what would be changed, changing nothing",
        epilog="Exits 0 whatever it would change, 3 without a document; 64 and above when it could not find out.",
    )
    plan.add_argument("file", nargs="?", type=Path, metavar="FILE", help="for this document (JSON, need not be signed)")
    plan.add_argument("--json", action="store_true", help="for programs")
    for name, words in (
        ("drain", "on a hub: let branches move to the other hub; lasts until undrain, over restarts"),
        ("undrain", "on a hub: let branches come back"),
    ):
        drain = commands.add_parser(
            name, parents=[common], help=words, epilog="Exits 0 also if nothing changed, 3 if no agent is running."
        )
        drain.add_argument("--json", action="store_true", help="for programs")
    booting = commands.add_parser(
        "boot",
        parents=[common],
        help="before the network comes up: lift the clock, load both locks from the stored document, then forward",
        epilog="Run by cpe-agent-boot.service. Exits 0 when the router is locked, 69 when it cannot be.",
    )
    booting.add_argument("--charon-group", metavar="GROUP", help="who may use charon's socket (default: root alone)")
    commands.add_parser(
        "down",
        parents=[common],
        help="take everything of this agent away: forwarding first, then tunnels, routes and the table",
        epilog="The agent must be stopped. Exits 0 when nothing of it is left.",
    )
    commands.add_parser("version", parents=[common], help="print the version")
    return parser


def _printed(report: Callable[[], tuple[int, str]]) -> int:
    """Print what `report` found, and its exit code. The reader may stop reading."""
    code, text = report()
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        _stop_printing()
    return code


def _verify(configured: Settings, as_json: bool) -> tuple[int, str]:
    try:
        found = app.verify(configured)
    except app.NoDocument as error:
        return _failed(f"cannot verify: {error}", NOT_VERIFIED), ""
    except EdgeError as error:
        return _failed(f"cannot verify: {error}", NOT_VERIFIED), ""
    return IN_SYNC if found.in_sync else DIFFERS, _json(found) if as_json else render_verification(found)


def _plan(configured: Settings, file: Path | None, as_json: bool) -> tuple[int, str]:
    try:
        candidate = None if file is None else _read(file)
        planned = app.plan(configured, candidate)
    except OSError as error:
        return _failed(f"{file} cannot be read: {error.strerror}", NO_INPUT), ""
    except DocumentError as error:
        return _failed(f"{file or 'the stored document'}: {error}", BAD_DATA), ""
    except app.NoDocument as error:
        return _failed(f"nothing to plan: {error}", NOT_VERIFIED), ""
    except EdgeError as error:
        return _failed(str(error), UNAVAILABLE), ""
    return 0, _json(planned) if as_json else render_preview(planned)


def _read(file: Path) -> bytes:
    # One byte more than a document may have: the decoder says that it is too long.
    with file.open("rb") as opened:
        return opened.read(MAX_BYTES + 1)


def _drain(configured: Settings, drained: bool, as_json: bool) -> int:
    try:
        answer = app.drain(configured, drained)
    except EdgeError as error:
        code = {"authorise": NO_PERMISSION, "connect": NOT_RUNNING}.get(error.op, UNAVAILABLE)
        return _failed(error.cause, code)
    return _printed(lambda: (0, _json(answer) if as_json else _drain_words(answer)))


def _drain_words(answer: DrainAnswer) -> str:
    if answer.drained:
        said = "is drained now" if answer.changed else "was drained already"
        lines = [f"This hub {said}: its ready addresses do not answer, and branches move what another hub can serve."]
        lines.append("Tunnels stay up, and what only this hub serves goes on. `cpe-agent undrain` takes it back.")
    else:
        said = "is no longer drained" if answer.changed else "was not drained"
        lines = [f"This hub {said}{': it serves' if answer.serving else ', but does not serve yet'}."]
        lines += [f"In the way: {reason}." for reason in answer.in_the_way]
    if answer.warning:
        lines.append(f"Warning: {answer.warning}.")
    return "".join(f"{textwrap.fill(line, 80, break_on_hyphens=False)}\n" for line in lines)


def _boot(configured: Settings, charon_group: str | None) -> int:
    try:
        booted = boot.boot(configured, charon_group)
    except EdgeError as error:
        return _failed(f"this router is not locked and does not forward: {error}", UNAVAILABLE)
    if booted.clock_lifted_s:
        print(f"The clock was at least {booted.clock_lifted_s:.0f} s behind, and was set forward.")
    if booted.document is None:
        print(f"Locked; nothing is forwarded: {booted.reason}.")
    else:
        epoch, version = booted.document
        print(f"Locked as the document (epoch {epoch}, version {version}) says, and forwarding what it lists.")
    return 0


def _down(configured: Settings) -> int:
    try:
        taken = down.take_down(configured)
    except EdgeError as error:
        return _failed(str(error), UNAVAILABLE)
    print(f"Forwarding is off, {taken.ike_sas} IKE_SAs are ended, and routes, rules and the table are gone.")
    for failure in taken.failures:
        print(f"Not taken away: {failure}.")
    return UNAVAILABLE if taken.failures else 0


def _run(configured: Settings) -> int:
    try:
        return app.run(configured)
    except* EdgeError as group:
        # Out of the depth of the nurseries, or bare. A bug beside it goes on its way, with its traceback.
        words = "; ".join(_causes(group))
    return _failed(words, UNAVAILABLE)


def _causes(group: BaseExceptionGroup[EdgeError]) -> Iterator[str]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _causes(error)
        else:
            yield str(error)


def _status(configured: Settings, as_json: bool, watch: bool) -> int:
    code = NOT_RUNNING
    pause = threading.Event()
    try:
        while True:
            code, text = _report(configured, as_json)
            if not watch:
                print(text, end="", flush=True, file=sys.stdout if code in EXIT_CODES.values() else sys.stderr)
                return code
            print(CLEAR_SCREEN if sys.stdout.isatty() else "", text, sep="", flush=True)
            pause.wait(WATCH_INTERVAL_S)
    except KeyboardInterrupt:
        return code
    except BrokenPipeError:
        _stop_printing()
        return code


def _stop_printing() -> None:
    # Whoever read has read enough (`| head`). Python would complain when it flushes at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(configured: Settings, as_json: bool) -> tuple[int, str]:
    """The exit code, and the report or the sentence that says why there is none."""
    try:
        status = app.fetch_status(configured)
    except EdgeError as error:
        return NO_PERMISSION if error.op == "authorise" else NOT_RUNNING, _sentence(error.cause)
    return EXIT_CODES[status.severity], _json(status) if as_json else render(status, colour=_in_colour())


def _json(report: msgspec.Struct) -> str:
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n"


def _in_colour() -> bool:
    # https://no-color.org
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _failed(words: str, code: int) -> int:
    print(_sentence(words), end="", file=sys.stderr)
    return code


def _sentence(words: str) -> str:
    return f"cpe-agent: {words.rstrip('.')}.\n"
