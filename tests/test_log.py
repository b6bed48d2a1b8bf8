"""The agent speaks in the words of its vocabulary and in no others, one line an event."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import structlog

from cpe_agent.log import EVENTS, FIELDS, PRIORITIES, configure, events_page, get_logger

ROOT = Path(__file__).parent.parent
CODE = ROOT / "cpe_agent"

METHODS = frozenset({"debug", "info", "warning", "error", "critical", "exception", "log"})
LOGGERS = frozenset({"log", "_log", "logger", "_logger"})
# What structlog takes for itself.
RESERVED = frozenset({"exc_info", "stack_info"})

log = get_logger()


def mistakes(source: str, file: str) -> Iterator[str]:
    """Every log call in `source` that says what is not in the vocabulary, or that cannot be judged by reading it."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        called_on = node.func.value
        # log.info(...), self._log.info(...), log.bind(...).info(...), get_logger().info(...)
        while isinstance(called_on, ast.Call):
            called_on = called_on.func.value if isinstance(called_on.func, ast.Attribute) else called_on.func
        name = getattr(called_on, "attr", getattr(called_on, "id", ""))
        if name not in LOGGERS | {"get_logger"} or node.func.attr not in METHODS | {"bind", "new"}:
            continue
        where = f"{file}:{node.lineno}"
        if node.func.attr in METHODS:
            words = node.args[1:] if node.func.attr == "log" else node.args
            match words:
                case [ast.Constant(value=str() as event)]:
                    if event not in EVENTS:
                        yield f"{where}: event {event!r} is not in EVENTS"
                case _:
                    yield f"{where}: an event is one fixed string, and what varies is in fields"
        elif node.args:
            yield f"{where}: {node.func.attr} takes fields by name only"
        for keyword in node.keywords:
            if keyword.arg is None:
                yield f"{where}: **fields hides the fields' names"
            elif keyword.arg not in FIELDS.keys() | RESERVED:
                yield f"{where}: field {keyword.arg!r} is not in FIELDS"


def test_the_code_keeps_to_the_vocabulary() -> None:
    files = sorted(CODE.rglob("*.py"))
    assert files
    found = [mistake for file in files for mistake in mistakes(file.read_text(), str(file.relative_to(ROOT)))]
    assert found == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ('log.info("path_up", path="x", rtt_ms=1.5)', None),
        ('self._log.warning("path_down", exc_info=True)', None),
        ('log.bind(path="x").info("path_up")', None),
        ('log.log(20, "path_up")', None),
        ("math.log(20)", None),
        ('log.info("path_upp")', "event 'path_upp'"),
        ('log.info("path_up", colour="x")', "field 'colour'"),
        ('log.bind(colour="x").info("path_up")', "field 'colour'"),
        ('get_logger().error("oops")', "event 'oops'"),
        ('self._log.error(f"path {x} is up")', "one fixed string"),
        ('log.info("path_up", "now")', "one fixed string"),
        ('log.info("path_up", **fields)', "hides"),
        ('log.bind({"path": 1})', "by name only"),
    ],
)
def test_mistakes_are_found(source: str, words: str | None) -> None:
    found = list(mistakes(source, "x.py"))
    assert found == [] if words is None else any(words in mistake for mistake in found)


def test_names_and_meanings_have_one_form() -> None:
    for name, meaning in [*EVENTS.items(), *FIELDS.items()]:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name), name
        assert re.fullmatch(r"[^\n|]+\.", meaning), name
    assert all("_" in name for name in EVENTS)


def test_the_page_says_the_same() -> None:
    assert (ROOT / "docs" / "EVENTS.md").read_text() == events_page(), "python -m cpe_agent.log > docs/EVENTS.md"


@pytest.fixture
def said() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(said: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said.getvalue().splitlines()]


