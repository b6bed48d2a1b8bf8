"""What can somebody ask of the agent at a shell?

The commands: the only place that sets exit codes. An expected failure is one sentence on stderr.
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

import msgspec

from cpe_agent import __version__, app, boot, capture, check, comparison, down, exits, newcomer, support
from cpe_agent.answers import bundle_words, checked_words, drain_words, rollback_words
from cpe_agent.arguments import parser
from cpe_agent.core.enrolment import TokenError
from cpe_agent.listing import render_drills, render_preview, render_verification
from cpe_agent.model.condition import Severity, Status
from cpe_agent.model.document import MAX_BYTES, DocumentError
from cpe_agent.ports import EdgeError
from cpe_agent.printing import NotPrinted, failed, say, sentence, stop_printing, tell
from cpe_agent.render import ROWS_MAX, render
from cpe_agent.settings import Settings, SettingsError, load_settings

_NO_REPORT = (exits.NOT_RUNNING, exits.NO_PERMISSION)
# By an error's op: the agent could not be asked at all.
_NOT_ASKED = {"authorise": exits.NO_PERMISSION, "connect": exits.NOT_RUNNING}
EXIT_CODES = {Severity.OK: exits.HEALTHY, Severity.DEGRADED: exits.DEGRADED, Severity.DOWN: exits.DOWN}
DRILL_INTERVAL_S = 0.2
WATCH_INTERVAL_S = 1.0
CLEAR_SCREEN = "\x1b[H\x1b[2J"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Leaves by SystemExit for --help and for usage errors."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name outside the terminal's character set is no reason to fail.
        sys.stdout.reconfigure(errors="replace")
    try:
        asked = _asked(arguments)
        return 0 if asked is None else _command(asked)
    except NotPrinted as error:
        return failed(f"the answer cannot be written: {error}", exits.CANNOT_WRITE)


def _asked(arguments: Sequence[str] | None) -> argparse.Namespace | None:
    """What the command line asks for; None: for --help, which nobody reads to its end."""
    try:
        return parser().parse_args(arguments)
    except BrokenPipeError:
        stop_printing()
        return None
    except OSError as error:
        stop_printing()
        raise NotPrinted(error.strerror) from None
    finally:
        say("", end="")


def _command(asked: argparse.Namespace) -> int:
    if asked.command == "version":
        say(f"cpe-agent {__version__}")
        return 0
    if asked.command == "support-bundle":
        # Also, and above all, when the settings are broken.
        return _printed(lambda: _support_bundle(asked.config, asked.output, asked.json))
    try:
        configured = load_settings(asked.config)
    except SettingsError as error:
        return failed(str(error), exits.CONFIGURATION)
    if asked.command == "run":
        return _run(configured)
    if asked.command == "verify":
        return _printed(lambda: _verify(configured, asked.json))
    if asked.command in ("drain", "undrain"):
        return _drain(configured, asked.command == "drain", asked.json)
    if asked.command == "enroll":
        return _enroll(configured, asked.token)
    if asked.command == "reset":
        return _reset(configured, asked.yes)
    if asked.command == "rollback":
        return _rollback(configured, asked.json)
    if asked.command == "drill":
        if asked.records or asked.check:
            return _printed(lambda: _drill_records(configured, asked.check, asked.json))
        if asked.kind is None or asked.name is None:
            return failed("drill what? `drill uplink NAME`, `drill hub NAME`, `--records` or `--check`", exits.USAGE)
        return _drill(configured, asked.kind, asked.name, asked.json)
    if asked.command == "boot":
        return _boot(configured, asked.charon_group)
    if asked.command == "down":
        return _down(configured)
    if asked.command == "plan":
        return _printed(lambda: _plan(configured, asked.file, asked.json))
    if asked.command == "check":
        return _printed(lambda: _check(configured, asked.config, asked.file, asked.json))
    if asked.command == "capture":
        bounds = capture.Bounds(asked.seconds, int(asked.packets), asked.whole)
        return _printed(lambda: _capture(configured, asked.pair, bounds, asked.output, asked.json))
    return _status(configured, asked)


def _printed(report: Callable[[], tuple[int, str]]) -> int:
    """Print what `report` found, and return its exit code."""
    code, text = report()
    say(text, end="")
    return code


def _verify(configured: Settings, as_json: bool) -> tuple[int, str]:
    try:
        found = comparison.verify(configured)
    except comparison.NoDocument as error:
        return failed(f"cannot verify: {error}", exits.NOT_VERIFIED), ""
    except EdgeError as error:
        return failed(f"cannot verify: {error}", exits.NOT_VERIFIED), ""
    return exits.IN_SYNC if found.in_sync else exits.DIFFERS, _json(found) if as_json else render_verification(found)


def _plan(configured: Settings, file: Path | None, as_json: bool) -> tuple[int, str]:
    try:
        candidate = None if file is None else _read(file)
        planned = comparison.plan(configured, candidate)
    except OSError as error:
        return failed(f"{file} cannot be read: {error.strerror}", exits.NO_INPUT), ""
    except DocumentError as error:
        return failed(f"{file or 'the stored document'}: {error}", exits.BAD_DATA), ""
    except comparison.NoDocument as error:
        return failed(f"nothing to plan: {error}", exits.NOT_VERIFIED), ""
    except EdgeError as error:
        return failed(str(error), exits.UNAVAILABLE), ""
    return 0, _json(planned) if as_json else render_preview(planned)


def _check(configured: Settings, config: Path, file: Path | None, as_json: bool) -> tuple[int, str]:
    try:
        found = check.check_settings(config, configured) if file is None else check.check_file(file, configured)
    except SettingsError as error:
        return failed(str(error), exits.BAD_DATA), ""
    except check.Wrong as error:
        return failed(str(error), exits.CONFIGURATION if file is None else exits.BAD_DATA), ""
    except OSError as error:
        return failed(f"{file} cannot be read: {error.strerror}", exits.NO_INPUT), ""
    except EdgeError as error:
        return failed(str(error), exits.UNAVAILABLE), ""
    if as_json:
        return 0, _json(found)
    return 0, checked_words(found)


def _capture(
    configured: Settings, pair: str, bounds: capture.Bounds, directory: Path, as_json: bool
) -> tuple[int, str]:
    if not as_json:
        what = f"{pair} for {bounds.seconds:g} s, or {bounds.packets} packets each; Ctrl-C ends it earlier"
        tell(f"capturing {what}")
    try:
        found = capture.capture(configured, pair, bounds, directory)
    except capture.NoPair as error:
        return failed(str(error), exits.BAD_DATA), ""
    except comparison.NoDocument as error:
        return failed(f"nothing to capture: {error}", exits.NOT_VERIFIED), ""
    except EdgeError as error:
        code = {"open": exits.NO_PERMISSION, "write": exits.CANNOT_WRITE}.get(error.op, exits.UNAVAILABLE)
        return failed(error.cause, code), ""
    both = found.before_packets.packets and found.after_packets.packets
    text = _json(found) if as_json else "".join(f"{line}\n" for line in capture.in_words(found))
    return 0 if both else exits.NOTHING_CAPTURED, text


def _support_bundle(config: Path, output: Path | None, as_json: bool) -> tuple[int, str]:
    try:
        written = support.bundle(config, output)
    except EdgeError as error:
        return failed(error.cause, exits.CANNOT_WRITE), ""
    if as_json:
        return 0, _json(written)
    return 0, bundle_words(written)


def _read(file: Path) -> bytes:
    # One byte more than a document may have: the decoder says that it is too long.
    with file.open("rb") as opened:
        return opened.read(MAX_BYTES + 1)


def _drain(configured: Settings, drained: bool, as_json: bool) -> int:
    try:
        answer = app.drain(configured, drained)
    except EdgeError as error:
        code = _NOT_ASKED.get(error.op, exits.UNAVAILABLE)
        return failed(error.cause, code)
    return _printed(lambda: (0, _json(answer) if as_json else drain_words(answer)))


def _rollback(configured: Settings, as_json: bool) -> int:
    try:
        answer = app.rollback(configured)
    except EdgeError as error:
        code = {**_NOT_ASKED, "rollback": exits.NOTHING_BEFORE}.get(error.op, exits.UNAVAILABLE)
        return failed(error.cause, code)
    return _printed(lambda: (0, _json(answer) if as_json else rollback_words(answer)))


def _enroll(configured: Settings, token: str) -> int:
    try:
        let_in = newcomer.enroll(configured, token, tell)
    except TokenError as error:
        return failed(str(error), exits.BAD_DATA)
    except newcomer.NotLetIn as error:
        return failed(str(error), exits.NOT_LET_IN)
    except EdgeError as error:
        return failed(error.cause, exits.NO_PERMISSION if error.op == "authorise" else exits.UNAVAILABLE)
    except KeyboardInterrupt:
        return exits.NOT_LET_IN
    say(f"This box is {let_in.site} now.")
    if not let_in.running:
        say("No agent runs yet: systemctl enable --now cpe-agent")
    return 0


def _reset(configured: Settings, sure: bool) -> int:
    if not sure:
        say("This box forgets its key, certificate and documents, and ends all tunnels.")
        say("Type reset to go on: ", end="")
        try:
            sure = input().strip() == "reset"
        except EOFError:
            sure = False
        if not sure:
            return failed("nothing was changed", exits.NOT_LET_IN)
    try:
        # First nobody may talk, then it is forgotten who may.
        down.take_down(configured)
        newcomer.forget(configured.state_dir)
    except EdgeError as error:
        return failed(error.cause, exits.NO_PERMISSION if error.op == "authorise" else exits.UNAVAILABLE)
    say("This box is new.")
    return 0


def _drill(configured: Settings, kind: str, name: str, as_json: bool) -> int:
    pause = threading.Event()
    told = 0
    try:
        progress = app.start_drill(configured, kind, name)
        while True:
            for line in () if as_json else progress.said[told:]:
                say(textwrap.fill(line, 80, subsequent_indent="  ", break_on_hyphens=False))
            told = len(progress.said)
            if not progress.running:
                break
            pause.wait(DRILL_INTERVAL_S)
            progress = app.drill_progress(configured)
    except KeyboardInterrupt:
        tell("the drill goes on without this command: `cpe-agent drill --records` tells its end")
        return exits.DRILL_EARLY
    except EdgeError as error:
        code = _NOT_ASKED.get(error.op, exits.DRILL_REFUSED)
        return failed(error.cause, code if told == 0 else exits.DRILL_EARLY)
    record = progress.record
    if record is None or record.outcome == "began":
        return failed(progress.said[-1] if progress.said else "the drill did not take place", exits.UNAVAILABLE)
    if as_json:
        say(_json(record), end="")
    if record.outcome != "done":
        return exits.DRILL_EARLY
    whole = all(move.back_s is not None for move in record.moves) and not any(s.lost for s in record.streams)
    if not whole:
        return exits.DRILL_LOSS
    return exits.DRILL_UNMEASURED if record.unmeasured else 0


def _drill_records(configured: Settings, check: bool, as_json: bool) -> tuple[int, str]:
    try:
        lines = app.drill_lines(configured)
    except EdgeError as error:
        return failed(error.cause, exits.UNAVAILABLE), ""
    if check:
        wrong = app.check_drills(lines)
        if wrong:
            return failed(f"the records of drills do not hold: {wrong}", exits.DRILL_LOSS), ""
        return 0, f"{len(lines)} records, each follows from the one before.\n"
    found = app.drill_records(lines)
    if as_json:
        return 0, "".join(msgspec.json.encode(record).decode() + "\n" for record in found)
    return 0, render_drills(found)


def _boot(configured: Settings, charon_group: str | None) -> int:
    try:
        booted = boot.boot(configured, charon_group)
    except EdgeError as error:
        return failed(f"this router is not locked and does not forward: {error}", exits.UNAVAILABLE)
    if booted.clock_lifted_s:
        say(f"The clock was at least {booted.clock_lifted_s:.0f} s behind, and was set forward.")
    if booted.document is None:
        say(f"Locked; nothing is forwarded: {booted.reason}.")
    else:
        epoch, version = booted.document
        say(f"Locked as the document (epoch {epoch}, version {version}) says, and forwarding what it lists.")
    return 0


def _down(configured: Settings) -> int:
    try:
        taken = down.take_down(configured)
    except EdgeError as error:
        return failed(str(error), exits.UNAVAILABLE)
    say(f"Forwarding is off, {taken.ike_sas} IKE_SAs are ended, and routes, rules and the table are gone.")
    for failure in taken.failures:
        say(f"Not taken away: {failure}.")
    return exits.UNAVAILABLE if taken.failures else 0


def _run(configured: Settings) -> int:
    try:
        return app.run(configured)
    except* EdgeError as group:
        # Out of the depth of the nurseries, or bare. A bug beside it goes on its way, with its traceback.
        words = "; ".join(_causes(group))
    return failed(words, exits.UNAVAILABLE)


def _causes(group: BaseExceptionGroup[EdgeError]) -> Iterator[str]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _causes(error)
        else:
            yield str(error)


def _status(configured: Settings, asked: argparse.Namespace) -> int:
    code = exits.NOT_RUNNING
    pause = threading.Event()
    try:
        while True:
            code, text = _report(configured, asked)
            if not asked.watch:
                if code in _NO_REPORT:
                    tell(text)
                else:
                    say(text, end="")
                return code
            text = sentence(text) if code in _NO_REPORT else text
            if not say(f"{CLEAR_SCREEN if sys.stdout.isatty() else ''}{text}"):
                return code
            pause.wait(WATCH_INTERVAL_S)
    except KeyboardInterrupt:
        return code


def _report(configured: Settings, asked: argparse.Namespace) -> tuple[int, str]:
    """The exit code, and the report or why there is none."""
    try:
        status = app.fetch_status(configured)
    except EdgeError as error:
        return exits.NO_PERMISSION if error.op == "authorise" else exits.NOT_RUNNING, error.cause
    code = exits.BLOCKED if _blocked(status) else EXIT_CODES[status.severity]
    if asked.json:
        return code, _json(status)
    return code, render(status, _in_colour(), None if asked.all else ROWS_MAX, asked.names)


def _blocked(status: Status) -> bool:
    """Has the document's time run out, and does it say that nobody may talk then?"""
    return any(c.type == "DocumentExpired" and c.severity is Severity.DOWN for c in status.conditions)


def _json(report: msgspec.Struct) -> str:
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n"


def _in_colour() -> bool:
    # https://no-color.org
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
