"""What the agent promises of paths that work badly, as scenarios: time, samples, events -> active paths."""

from __future__ import annotations

import pytest

from cpe_agent.core.quality import LEAVE_S
from cpe_agent.model.document import Class
from tests.core.play import Play
from tests.core.two_hubs import BROWNOUT_S, FAILBACK_S, LTE, WIRED, brownout, one, play


@pytest.mark.parametrize("needs", [Class(), Class(loss_percent=1.0)], ids=["no class", "1 %"])
def test_that_a_loss_of_a_tenth_is_left_within_five_seconds(needs: Class) -> None:
    for seed in range(20):
        p = play(one(needs), seed=seed)
        brownout(p.roads[WIRED], loss=0.10)
        p.run(60.0 + BROWNOUT_S)
        assert p.active["web"] == LTE, seed
        p.run(75.0)
        assert [reason for _, _, reason in p.moved()] == ["degraded"]


@pytest.mark.parametrize("added_s", [0.05, 0.15, 0.4, 1.0])
def test_that_latency_over_the_limit_is_left_within_five_seconds(added_s: float) -> None:
    p = play(one(Class(latency_ms=60)))
    brownout(p.roads[WIRED], latency_s=added_s)
    p.run(60.0 + BROWNOUT_S)
    assert p.active["web"] == LTE


def test_that_jitter_over_the_limit_is_left_within_five_seconds() -> None:
    p = play(one(Class(jitter_ms=10)))

    def shake(shaken: Play) -> None:
        shaken.roads[WIRED].rtt_s = 0.03 + (0.04 if round(shaken.now / 0.1) % 2 else 0.0)

    p.watch = shake
    p.run(60.0 + BROWNOUT_S)
    assert p.moved() == [("web", LTE, "degraded")]


def test_that_a_path_is_not_left_for_one_that_is_no_better() -> None:
    p = play(one(Class(latency_ms=60)))
    for path in (WIRED, LTE):
        brownout(p.roads[path], latency_s=0.1)
    p.run(300.0)
    assert p.moved() == []


def test_that_of_two_bad_paths_the_clearly_better_is_taken_once() -> None:
    p = play(one(Class(latency_ms=40)))
    brownout(p.roads[WIRED], latency_s=0.25)
    brownout(p.roads[LTE], latency_s=0.05)
    p.run(120.0)
    assert p.active["web"] == LTE and len(p.moved()) == 1
    # They change places by a little, again and again: no to and fro.
    for number in range(20):
        p.roads[WIRED].rtt_s, p.roads[LTE].rtt_s = (0.06, 0.09) if number % 2 else (0.09, 0.06)
        p.run(p.now + 20.0)
    assert len(p.moved()) == 1


def test_that_two_bad_paths_that_change_places_do_not_make_it_flap() -> None:
    p = play(one(Class(latency_ms=40)))
    for number in range(60):
        p.roads[WIRED].rtt_s, p.roads[LTE].rtt_s = (0.18, 0.06) if number % 2 else (0.06, 0.18)
        p.run(p.now + 10.0)
    assert len(p.moved()) <= 12, p.moved()


def test_that_what_becomes_good_is_found_however_long_all_was_bad() -> None:
    p = play(one(Class(latency_ms=60)))
    for path in (WIRED, LTE):
        brownout(p.roads[path], latency_s=0.1)
    p.run(900.0)
    asked = p.rounds[LTE]
    p.run(1200.0)
    assert p.rounds[LTE] - asked <= 300 + 2 * 300, "it is measured ever more rarely"
    p.roads[LTE].rtt_s = 0.03
    p.run(1230.0)
    assert p.moved() == [("web", LTE, "degraded")]


def test_that_it_comes_back_only_after_good_health() -> None:
    p = play(one(Class(latency_ms=60)))
    brownout(p.roads[WIRED], latency_s=0.1)
    p.run(70.0)
    assert p.active["web"] == LTE
    p.roads[WIRED].rtt_s = 0.03
    p.run(70.0 + FAILBACK_S)
    assert p.active["web"] == LTE
    p.run(70.0 + FAILBACK_S + LEAVE_S + 15.0)
    assert p.moved()[1:] == [("web", WIRED, "failback")]


def test_that_a_path_that_only_looks_good_is_measured_before_it_is_gone_back_to() -> None:
    """A loss of a tenth at a round a second is hard to see."""
    back = 0
    for seed in range(6):
        p = play(seed=seed)
        brownout(p.roads[WIRED], loss=0.15)
        p.run(400.0)
        back += len([m for m in p.moved() if m[2] == "failback"])
    assert back <= 3, "the path was bad all the time"


def test_that_a_little_loss_is_not_heavy_loss() -> None:
    moved = 0
    for seed in range(6):
        p = play(seed=seed)
        brownout(p.roads[WIRED], loss=0.01)
        p.run(360.0)
        moved += len(p.moved())
    assert moved == 0