def test_json_is_one_object_a_line(said: io.StringIO) -> None:
    configure("json", "info", said)
    log.debug("link_changed")
    log.info("path_up", path="wired.centre.a", rtt_ms=1.5)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("target_failed", target="charon")
    up, failed = lines(said)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", up.pop("timestamp"))
    assert up == {"event": "path_up", "level": "info", "path": "wired.centre.a", "rtt_ms": 1.5}
    assert failed["level"] == "error"
    assert failed["exception"].endswith("ValueError: two\nlines")
    assert (up.keys() | failed.keys()) <= FIELDS.keys()


def test_the_level_can_be_changed(said: io.StringIO) -> None:
    configure("json", "warning", said)
    log.info("path_up")
    configure("json", "debug", said)
    log.debug("link_changed")
    assert [line["event"] for line in lines(said)] == ["link_changed"]


def journal(monkeypatch: pytest.MonkeyPatch, form: Literal["json", "console"]) -> Iterator[str]:
    """A pipe that systemd has said to be its journal's; what is read from it."""
    reading, writing = os.pipe()
    found = os.fstat(writing)
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
    with open(writing, "w") as stream, open(reading) as lines:
        configure(form, "debug", stream)
        log.debug("link_changed")
        log.info("path_up", path="a")
        log.warning("path_down", path="two\nlines")
        try:
            raise ValueError("x")
        except ValueError:
            log.exception("target_failed")
        log.critical("agent_stopped")
        logging.getLogger("some.library").error("broken")
        stream.close()
        yield from lines.read().splitlines()


def test_the_journal_gets_the_priority_of_each_event(monkeypatch: pytest.MonkeyPatch, said: io.StringIO) -> None:
    found = list(journal(monkeypatch, "json"))
    assert [line[:3] for line in found] == ["<7>", "<6>", "<4>", "<3>", "<2>", "<3>"]
    # systemd takes the prefix off; the rest is one object.
    events = [json.loads(line[3:]) for line in found]
    assert [PRIORITIES[event["level"]] for event in events] == [7, 6, 4, 3, 2, 3]
    assert events[2]["path"] == "two\nlines"


def test_each_line_of_a_traceback_has_its_priority(monkeypatch: pytest.MonkeyPatch, said: io.StringIO) -> None:
    found = list(journal(monkeypatch, "console"))
    assert len(found) > 8 and all(re.match("<[2-7]>", line) for line in found)
    assert len([line for line in found if line.startswith("<3>")]) > 3


def test_whoever_is_not_the_journal_gets_none(
    monkeypatch: pytest.MonkeyPatch, said: io.StringIO, tmp_path: Path
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1234567")
    with (tmp_path / "log").open("w+") as stream:
        configure("json", "info", stream)
        log.info("path_up")
        stream.seek(0)
        assert json.loads(stream.read())["event"] == "path_up"
    configure("json", "info", said)
    log.info("path_up")
    assert lines(said)[0]["event"] == "path_up"


def test_the_journal_knows_us_by_our_name() -> None:
    """systemd calls a unit's lines by what it starts and takes the prefix off, unless it is told otherwise."""
    unit = (ROOT / "systemd" / "cpe-agent.service").read_text()
    assert re.search(r"^ExecStart=/usr/bin/cpe-agent run$", unit, re.MULTILINE)
    told = dict(re.findall(r"^(Syslog\w+|StandardError)=(.*)$", unit, re.MULTILINE))
    usual = {"SyslogIdentifier": "cpe-agent", "SyslogLevelPrefix": "yes", "StandardError": "journal"}
    assert told.items() <= usual.items()


def test_console_is_for_people(said: io.StringIO) -> None:
    configure("console", "info", said)
    log.info("path_up", path="wired.centre.a")
    assert "path_up" in said.getvalue()
    assert "path=wired.centre.a" in said.getvalue()
    assert "\x1b" not in said.getvalue()


def test_libraries_speak_in_our_form(said: io.StringIO) -> None:
    configure("json", "info", said)
    library = logging.getLogger("some.library")
    library.info("GET / 200")
    library.warning("%d times", 3)
    (line,) = lines(said)
    assert (line["event"], line["level"]) == ("library_spoke", "warning")
    assert (line["library"], line["text"]) == ("some.library", "3 times")
    assert "exception" not in line
