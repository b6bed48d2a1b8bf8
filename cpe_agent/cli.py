"""What can somebody ask of the agent at a shell?

The commands: the only place that prints and that sets exit codes. An expected failure is one sentence on stderr.
"""

from __future__ import annotations

import io
import os
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from cpe_agent import __version__, app, boot, comparison, down, newcomer
from cpe_agent.arguments import USAGE, parser
from cpe_agent.core.enrolment import TokenError
from cpe_agent.listing import render_drills, render_preview, render_verification
from cpe_agent.model.condition import DrainAnswer, RollbackAnswer, Severity
from cpe_agent.model.document import MAX_BYTES, DocumentError
from cpe_agent.ports import EdgeError
from cpe_agent.render import render
from cpe_agent.settings import Settings, SettingsError, load_settings

# What `status` says to a script; 4 (blocked) is kept free.
EXIT_CODES = {Severity.OK: 0, Severity.DEGRADED: 1, Severity.DOWN: 2}
NOT_RUNNING = 3
# What `verify` says to a script.
IN_SYNC, DIFFERS, NOT_VERIFIED = 0, 1, 3
# What `rollback` says when there is no document before the one in force.
NOTHING_BEFORE = 1
# What `enroll` says when this token lets nobody in, and `reset` when it was not wanted.
NOT_LET_IN = 1
# Apart from those, as USAGE is: sysexits.h has the numbers.
BAD_DATA = 65
NO_INPUT = 66
UNAVAILABLE = 69
NO_PERMISSION = 77
CONFIGURATION = 78

# What `drill` says to a script.
DRILL_LOSS, DRILL_REFUSED, DRILL_EARLY = 1, 2, 4
DRILL_INTERVAL_S = 0.2
WATCH_INTERVAL_S = 1.0
CLEAR_SCREEN = "\x1b[H\x1b[2J"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Leaves by SystemExit for --help and for usage errors."""
    asked = parser().parse_args(arguments)
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
            return _failed("drill what? `drill uplink NAME`, `drill hub NAME`, `--records` or `--check`", USAGE)
        return _drill(configured, asked.kind, asked.name, asked.json)
    if asked.command == "boot":
        return _boot(configured, asked.charon_group)
    if asked.command == "down":
        return _down(configured)
    if asked.command == "plan":
        return _printed(lambda: _plan(configured, asked.file, asked.json))
    return _status(configured, asked.json, asked.watch)


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
        found = comparison.verify(configured)
    except comparison.NoDocument as error:
        return _failed(f"cannot verify: {error}", NOT_VERIFIED), ""
    except EdgeError as error:
        return _failed(f"cannot verify: {error}", NOT_VERIFIED), ""
    return IN_SYNC if found.in_sync else DIFFERS, _json(found) if as_json else render_verification(found)


def _plan(configured: Settings, file: Path | None, as_json: bool) -> tuple[int, str]:
    try:
        candidate = None if file is None else _read(file)
        planned = comparison.plan(configured, candidate)
    except OSError as error:
        return _failed(f"{file} cannot be read: {error.strerror}", NO_INPUT), ""
    except DocumentError as error:
        return _failed(f"{file or 'the stored document'}: {error}", BAD_DATA), ""
    except comparison.NoDocument as error:
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


def _rollback(configured: Settings, as_json: bool) -> int:
    try:
        answer = app.rollback(configured)
    except EdgeError as error:
        code = {"authorise": NO_PERMISSION, "connect": NOT_RUNNING, "rollback": NOTHING_BEFORE}
        return _failed(error.cause, code.get(error.op, UNAVAILABLE))
    return _printed(lambda: (0, _json(answer) if as_json else _rollback_words(answer)))


def _rollback_words(answer: RollbackAnswer) -> str:
    left, in_force = (".".join(map(str, order)) for order in (answer.left, answer.in_force))
    lines = [f"Document {in_force} is in force again, and {left} is given up here."]
    lines.append("Peers that it had removed stay away. The next newer document of the controller is obeyed again.")
    if answer.warning:
        lines.append(f"Warning: a restart of the agent would forget it: {answer.warning}.")
    return "".join(f"{textwrap.fill(line, 80, break_on_hyphens=False)}\n" for line in lines)


def _enroll(configured: Settings, token: str) -> int:
    def tell(words: str) -> None:
        print(_sentence(words), end="", file=sys.stderr, flush=True)

    try:
        site = newcomer.enroll(configured, token, tell)
    except TokenError as error:
        return _failed(str(error), BAD_DATA)
    except newcomer.NotLetIn as error:
        return _failed(str(error), NOT_LET_IN)
    except EdgeError as error:
        return _failed(error.cause, NO_PERMISSION if error.op == "authorise" else UNAVAILABLE)
    except KeyboardInterrupt:
        return NOT_LET_IN
    print(f"This box is {site} now.")
    return 0


def _reset(configured: Settings, sure: bool) -> int:
    if not sure:
        print("This box forgets its key, certificate and documents, and ends all tunnels.")
        print("Type reset to go on: ", end="", flush=True)
        try:
            sure = input().strip() == "reset"
        except EOFError:
            sure = False
        if not sure:
            return _failed("nothing was changed", NOT_LET_IN)
    try:
        # First nobody may talk, then it is forgotten who may.
        down.take_down(configured)
        newcomer.forget(configured.state_dir)
    except EdgeError as error:
        return _failed(error.cause, NO_PERMISSION if error.op == "authorise" else UNAVAILABLE)
    print("This box is new.")
    return 0


def _drill(configured: Settings, kind: str, name: str, as_json: bool) -> int:
    pause = threading.Event()
    told = 0
    try:
        progress = app.start_drill(configured, kind, name)
        while True:
            for line in () if as_json else progress.said[told:]:
                print(textwrap.fill(line, 80, subsequent_indent="  ", break_on_hyphens=False), flush=True)
            told = len(progress.said)
            if not progress.running:
                break
            pause.wait(DRILL_INTERVAL_S)
            progress = app.drill_progress(configured)
    except KeyboardInterrupt:
        print("The drill goes on without this command: `cpe-agent drill --records` tells its end.", file=sys.stderr)
        return DRILL_EARLY
    except EdgeError as error:
        code = {"authorise": NO_PERMISSION, "connect": NOT_RUNNING}.get(error.op, DRILL_REFUSED)
        return _failed(error.cause, code if told == 0 else DRILL_EARLY)
    record = progress.record
    if record is None or record.outcome == "began":
        return _failed(progress.said[-1] if progress.said else "the drill did not take place", UNAVAILABLE)
    if as_json:
        print(_json(record), end="")
    if record.outcome != "done":
        return DRILL_EARLY
    whole = all(move.back_s is not None for move in record.moves) and not any(s.lost for s in record.streams)
    return 0 if whole else DRILL_LOSS


def _drill_records(configured: Settings, check: bool, as_json: bool) -> tuple[int, str]:
    try:
        lines = app.drill_lines(configured)
    except EdgeError as error:
        return _failed(error.cause, UNAVAILABLE), ""
    if check:
        wrong = app.check_drills(lines)
        if wrong:
            return _failed(f"the records of drills do not hold: {wrong}", DRILL_LOSS), ""
        return 0, f"{len(lines)} records, each follows from the one before.\n"
    found = app.drill_records(lines)
    if as_json:
        return 0, "".join(msgspec.json.encode(record).decode() + "\n" for record in found)
    return 0, render_drills(found)


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
