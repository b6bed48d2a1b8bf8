"""What does the service manager hear, and when does it hear nothing more?"""

from __future__ import annotations

import pytest

from cpe_agent.core.heartbeat import FEEDS, STATUS_CHARACTERS, STUCK_S, Beat, Told, line, step
from cpe_agent.model.condition import Condition, Severity

WATCHDOG_S = 45.0


def test_that_ready_is_said_once_and_only_when_the_loops_run() -> None:
    told, lines = step(Told(), Beat(False, {}, "starting"), None, 0.0)
    assert lines == ("STATUS=starting",)
    told, lines = step(told, Beat(True, {"rules": 1.0}, "well"), None, 1.0)
    assert lines == ("READY=1", "STATUS=well")
    told, lines = step(told, Beat(True, {"rules": 2.0}, "well"), None, 2.0)
    assert lines == ()


def test_that_it_is_fed_in_time_and_not_more_often() -> None:
    told, fed = Told(status="well", ready=True), []
    for now in range(100):
        told, lines = step(told, Beat(True, {"rules": float(now)}, "well"), WATCHDOG_S, float(now))
        fed += [now] if lines else []
        assert lines in ((), ("WATCHDOG=1",))
    assert fed == list(range(0, 100, round(WATCHDOG_S / FEEDS)))


@pytest.mark.parametrize("stuck", ["rules", "tunnels"])
def test_that_one_stuck_loop_is_enough_to_fall_silent_and_both_must_go_on(stuck: str) -> None:
    told = Told(status="well", ready=True)
    for now in range(300):
        progress = {"rules": float(now), "tunnels": float(now)} | {stuck: min(float(now), 100.0)}
        told, lines = step(told, Beat(True, progress, "well"), WATCHDOG_S, float(now))
        if "WATCHDOG=1" in lines:
            assert now <= 100 + STUCK_S
    assert told.status == f"stuck: {stuck} got nowhere for {STUCK_S:.0f} s"
    assert told.fed_at > 100 - WATCHDOG_S
    told, lines = step(told, Beat(True, {"rules": 300.0, "tunnels": 300.0}, "well"), WATCHDOG_S, 300.0)
    assert lines == ("STATUS=well", "WATCHDOG=1")


def test_that_who_waits_for_no_sign_of_life_gets_none() -> None:
    told = Told()
    for now in range(100):
        told, lines = step(told, Beat(True, {}, "well"), None, float(now))
        assert "WATCHDOG=1" not in lines


PATH_DOWN = Condition("PathDown", "lte.cloud.wan", "its probes are not answered")
NO_DOCUMENT = Condition("NoDocument", "", "this site has no document yet", Severity.DOWN)
PENDING = Condition("DocumentPending", "", "in force", Severity.OK)


@pytest.mark.parametrize(
    ("site", "document", "conditions", "expected"),
    [
        ("van-1", (1, 4), (), "van-1 (document 1.4): all is well"),
        ("van-1", (1, 4), (PENDING,), "van-1 (document 1.4): all is well"),
        (
            "van-1",
            (1, 4),
            (PATH_DOWN,),
            "van-1 (document 1.4): degraded: PathDown lte.cloud.wan: its probes are not answered",
        ),
        (
            "van-1",
            None,
            (PATH_DOWN, NO_DOCUMENT),
            "van-1: down: NoDocument: this site has no document yet; 1 more (cpe-agent status)",
        ),
        ("", None, (PATH_DOWN,), "no site yet: degraded: PathDown lte.cloud.wan: its probes are not answered"),
    ],
)
def test_that_the_line_has_the_worst_first(
    site: str, document: tuple[int, int] | None, conditions: tuple[Condition, ...], expected: str
) -> None:
    assert line(site, document, conditions) == expected


def test_that_the_line_is_one_and_short() -> None:
    long = Condition("PathDown", "lte.cloud.wan", "first\nsecond " + "word " * 100)
    said = line("van-1", (1, 4), (long, PATH_DOWN))
    assert len(said) <= STATUS_CHARACTERS
    assert "\n" not in said and said.endswith("...; 1 more (cpe-agent status)")
