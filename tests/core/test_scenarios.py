"""What the agent promises of steering, sentence by sentence, as scenarios: time, samples, events -> active paths."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpe_agent.core.budget import Budget
from cpe_agent.core.health import WAKE_S, State
from cpe_agent.core.path_conditions import path_conditions
from cpe_agent.core.quality import LEAVE_S
from cpe_agent.core.steer import Steering
from cpe_agent.model.dataplane import Bundle, Path
from cpe_agent.model.document import Class
from tests.core.play import ACTIVE_S, MISSES, Play, Road

WIRED, LTE = Path("wired", "centre", "a"), Path("lte", "centre", "a")
WIRED2, LTE2 = Path("wired", "cloud", "a"), Path("lte", "cloud", "a")
FAILBACK_S = 60.0
# A verdict: the probe that is under way, `misses` rounds, patience, and a look.
VERDICT_S = (MISSES + 1) * ACTIVE_S + 0.15
# As the bench has it.
BROWNOUT_S = 5.0


def one(needs: Class | None = None) -> Bundle:
    return Bundle("web", "traffic-web", (WIRED, LTE), ("web",), needs or Class())


def both_hubs(needs: Class | None = None) -> Bundle:
    """The same subnet behind both."""
    return Bundle("shared", "traffic-shared", (WIRED, LTE, WIRED2, LTE2), ("shared",), needs or Class())


def play(*bundles: Bundle, failback_s: float = FAILBACK_S, seed: int = 1) -> Play:
    """After a minute of health: everything has settled."""
    found = Play(bundles or (one(),), failback_s, seed)
    found.run(60.0)
    assert all(found.active[bundle.name] == bundle.paths[0] for bundle in found.bundles)
    return found


# --- Path health ---


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


# --- Degraded by the class's SLA ---


def brownout(road: Road, latency_s: float = 0.0, loss: float = 0.0) -> None:
    road.rtt_s += latency_s
    road.loss = loss


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


# --- Choice ---


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


# --- Metered links ---


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


# --- Whatever happens ---

events = st.lists(
    st.tuples(
        st.sampled_from([WIRED, LTE, WIRED2, LTE2]),
        st.sampled_from(["up", "link", "ike", "ready", "loss", "slow", "failing", "taken_out", "near", "spent"]),
        st.sampled_from([0.2, 0.7, 2.0, 5.0, 15.0]),
    ),
    min_size=1,
    max_size=10,
)
NEEDS = (Class(), Class(latency_ms=60, loss_percent=1.0), Class(jitter_ms=20, metered="budget"))


def change(p: Play, path: Path, what: str) -> None:
    road = p.roads[path]
    if what in ("up", "link", "ike", "ready"):
        setattr(road, what, not getattr(road, what))
    elif what == "loss":
        road.loss = 0.0 if road.loss else 0.2
    elif what == "slow":
        road.rtt_s = 0.03 if road.rtt_s > 0.03 else 0.15
    elif what == "failing":
        p.failing = {} if p.failing else {"shared": frozenset({path.peer})}
    elif what == "taken_out":
        p.taken_out = frozenset() if p.taken_out else frozenset({path})
    else:
        p.budgets = {} if p.budgets else {"lte": Budget.NEAR if what == "near" else Budget.SPENT}


def never_on_a_dead_path_while_a_live_one_is_there(p: Play) -> None:
    for bundle in p.bundles:
        active = p.active.get(bundle.name)
        spent = {u for u, b in p.budgets.items() if b is Budget.SPENT and bundle.needs.metered != "always"}
        unwilling = {path.peer for path in bundle.paths if p.tracks[path].refuses()}
        live = [
            path
            for path in bundle.paths
            if p.tracks[path].usable() and path.peer not in unwilling and path.uplink not in spent
        ]
        if active is not None and live:
            assert p.tracks[active].state is not State.DOWN, f"{bundle.name} on {active} at {p.now}, {live} live"
            assert active.uplink not in spent
            assert active.peer not in unwilling


@settings(max_examples=30, deadline=None)
@given(events, st.sampled_from(NEEDS), st.sampled_from([0.0, 5.0, 60.0]), st.integers(0, 5))
def test_whatever_happens(script: list[tuple[Path, str, float]], needs: Class, failback_s: float, seed: int) -> None:
    p = Play((both_hubs(needs), one()), failback_s, seed)
    p.run(5.0)
    p.watch = never_on_a_dead_path_while_a_live_one_is_there
    for path, what, wait_s in script:
        change(p, path, what)
        p.run(p.now + wait_s)
    for bundle in p.bundles:
        made = [one for one in p.moves if one[1].bundle == bundle.name]
        for (earlier, first, _, held_until), (later, second, forced, _) in pairwise(made):
            if second.reason in ("budget_spent", "taken_out") or forced:
                continue
            # Start and drills begin no hold-down; everything else at least this one.
            least = earlier if first.reason in ("start", "adopted", "taken_out") else earlier + 3.0
            assert later >= max(least, held_until), f"moved twice: {made}"
