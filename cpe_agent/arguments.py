"""Which commands and options does the agent understand?

Words only: what they do is cli's business.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from cpe_agent import __version__
from cpe_agent.exits import USAGE, in_words
from cpe_agent.settings import DEFAULT_PATH

CAPTURE_S, CAPTURE_MAX_S = 10.0, 3600.0
CAPTURE_PACKETS, CAPTURE_MAX_PACKETS = 1000, 1_000_000


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def parser() -> argparse.ArgumentParser:
    """All commands with their options. Leaves by SystemExit for --help and for what it does not understand."""
    common = _Parser(add_help=False)
    common.add_argument(
        "-c",
        "--config",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help=f"settings (default {DEFAULT_PATH})",
    )
    agent = _Parser(prog="cpe-agent", description="The SD-WAN agent of this site.")
    # Before the command too; what is said behind it holds.
    agent.add_argument(
        "-c", "--config", type=Path, default=DEFAULT_PATH, metavar="FILE", help=f"settings (default {DEFAULT_PATH})"
    )
    agent.add_argument("--version", action="version", version=f"cpe-agent {__version__}", help="print the version")
    commands = agent.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("run", parents=[common], help="be the daemon, until SIGTERM")
    status = commands.add_parser(
        "status",
        parents=[common],
        help="how this site fares",
        epilog=in_words("status"),
    )
    status.add_argument("names", nargs="*", metavar="NAME", help="only what has this in its name or words")
    status.add_argument("--all", action="store_true", help="every branch and pair, also where there are thousands")
    form = status.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="the whole report, for programs")
    form.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")
    check = commands.add_parser(
        "check",
        parents=[common],
        help="is this agent.yaml, or this document, good for this site? changes nothing",
        epilog=in_words("check"),
    )
    check.add_argument(
        "file", nargs="?", type=Path, metavar="FILE", help="settings (.yaml) or a document; left out, what is in force"
    )
    check.add_argument("--json", action="store_true", help="for programs")
    verify = commands.add_parser(
        "verify",
        parents=[common],
        help="compare the kernel and charon with the signed document, now",
        epilog=in_words("verify"),
    )
    verify.add_argument("--json", action="store_true", help="for programs")
    plan = commands.add_parser(
        "plan",
        parents=[common],
        help="what would be changed, changing nothing",
        epilog=in_words("plan"),
    )
    plan.add_argument("file", nargs="?", type=Path, metavar="FILE", help="for this document (JSON, need not be signed)")
    plan.add_argument("--json", action="store_true", help="for programs")
    for name, words in (
        ("drain", "on a hub: let branches move to the other hub; lasts until undrain, over restarts"),
        ("undrain", "on a hub: let branches come back"),
    ):
        drain = commands.add_parser(name, parents=[common], help=words, epilog=in_words(name))
        drain.add_argument("--json", action="store_true", help="for programs")
    rollback = commands.add_parser(
        "rollback",
        parents=[common],
        help="back to the document before, until the controller has a newer one than ever",
        epilog=in_words("rollback"),
    )
    rollback.add_argument("--json", action="store_true", help="for programs")
    enroll = commands.add_parser(
        "enroll",
        parents=[common],
        help="let this box in by a token",
        epilog="Tries until it is let in. " + in_words("enroll"),
    )
    enroll.add_argument("token", metavar="TOKEN", help="what `cpe-controller token SITE` printed")
    reset = commands.add_parser(
        "reset",
        parents=[common],
        help="make this box new: forget key, certificate and documents, end all tunnels",
        epilog="The agent must be stopped. " + in_words("reset"),
    )
    reset.add_argument("--yes", action="store_true", help="do not ask")
    drill = commands.add_parser(
        "drill",
        parents=[common],
        help="on a branch: take an uplink or a hub out, measure, put it back, write it down",
        epilog=in_words("drill"),
    )
    drill.add_argument("kind", nargs="?", choices=("uplink", "hub"))
    drill.add_argument("name", nargs="?", metavar="NAME")
    drill.add_argument("--records", action="store_true", help="print the records of all drills")
    drill.add_argument("--check", action="store_true", help="does each record follow from the one before?")
    drill.add_argument("--json", action="store_true", help="for programs")
    booting = commands.add_parser(
        "boot",
        parents=[common],
        help="before the network comes up: lift the clock, load both locks from the stored document, then forward",
        epilog="Run by cpe-agent-boot.service. " + in_words("boot"),
    )
    booting.add_argument("--charon-group", metavar="GROUP", help="who may use charon's socket (default: root alone)")
    commands.add_parser(
        "down",
        parents=[common],
        help="take everything of this agent away: forwarding first, then tunnels, routes and the table",
        epilog="The agent must be stopped. " + in_words("down"),
    )
    _add_taking(commands, common)
    commands.add_parser("version", parents=[common], help="print the version")
    for shown in commands._choices_actions:
        words = (shown.help or "").rstrip("?")
        commands.choices[shown.dest].description = f"{words[:1].upper()}{words[1:]}."
    return agent


def _add_taking(commands: argparse._SubParsersAction[_Parser], common: _Parser) -> None:
    """Those that leave a file behind."""
    capture = commands.add_parser(
        "capture",
        parents=[common],
        help="packets of one pair, before and after encryption, as pcap files",
        epilog=in_words("capture"),
    )
    capture.add_argument("pair", metavar="PAIR", help="a pair's id, as `cpe-agent status` shows it")
    capture.add_argument(
        "--seconds",
        type=_number(0.1, CAPTURE_MAX_S),
        default=CAPTURE_S,
        metavar="S",
        help=f"how long at most (default {CAPTURE_S:g})",
    )
    capture.add_argument(
        "--packets",
        type=_number(1, CAPTURE_MAX_PACKETS),
        default=CAPTURE_PACKETS,
        metavar="N",
        help=f"how many at most in each file (default {CAPTURE_PACKETS})",
    )
    capture.add_argument("--whole", action="store_true", help="whole packets, with what people sent; default: headers")
    capture.add_argument(
        "-o", "--output", type=Path, default=Path("."), metavar="DIR", help="where to put the files (default: here)"
    )
    capture.add_argument("--json", action="store_true", help="for programs")
    bundle = commands.add_parser(
        "support-bundle",
        parents=[common],
        help="report, logs, state, rules, SAs and routes in one file, without keys and secrets",
        epilog=in_words("support-bundle"),
    )
    bundle.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="default: cpe-support-SITE-TIME.tar.gz in this directory"
    )
    bundle.add_argument("--json", action="store_true", help="for programs")


def _number(least: float, most: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no number: {least:g} to {most:g} is possible") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text}: {least:g} to {most:g} is possible")
        return value

    return number
