"""What the agent promises of its choice: whom it asks, and which path it takes, as scenarios."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cpe_agent.model.dataplane import Bundle
from cpe_agent.model.document import Class
from tests.core.play import Play
from tests.core.two_hubs import (
    BROWNOUT_S,
    FAILBACK_S,
    LTE,
    LTE2,
    VERDICT_S,
    WIRED,
    WIRED2,
    both_hubs,
    brownout,
    one,
    play,
)


def test_that_the_candidates_are_asked_as_soon_as_the_active_path_misses() -> None:
    """The standby of a minute died long ago, and nobody has noticed: it is not taken for alive."""
    p = Play((both_hubs(),))
    for path in (LTE, LTE2):
        p.roads[path].standby_s = 60.0
    p.run(65.0)
    p.roads[LTE].up = False
    p.run(70.0)
    asked = p.rounds[LTE]
    p.roads[WIRED].up = False
    p.run(70.0 + VERDICT_S)
    assert p.rounds[LTE] > asked
    assert p.moved() == [("shared", WIRED2, "path_down_probes")], "the first that has answered just now"


@pytest.mark.parametrize("loss", [0.001, 0.01])
def test_that_a_sim_card_pays_nothing_for_what_a_wire_loses_by_chance(loss: float) -> None:
    p = Play((both_hubs(), one()))
    for path in (LTE, LTE2):
        p.roads[path].standby_s, p.roads[path].metered = 120.0, True
    p.run(120.0)
    asked = dict(p.rounds)
    for path in (WIRED, WIRED2):
        p.roads[path].loss = loss
    p.run(120.0 + 1800.0)
    for path in (LTE, LTE2):
        # Fifteen regular ones; two misses in a row are rare, and cost a round or two.
        assert p.rounds[path] - asked[path] <= (16 if loss < 0.01 else 25)


def test_that_a_metered_standby_is_asked_before_the_verdict() -> None:
    p = Play((both_hubs(),))
    for path in (LTE, LTE2):
        p.roads[path].standby_s, p.roads[path].metered = 60.0, True
    p.run(65.0)
    p.roads[LTE].up = False
    p.run(70.0)
    p.roads[WIRED].up = False
    p.run(70.0 + VERDICT_S)
    assert p.moved() == [("shared", WIRED2, "path_down_probes")], "its modem died long ago, and is not taken for alive"


def test_that_a_standby_is_asked_little_while_all_is_well_and_after_single_misses() -> None:
    p = Play((one(),))
    p.roads[LTE].standby_s = 60.0
    p.run(120.0)
    asked = p.rounds[LTE]
    p.run(720.0)
    assert p.rounds[LTE] - asked <= 11
    asked, p.roads[WIRED].loss = p.rounds[LTE], 0.01
    p.run(4320.0)
    assert p.rounds[LTE] - asked <= 60 + 40 * 20, "bursts, ever more rarely"


def test_that_failback_waits_and_is_sticky_otherwise() -> None:
    p = play()
    p.roads[WIRED].link = False
    p.run(65.0)
    p.roads[WIRED].link = True
    p.run(65.0 + FAILBACK_S)
    assert p.active["web"] == LTE
    p.run(65.0 + FAILBACK_S + 1.0)
    assert p.moved() == [("web", LTE, "path_down_link"), ("web", WIRED, "failback")]


def test_that_a_faster_path_of_lower_rank_attracts_nobody() -> None:
    p = play()
    p.roads[LTE].rtt_s = 0.001
    p.run(200.0)
    assert p.moved() == []


def kill_hub(p: Play) -> None:
    for path in (WIRED, LTE):
        p.roads[path].up = False


def unready_hub(p: Play) -> None:
    for path in (WIRED, LTE):
        p.roads[path].ready = False


def fail_servers(p: Play) -> None:
    p.failing = {"shared": frozenset({"centre"})}


@pytest.mark.parametrize(
    ("event", "reason", "within_s"),
    [
        (kill_hub, "path_down_probes", VERDICT_S),
        (unready_hub, "peer_not_ready", 2.0),
        (fail_servers, "service_failed", 0.1),
    ],
)
def test_that_a_shared_subnet_moves_to_the_other_hub(
    event: Callable[[Play], None], reason: str, within_s: float
) -> None:
    """It dies; it is not ready, or drained; its servers fail."""
    p = play(both_hubs())
    event(p)
    p.run(60.0 + within_s)
    assert p.moved() == [("shared", WIRED2, reason)]
    for road in p.roads.values():
        road.up = road.ready = True
    p.failing = {}
    p.run(60.0 + within_s + FAILBACK_S - 1)
    assert p.active["shared"] == WIRED2
    p.run(60.0 + within_s + FAILBACK_S + 5)
    assert p.active["shared"] == WIRED


def test_that_what_no_other_hub_serves_stays() -> None:
    for event in (unready_hub, fail_servers):
        p = play()
        event(p)
        p.failing = {"web": frozenset({"centre"})} if event is fail_servers else {}
        p.run(120.0)
        assert p.moved() == []


def test_that_two_hubs_with_different_subnets_are_both_used_always() -> None:
    centre = Bundle("centre", "traffic-centre", (WIRED, LTE), ("a",))
    cloud = Bundle("cloud", "traffic-cloud", (WIRED2, LTE2), ("b",))
    p = play(centre, cloud)
    kill_hub(p)
    p.run(70.0)
    assert p.active["cloud"] == WIRED2
    assert [bundle for bundle, _, _ in p.moved()] in (["centre"], [])


def test_that_the_second_best_hub_takes_over_if_only_it_keeps_to_the_class() -> None:
    p = play(both_hubs(Class(latency_ms=60)))
    for path in (WIRED, LTE):
        brownout(p.roads[path], latency_s=0.1)
    p.run(60.0 + BROWNOUT_S)
    assert p.moved() == [("shared", WIRED2, "degraded")]


def test_that_classes_put_one_pair_on_the_wire_and_another_on_the_air() -> None:
    """By preference, and by need: the wire is slow, and only one of them minds."""
    voice = Bundle("voice", "traffic-voice", (WIRED, LTE), ("a",), Class(latency_ms=60))
    bulk = Bundle("bulk", "traffic-bulk", (WIRED, LTE), ("b",))
    telemetry = Bundle("telemetry", "traffic-telemetry", (LTE, WIRED), ("c",), Class(uplinks=("cellular",)))
    p = play(voice, bulk, telemetry)
    brownout(p.roads[WIRED], latency_s=0.1)
    p.run(80.0)
    assert p.active == {"voice": LTE, "bulk": WIRED, "telemetry": LTE}


def test_that_a_drilled_path_is_left_and_gone_back_to_at_once() -> None:
    p = play(both_hubs())
    p.taken_out = frozenset({WIRED, WIRED2})
    p.run(60.1)
    assert p.moved() == [("shared", LTE, "taken_out")]
    p.taken_out = frozenset()
    p.run(60.6)
    assert p.moved()[1:] == [("shared", WIRED, "failback")]


def test_that_a_drilled_path_carries_on_if_nobody_else_can() -> None:
    p = play()
    p.roads[LTE].up = False
    p.run(70.0)
    p.taken_out = frozenset({WIRED})
    p.run(80.0)
    assert p.active["web"] == WIRED
