"""What does `cpe-agent drill` say, and with which exit code?"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from cpe_agent import app, cli, exits
from cpe_agent.core import drill
from cpe_agent.exits import USAGE
from cpe_agent.model.drill import DrillMove, DrillProgress, DrillRecord, Stream
from cpe_agent.ports import EdgeError
from cpe_agent.settings import Settings

DONE = DrillRecord(
    2, "0" * 64, 1.0, "2026-01-31T12:00:00+00:00", "van-1", "uplink", "wired", "done", "1.7",
    moves=(DrillMove("centre", "wired.centre.wan", "lte.centre.wan", 0.12, 0.2),),
    streams=(Stream("centre", "10.10.0.10 (echo)", 500, 0, 0.0),),
)  # fmt: skip


def _runs(monkeypatch: pytest.MonkeyPatch, record: DrillRecord | None) -> None:
    said = ("taking out uplink wired", "put back")
    steps: Iterator[DrillProgress] = iter(
        [DrillProgress(True, said[:1]), DrillProgress(True, said), DrillProgress(False, said, record)]
    )
    monkeypatch.setattr(app, "start_drill", lambda settings, kind, name: DrillProgress(True))
    monkeypatch.setattr(app, "drill_progress", lambda settings: next(steps))
    monkeypatch.setattr(cli, "DRILL_INTERVAL_S", 0)


@pytest.mark.parametrize(
    ("record", "code"),
    [
        (DONE, 0),
        (msgspec.structs.replace(DONE, streams=(Stream("centre", "s", 500, 3, 60.0),)), exits.DRILL_LOSS),
        (msgspec.structs.replace(DONE, moves=(DrillMove("centre", "a", "b", 0.1, None),)), exits.DRILL_LOSS),
        (msgspec.structs.replace(DONE, unmeasured=("cloud",)), exits.DRILL_UNMEASURED),
        (msgspec.structs.replace(DONE, streams=(), unmeasured=("centre",)), exits.DRILL_UNMEASURED),
        (
            msgspec.structs.replace(DONE, streams=(Stream("centre", "s", 500, 3, 60.0),), unmeasured=("cloud",)),
            exits.DRILL_LOSS,
        ),
        (msgspec.structs.replace(DONE, outcome="aborted"), exits.DRILL_EARLY),
        (msgspec.structs.replace(DONE, outcome="interrupted"), exits.DRILL_EARLY),
        (None, exits.UNAVAILABLE),
    ],
)
def test_progress_in_words_and_the_exit_code(
    record: DrillRecord | None,
    code: int,
    config: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _runs(monkeypatch, record)
    assert cli.main(["drill", "uplink", "wired", "-c", config]) == code
    assert capsys.readouterr().out == "taking out uplink wired\nput back\n", "each line once"


def test_json_is_the_record(config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _runs(monkeypatch, DONE)
    assert cli.main(["drill", "uplink", "wired", "--json", "-c", config]) == 0
    assert msgspec.json.decode(capsys.readouterr().out, type=DrillRecord) == DONE


@pytest.mark.parametrize(
    ("op", "code"), [("drill uplink x", exits.DRILL_REFUSED), ("connect", exits.NOT_RUNNING), ("authorise", 77)]
)
def test_a_refusal_says_why(
    op: str, code: int, config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(settings: Settings, kind: str, name: str) -> DrillProgress:
        raise EdgeError("control", op, "bundle centre has no healthy alternative")

    monkeypatch.setattr(app, "start_drill", refuse)
    assert cli.main(["drill", "uplink", "x", "-c", config]) == code
    assert capsys.readouterr().err == "cpe-agent: bundle centre has no healthy alternative.\n"


def test_what_to_drill_must_be_said(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["drill", "-c", config]) == USAGE
    assert "drill uplink NAME" in capsys.readouterr().err


def test_records_are_printed_and_checked(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = drill.line(msgspec.structs.replace(DONE, number=1, outcome="began", moves=(), streams=()))
    second = drill.line(msgspec.structs.replace(DONE, previous=drill.digest(first)))
    monkeypatch.setattr(app, "drill_lines", lambda settings: (first, second))
    assert cli.main(["drill", "--records", "-c", config]) == 0
    said = capsys.readouterr().out
    assert "2  2026-01-31T12:00:00+00:00  uplink wired  done" in said
    assert "centre: left to lte.centre.wan in 0.12 s, back in 0.20 s" in said
    assert "centre: 0 of 500 echoes lost, longest outage 0 ms" in said
    assert cli.main(["drill", "--records", "--json", "-c", config]) == 0
    assert capsys.readouterr().out.encode().splitlines() == [first, second]
    assert cli.main(["drill", "--check", "-c", config]) == 0
    assert "2 records" in capsys.readouterr().out
    monkeypatch.setattr(app, "drill_lines", lambda settings: (first.replace(b"wired", b"wires"), second))
    assert cli.main(["drill", "--check", "-c", config]) == exits.DRILL_LOSS
    assert "line 2 does not follow" in capsys.readouterr().err
    monkeypatch.setattr(app, "drill_lines", lambda settings: ())
    assert cli.main(["drill", "--records", "-c", config]) == 0
    assert "no drill yet" in capsys.readouterr().out
