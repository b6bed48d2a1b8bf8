"""What the agent promises of path health and of metered links, as scenarios: time, samples, events -> active paths."""

from __future__ import annotations

import math

import pytest

from cpe_agent.core.budget import Budget
from cpe_agent.core.health import WAKE_S, State
from cpe_agent.core.path_conditions import path_conditions
from cpe_agent.core.steer import Steering
from cpe_agent.model.dataplane import Path
from cpe_agent.model.document import Class
from tests.core.play import ACTIVE_S, MISSES, Play
from tests.core.two_hubs import FAILBACK_S, LTE, VERDICT_S, WIRED, WIRED2, both_hubs, one, play


def test_down_in_n_misses_and_up_after_m_good_ones() -> None:
    p = play()
    p.roads[WIRED].up = False
    p.run(60.0 + VERDICT_S)
    assert p.moved() == [("web", LTE, "path_down_probes")]
    p.roads[WIRED].up = True
    p.run(60.0 + VERDICT_S + 0.2)
    assert p.tracks[WIRED].state is State.DOWN, "one good one is not enough"
    p.run(60.0 + VERDICT_S + 0.6)
    assert p.tracks[WIRED].state is State.UP


def test_that_two_misses_move_nothing() -> None:
    p = play()
    p.roads[WIRED].up = False
    p.run(60.0 + ACTIVE_S * 2)
    p.roads[WIRED].up = True
    p.run(90.0)
    assert p.moved() == []


@pytest.mark.parametrize(
    ("fault", "reason"), [("link", "path_down_link"), ("ike", "path_down_ike")], ids=["link, address, gateway", "ike"]
)
def test_that_what_is_certain_counts_at_once(fault: str, reason: str) -> None:
    p = play()
    setattr(p.roads[WIRED], fault, False)
    p.run(60.05)
    assert p.moved() == [("web", LTE, reason)]


def test_that_only_answered_probes_keep_a_path_up() -> None:
    """Link and IKE_SA are there for ever; nobody answers."""
    p = play()
    p.roads[WIRED].up = p.roads[LTE].up = False
    p.run(66.0)
    assert {path: track.state for path, track in p.tracks.items()} == {WIRED: State.DOWN, LTE: State.DOWN}


def test_that_a_modem_that_wakes_up_is_no_failure() -> None:
    p = Play((one(Class(latency_ms=100)),))
    p.roads[LTE].standby_s, p.roads[LTE].asleep_s = 60.0, 2.5
    p.run(600.0)
    assert p.tracks[LTE].state is State.UP and p.tracks[LTE].stable_since == -math.inf
    assert not p.steering.grades["web", LTE].degraded and p.moved() == []
    # It is asleep when it is needed, and the only one: it carries, and is not left for being slow to wake.
    p.roads[WIRED].up = False
    p.run(620.0)
    assert p.moved() == [("web", LTE, "path_down_probes")] and p.tracks[LTE].state is State.UP


def test_that_an_idle_path_that_is_dead_is_found_in_bounded_time() -> None:
    p = Play((one(),))
    p.roads[LTE].standby_s = 60.0
    p.run(90.0)
    p.roads[LTE].up = False
    p.run(90.0 + 60.0 + WAKE_S + MISSES * ACTIVE_S + 0.2)
    assert p.tracks[LTE].state is State.DOWN


def test_that_a_link_that_flaps_every_ten_seconds_for_ten_minutes_moves_three_times_at_most() -> None:
    """Whether that is five seconds down and five up, or ten and ten; however soon the document would have it back."""
    for failback_s, period_s in ((0.0, 20.0), (3.0, 10.0), (60.0, 20.0)):
        p = play(failback_s=failback_s)
        while p.now < 660.0:
            start = p.now
            p.roads[WIRED].up = False
            p.run(start + period_s / 2)
            p.roads[WIRED].up = True
            p.run(start + period_s)
        assert len(p.moved()) <= 3, (failback_s, period_s, p.moved())
        p.run(660.0 + 5 * failback_s + 60.0)
        assert p.active["web"] == WIRED, "it is forgiven in the end"


@pytest.mark.parametrize(
    ("metered", "budget", "others", "where", "reason"),
    [
        ("always", Budget.NEAR, True, WIRED, None),
        ("always", Budget.SPENT, True, WIRED, None),
        ("budget", Budget.FREE, True, WIRED, None),
        ("budget", Budget.NEAR, True, LTE, "budget_near"),
        ("budget", Budget.NEAR, False, WIRED, None),
        ("budget", Budget.SPENT, True, LTE, "budget_spent"),
        ("budget", Budget.SPENT, False, None, "budget_spent"),
    ],
)
def test_budgets(metered: str, budget: Budget, others: bool, where: Path | None, reason: str | None) -> None:
    """Here it is the wired uplink that is metered: the better one, so that every row is a choice."""
    p = play(one(Class(metered=metered)))  # type: ignore[arg-type]
    p.roads[LTE].up = others
    p.run(70.0)
    p.budgets = {"wired": budget}
    p.run(80.0)
    assert p.active["web"] == where
    assert p.moved() == ([("web", where, reason)] if reason else [])
    assert p.steering.barred == ({"web"} if where is None else frozenset())
    p.budgets = {"wired": Budget.FREE}
    p.run(80.0 + FAILBACK_S)
    assert p.active["web"] == WIRED and p.steering.barred == frozenset(), "a new month"


def test_that_what_waits_for_a_dead_link_beside_a_spent_one_says_so() -> None:
    p = play(one(Class(metered="budget")))
    p.budgets = {"lte": Budget.SPENT}
    p.roads[WIRED].link = False
    p.run(65.0)
    assert p.active["web"] == WIRED and p.steering.starved == {"web"}
    (told,) = [c for c in path_conditions(p.steering, p.bundles, p.tracks, FAILBACK_S, p.now) if c.subject == "web"]
    assert told.type == "BundleBarred" and "have spent their monthly_bytes" in told.reason
    p.roads[LTE].link = False
    p.run(70.0)
    assert p.steering.starved == frozenset(), "nothing is up: that is another trouble"


def test_that_what_leaves_a_budget_does_not_come_back_to_it_for_a_bad_line() -> None:
    p = play(one(Class(metered="budget")))
    p.roads[LTE].loss = 0.2
    p.run(90.0)
    p.budgets = {"wired": Budget.NEAR}
    p.run(200.0)
    assert p.moved() == [("web", LTE, "budget_near")]


@pytest.mark.parametrize("alone", [False, True])
def test_that_a_hub_that_says_no_on_an_uplink_whose_bytes_are_spent_is_heard(alone: bool) -> None:
    """It may carry nothing any more, and still says what the hub says. If no other hub is there, the traffic stays, or
    starts, where it may."""
    needs = Class(metered="budget")
    p = play(one(needs) if alone else both_hubs(needs))
    p.budgets = {"lte": Budget.SPENT}
    p.roads[LTE].ready = False
    p.run(70.0)
    name = p.bundles[0].name
    assert p.moved() == ([] if alone else [(name, WIRED2, "peer_not_ready")])
    p.steering = Steering()
    p.run(75.0)
    assert p.active == {name: WIRED if alone else WIRED2}
