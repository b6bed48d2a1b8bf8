"""What can be typed?

In: the words after `cpe-controller`. Out: an `argparse.Namespace`, with the `command`; or a complaint and exit 64, as
cpe-agent has it. --state and --socket may be before the command or behind it.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from cpe_agent import __version__
from cpe_controller.fleet import State

DEFAULT_STATE = Path("/var/lib/cpe-controller")
# The state directory is for the controller alone; the socket's group has to get at this one.
DEFAULT_SOCKET = Path("/run/cpe-controller/control.sock")
# An agent that hears nothing for three of them looks for another way.
HEARTBEAT_S = 10.0
TOKEN_HOURS = 7 * 24
METRICS = "127.0.0.1:9274"
# As sysexits.h has it, and cpe-agent.
USAGE = 64


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


class _Commands:
    """What is added to it is a command with the options that all have, and one line of help that begins its own."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._all = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(self, name: str, help: str) -> argparse.ArgumentParser:
        about = ". ".join(part[:1].upper() + part[1:] for part in help.rstrip(".").split(". "))
        about = re.sub(r"(?<=\? )[a-z]", lambda first: first[0].upper(), about)
        parser = self._all.add_parser(name, help=help, description=f"{about}.")
        _add_whole(parser, argparse.SUPPRESS)
        return parser


def _add_whole(parser: argparse.ArgumentParser, unless: Any) -> None:
    """What holds for every command. `unless` stands for what is not typed here: nothing at all, behind the command."""
    state = DEFAULT_STATE if unless is None else unless
    parser.add_argument("--state", type=Path, default=state, metavar="DIR", help=f"default {DEFAULT_STATE}")
    where = f"where a running controller takes commands; default {DEFAULT_SOCKET}, or control.sock in --state"
    parser.add_argument("--socket", type=Path, default=unless, metavar="PATH", help=where)


def read(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    told = parser.parse_args(arguments)
    if told.command == "apply" and told.file is None and told.key is None and told.unsigned is None:
        parser.error("apply needs a network.yaml, or --key or --unsigned to sign anew")
    if told.command == "cloud-init" and (told.deb is None) != (told.sha256 is None):
        parser.error("--deb and --sha256 belong together")
    # A place that was named and where nobody answers is most likely a typing error.
    told.socket_named = told.socket is not None
    if told.socket is None:
        told.socket = DEFAULT_SOCKET if told.state == DEFAULT_STATE else told.state / "control.sock"
    return told


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="cpe-controller", description="Hands every site its signed document.")
    parser.add_argument("--version", action="version", version=f"cpe-controller {__version__}")
    _add_whole(parser, None)
    commands = _Commands(parser)

    init = commands.add("init", "make the keys and the store of a new network")
    init.add_argument("--name", required=True, metavar="NETWORK", help="the network's name, as in network.yaml")
    init.add_argument("--address", required=True, nargs="+", metavar="HOST", help="where agents reach it: names or IPs")
    init.add_argument("--port", type=_port, default=8443, help="for sites; default 8443")
    init.add_argument("--enrol-port", type=_port, default=0, help="for new sites; default the one after --port")

    check = commands.add("check", "is this network.yaml good? changes nothing")
    check.add_argument("file", type=Path, metavar="network.yaml")

    diff = commands.add("diff", "which sites would an apply change, and how? changes nothing")
    diff.add_argument("file", type=Path, metavar="network.yaml")
    diff.add_argument("--json", action="store_true", help="for programs")

    _add_apply(commands)
    _add_sites(commands)
    _add_keys(commands)

    status = commands.add("status", "how does every site fare?")
    status.add_argument("sites", nargs="*", metavar="SITE", help="default all")
    states = [state.value for state in State]
    status.add_argument("--state-is", nargs="+", choices=states, default=[], metavar="STATE", help=", ".join(states))
    status.add_argument("--json", action="store_true", help="for programs")

    audit = commands.add("audit", "who did what, when, and which sites took it")
    audit.add_argument("--check", action="store_true", help="only verify that nothing was altered or left out")
    audit.add_argument("--json", action="store_true", help="for programs")

    serve = commands.add("serve", "hand out documents until told to end")
    serve.add_argument("--listen", metavar="ADDRESS", help="default every address")
    serve.add_argument("--port", type=_port, help="default the one of init; 0 takes any that is free")
    serve.add_argument("--enrol-port", type=_port, help="default the one of init; 0 takes any that is free")
    serve.add_argument("--heartbeat-s", type=_seconds, default=HEARTBEAT_S, metavar="S", help="default 10")
    about = f"where Prometheus asks, or none; default {METRICS}"
    serve.add_argument("--metrics", type=_host_port, default=METRICS, metavar="HOST:PORT", help=about)
    serve.add_argument("--group", metavar="GROUP", help="who may give commands; default the controller's own group")
    return parser


