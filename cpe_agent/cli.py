"""What can somebody ask of the agent at a shell?

The commands: the only place that prints and that sets exit codes. An expected failure is one sentence on stderr.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from cpe_agent import __version__, app
from cpe_agent.model.condition import Severity, Status
from cpe_agent.ports import EdgeError
from cpe_agent.render import render
from cpe_agent.settings import DEFAULT_PATH, Settings, SettingsError, load_settings

# What `status` says to a script; 4 (blocked) is kept free.
EXIT_CODES = {Severity.OK: 0, Severity.DEGRADED: 1, Severity.DOWN: 2}
NOT_RUNNING = 3
# Apart from those, so that a script does not take a misspelt option for a broken site: sysexits.h has the numbers.
USAGE = 64
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
    commands.add_parser("version", parents=[common], help="print the version")
    return parser


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
        # Whoever read has read enough (`| head`). Python would complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code


def _report(configured: Settings, as_json: bool) -> tuple[int, str]:
    """The exit code, and the report or the sentence that says why there is none."""
    try:
        status = app.fetch_status(configured)
    except EdgeError as error:
        return NO_PERMISSION if error.op == "authorise" else NOT_RUNNING, _sentence(error.cause)
    return EXIT_CODES[status.severity], _json(status) if as_json else render(status, colour=_in_colour())


def _json(status: Status) -> str:
    return msgspec.json.format(msgspec.json.encode(status), indent=2).decode() + "\n"


def _in_colour() -> bool:
    # https://no-color.org
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _failed(words: str, code: int) -> int:
    print(_sentence(words), end="", file=sys.stderr)
    return code


def _sentence(words: str) -> str:
    return f"cpe-agent: {words.rstrip('.')}.\n"
