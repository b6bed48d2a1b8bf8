"""Which commands and options does the agent understand?

Words only: what they do is cli's business.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from cpe_agent.settings import DEFAULT_PATH

# So that a script does not take a misspelt option for a broken site.
USAGE = 64


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def parser() -> argparse.ArgumentParser:
    """All commands with their options. Leaves by SystemExit for --help and for what it does not understand."""
    common = _Parser(add_help=False)
    common.add_argument(
        "-c", "--config", type=Path, default=DEFAULT_PATH, metavar="FILE", help=f"settings (default {DEFAULT_PATH})"
    )
    agent = _Parser(prog="cpe-agent", description="The SD-WAN agent of this site.")
    commands = agent.add_subparsers(dest="command", required=True, metavar="COMMAND")
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
    rollback = commands.add_parser(
        "rollback",
        parents=[common],
        help="back to the document before, until the controller has a newer one than ever",
        epilog="Exits 0 when it is in force, 1 if there is none to go back to, 3 if no agent is running.",
    )
    rollback.add_argument("--json", action="store_true", help="for programs")
    enroll = commands.add_parser(
        "enroll",
        parents=[common],
        help="let this box in by a token",
        epilog="Tries until it is let in. Exits 0 then, 1 if only another token helps, 65 if the text is no token.",
    )
    enroll.add_argument("token", metavar="TOKEN", help="what `cpe-controller token SITE` printed")
    reset = commands.add_parser(
        "reset",
        parents=[common],
        help="make this box new: forget key, certificate and documents, end all tunnels",
        epilog="The agent must be stopped. Exits 0 when it is done, 1 if it was not wanted after all.",
    )
    reset.add_argument("--yes", action="store_true", help="do not ask")
    drill = commands.add_parser(
        "drill",
        parents=[common],
        help="on a branch: take an uplink or a hub out, measure, put it back, write it down",
        epilog="Exits 0 done and nothing lost, 1 done with a loss or not back, 2 refused, 3 no agent is running, "
        "4 put back early or interrupted. --check exits 0 if the records hold, 1 if they were altered.",
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
    return agent