def _add_apply(commands: _Commands) -> None:
    apply = commands.add("apply", "put a network.yaml in force")
    said = "left out (with --key or --unsigned): the network in force, with what was said of sites since"
    apply.add_argument("file", type=Path, nargs="?", metavar="network.yaml", help=said)
    _add_now(apply)
    allow = "sites accept to lose most of what they may reach"
    apply.add_argument("--allow-mass-removal", action="store_true", help=allow)
    where = apply.add_mutually_exclusive_group()
    where.add_argument(
        "--key", type=Path, metavar="FILE", help="sign with this key, which the controller does not hold"
    )
    where.add_argument("--unsigned", type=Path, metavar="FILE", help="write what is to be signed here, apply nothing")

    sign = commands.add("sign", "sign what `apply --unsigned` wrote; needs the file and the key, no controller")
    sign.add_argument("file", type=Path, metavar="FILE")
    sign.add_argument("--key", type=Path, required=True, metavar="FILE", help="the signing.key")
    sign.add_argument("--out", type=Path, metavar="FILE", help="default: in place")

    take = commands.add("import", "put in force what `sign` signed")
    take.add_argument("file", type=Path, metavar="FILE")
    _add_now(take)

    rollout = commands.add("rollout", "how far is the rollout? or pause it, go on, end it")
    rollout.add_argument(
        "do", nargs="?", choices=("show", "pause", "resume", "abort"), default="show", metavar="show|pause|resume|abort"
    )
    rollout.add_argument("--json", action="store_true", help="for programs")

    rollback = commands.add("rollback", "put an older network in force again, as a new version")
    rollback.add_argument("number", nargs="?", type=_whole, help="default: the one before; --list shows them")
    rollback.add_argument("--list", action="store_true", help="only show what was applied")
    _add_now(rollback)


def _add_now(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--now", action="store_true", help="to all sites at once, not in waves")


def _add_sites(commands: _Commands) -> None:
    for name, help in (
        ("token", "a one-time token with which a box enrols as this site"),
        ("replace", "give a site's place to a new box; the old one is shut out"),
    ):
        site = commands.add(name, help)
        site.add_argument("site", metavar="SITE")
        hours = f"how long the token lives; default {TOKEN_HOURS}"
        site.add_argument("--hours", type=_whole, default=TOKEN_HOURS, metavar="H", help=hours)
        site.add_argument("--no-qr", action="store_true", help="no QR code, also in a terminal")
        site.add_argument("--json", action="store_true", help="for programs")
    for name, help in (
        ("drain", "empty a hub: its branches leave it, make before break"),
        ("undrain", "bring a hub back"),
    ):
        commands.add(name, help).add_argument("site", metavar="SITE")
    vcpe = commands.add("cloud-init", "user-data with which a cloud image becomes this site")
    vcpe.add_argument("site", metavar="SITE")
    vcpe.add_argument("--hours", type=_whole, default=TOKEN_HOURS, metavar="H", help=f"default {TOKEN_HOURS}")
    vcpe.add_argument("--deb", type=_url, metavar="URL", help="the agent's package; default: apt has cpe-agent")
    vcpe.add_argument("--sha256", type=_sha256, metavar="HEX", help="of the package; needed with --deb")
    revoke = commands.add("revoke", "shut a site out, everywhere")
    revoke.add_argument("site", metavar="SITE")


def _add_keys(commands: _Commands) -> None:
    cert = commands.add("cert", "a new key and certificate for a site that cannot enrol")
    cert.add_argument("site", metavar="SITE")
    into = "where to put SITE.key, SITE.pem, root.pem"
    cert.add_argument("--out", type=Path, required=True, metavar="DIR", help=into)

    rotate = commands.add("rotate", "another policy key, with no site left behind")
    rotate.add_argument("do", choices=("start", "finish"), metavar="start|finish")
    rotate.add_argument("--public", type=Path, metavar="FILE", help="the new public key (PEM), if the key is elsewhere")
    rotate.add_argument("--leave-behind", action="store_true", help="give up sites that have not confirmed")

    root = commands.add("rotate-root", "another root, with no site left behind")
    steps = "start: sites learn of it; finish: it vouches; retire: the one before is believed no longer"
    root.add_argument("do", choices=("start", "finish", "retire"), metavar="start|finish|retire", help=steps)
    root.add_argument("--root-key", type=Path, metavar="FILE", help="finish: the new root's key, if kept elsewhere")
    root.add_argument("--leave-behind", action="store_true", help="give up sites that are not ready for it")

    backup = commands.add("backup", "everything but the root's key, in one file; the controller may run")
    backup.add_argument("file", type=Path, metavar="FILE")
    restore = commands.add("restore", "a new state directory from a backup, in a new epoch")
    restore.add_argument("file", type=Path, metavar="FILE")

    renew = commands.add("renew", "a new certificate for the server and a new authority for sites")
    renew.add_argument("--root-key", type=Path, metavar="FILE", help="where root.key is, if it is kept elsewhere")


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is no port: write a number up to 65535")
    return int(text)


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def _host_port(text: str) -> tuple[str, int] | None:
    if text == "none":
        return None
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no HOST:PORT, as in {METRICS}")
    return host.strip("[]"), _port(port)


def _url(text: str) -> str:
    if not text.startswith("https://") or any(c.isspace() for c in text):
        raise argparse.ArgumentTypeError(f"{text!r} is no https:// address")
    return text


def _sha256(text: str) -> str:
    if not re.fullmatch("[0-9a-fA-F]{64}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no SHA-256 in hex")
    return text.lower()


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.05 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r}: 0.05 to 3600 is possible")
    return seconds
