"""`boot`: is a clock that has lost the time set forward to what has certainly passed, and never back?

That a whole router boots so: tests/scenarios/test_boot.py, and on a clock of its own tests/deb/test_kernel.py.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cpe_agent import BUILT_AT, boot
from cpe_agent.edge.store import FileStore
from cpe_agent.model.document import Document
from cpe_agent.settings import Settings, parse_settings
from tests.loops.documents import branch

DOCUMENT = branch()
ISSUED = DOCUMENT.issued_at.timestamp()
LATE = max(ISSUED, BUILT_AT) + 1_000_000.0


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "state").mkdir(mode=0o700)
    text = f"state_dir: {tmp_path}/state\nrun_dir: {tmp_path}/run\n"
    return parse_settings(tmp_path / "agent.yaml", text.encode())


@pytest.fixture
def set_to(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """To which times the system's clock was set."""
    found: list[float] = []
    monkeypatch.setattr("time.clock_settime", lambda clock, at: found.append(at))
    return found


@pytest.mark.parametrize(
    ("saved", "document", "floor"),
    [
        (0.0, None, BUILT_AT),
        (LATE, None, LATE),
        (0.0, DOCUMENT, max(ISSUED, BUILT_AT)),
        (LATE, DOCUMENT, LATE),
    ],
    ids=["as it was built", "as it was saved", "as the document says", "the latest of all"],
)
def test_a_clock_that_is_behind(
    settings: Settings,
    set_to: list[float],
    monkeypatch: pytest.MonkeyPatch,
    saved: float,
    document: Document | None,
    floor: float,
) -> None:
    if saved:
        FileStore(settings.state_dir).save_clock_floor(saved)
    monkeypatch.setattr(time, "time", lambda: floor - 3600.0)
    assert boot._lift_clock(settings, document) == 3600.0
    assert set_to == [floor]


@pytest.mark.parametrize("ahead_s", [0.0, 1.0, 1e9])
def test_one_that_is_not_is_left_alone(
    settings: Settings, set_to: list[float], monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    FileStore(settings.state_dir).save_clock_floor(LATE)
    monkeypatch.setattr(time, "time", lambda: LATE + ahead_s)
    assert boot._lift_clock(settings, DOCUMENT) == 0.0
    assert set_to == []


def test_a_floor_that_cannot_be_read_is_not_the_only_one(
    settings: Settings, set_to: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    FileStore(settings.state_dir).save_clock_floor(LATE)
    (saved,) = (path for path in settings.state_dir.iterdir() if "clock" in path.name)
    saved.write_bytes(b"\xff")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert boot._lift_clock(settings, None) == BUILT_AT and set_to == [BUILT_AT]


def test_where_it_may_not_be_set_the_rest_goes_on(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(clock: int, at: float) -> None:
        raise PermissionError

    monkeypatch.setattr("time.clock_settime", refused)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert boot._lift_clock(settings, None) == 0.0
