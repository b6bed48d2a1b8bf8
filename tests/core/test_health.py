"""Does a path's health follow its table?"""

from __future__ import annotations

import math
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpe_agent.core import health
from cpe_agent.core.health import (
    AWAITED_S,
    RECOVER,
    REDIAL_AFTER_S,
    WAKE_S,
    State,
    Track,
    answered,
    awaited_paths,
    dead,
    facts,
    redialled,
    sent,
    tick,
)
from cpe_agent.core.window import Figures
from cpe_agent.model.dataplane import Bundle, Path

MISSES = 3
RTT_S = 0.02


def dialled(now: float = 0.0) -> Track:
    return facts(Track(MISSES), 1, True, now)


def hit(track: Track, sequence: int, now: float, ready: bool = True) -> Track:
    """A round that is answered after `RTT_S`."""
    return answered(sent(track, sequence, now), sequence, ready, RTT_S, now + RTT_S)


def miss(track: Track, sequence: int, now: float) -> Track:
    track = sent(track, sequence, now)
    return tick(track, now + track.patience_s)


def up() -> Track:
    return hit(dialled(), 1, 1.0)


def down(reason: str = "probes") -> Track:
    track = up()
    if reason == "link":
        return facts(track, 1, False, 2.0)
    if reason == "ike":
        return facts(track, None, True, 2.0)
    for sequence in range(2, 2 + MISSES):
        track = miss(track, sequence, float(sequence))
    return track


def test_unknown_to_up_with_the_first_answer() -> None:
    track = up()
    assert (track.state, track.ready, track.usable()) == (State.UP, True, True)
    assert track.since == 1.0 + RTT_S and math.isinf(track.stable_since)


def test_unknown_to_down_after_misses() -> None:
    track = dialled()
    for sequence in range(1, MISSES):
        track = miss(track, sequence, float(sequence))
        assert track.state is State.UNKNOWN
    track = miss(track, MISSES, 9.0)
    assert (track.state, track.reason) == (State.DOWN, "probes")
    assert track.stable_since == track.since, "it fell: its IKE_SA is up and nothing comes through"


def test_up_to_down_after_misses_in_a_row_only() -> None:
    track = up()
    for sequence in range(2, 20):
        track = miss(track, sequence, float(sequence)) if sequence % MISSES else hit(track, sequence, float(sequence))
        assert track.state is State.UP
    track = down()
    assert (track.state, track.reason, track.usable()) == (State.DOWN, "probes", False)
    assert track.stable_since == track.since > 1.0


@pytest.mark.parametrize("reason", ["link", "ike"])
def test_up_to_down_at_once_for_certain(reason: str) -> None:
    track = down(reason)
    assert (track.state, track.reason, track.since, track.stable_since) == (State.DOWN, reason, 2.0, 2.0)


def test_down_to_up_after_answers_in_a_row() -> None:
    track = down()
    for sequence in range(10, 10 + RECOVER - 1):
        track = hit(track, sequence, float(sequence))
        assert track.state is State.DOWN
    track = miss(track, 20, 20.0)
    for sequence in range(30, 30 + RECOVER):
        assert track.state is State.DOWN
        track = hit(track, sequence, float(sequence))
    assert track.state is State.UP and track.usable() and track.stable_since < 10


@pytest.mark.parametrize("reason", ["link", "ike"])
def test_answers_alone_do_not_raise_what_is_certainly_down(reason: str) -> None:
    track = down(reason)
    for sequence in range(10, 10 + 2 * RECOVER):
        track = hit(track, sequence, float(sequence))
    assert track.state is State.DOWN
    track = facts(track, 2, True, 30.0)
    assert track.state is State.DOWN
    assert hit(track, 30, 30.0).state is State.UP, "with its handshake that is three round trips"


def test_that_the_ike_sa_in_which_it_fell_earns_trust_again() -> None:
    track = facts(facts(down("link"), 1, False, 3.0), 1, True, 4.0)
    for sequence in range(10, 10 + RECOVER):
        assert track.state is State.DOWN
        track = hit(track, sequence, float(sequence))
    assert track.state is State.UP


def test_unknown_stays_unknown_while_it_is_being_dialled() -> None:
    track = facts(dialled(), None, True, 1.0)
    assert track.state is State.UNKNOWN
    assert facts(track, None, False, 2.0).state is State.UNKNOWN
    assert tick(track, 100.0).state is State.UNKNOWN


def test_a_replaced_ike_sa_is_no_fall() -> None:
    track = facts(up(), 2, True, 5.0)
    assert track.state is State.UP and track.usable()


def test_a_late_answer_counts_and_patience_grows() -> None:
    track = sent(up(), 2, 2.0)
    late = track.next_deadline()
    track = tick(track, late)
    assert track.missed_in_row == 1
    before = track.patience_s
    track = answered(track, 2, True, 0.4, late + 0.3)
    assert track.missed_in_row == 0 and track.patience_s > before
    figures = track.figures(late + 0.3)
    assert (figures.missed, figures.latency_s) == (0, 0.4), "late is latency and no loss"
    for sequence in range(3, 30):
        track = answered(sent(track, sequence, float(sequence)), sequence, True, 0.4, sequence + 0.4)
    assert track.patience_s > 0.4


def test_late_answers_raise_a_slow_path() -> None:
    """Every round is judged missed before its answer comes: it is still not dead."""
    track = dialled()
    for sequence in range(1, 40):
        track = sent(track, sequence, sequence * 4.0)
        track = tick(track, sequence * 4.0 + 3.0)
        track = answered(track, sequence, True, 3.2, sequence * 4.0 + 3.2)
        assert track.state is State.UP


def test_answers_of_nobody_are_nothing() -> None:
    track = up()
    assert answered(track, 99, True, RTT_S, 5.0) == track
    forgotten = sent(sent(track, 2, 2.0), 3, 2.0 + health.FORGET_S + 0.1)
    assert 2 not in forgotten.rounds


def test_an_answer_twice_is_one() -> None:
    track = sent(dialled(), 1, 1.0)
    once = answered(track, 1, False, RTT_S, 1.1)
    twice = answered(once, 1, True, RTT_S, 1.2)
    assert (once.ready, twice.ready) == (False, True)
    assert (twice.srtt_s, twice.window, twice.answered_in_row) == (once.srtt_s, once.window, 1)


def test_a_hub_that_answers_but_is_not_ready() -> None:
    track = up()
    for sequence in range(2, 2 + MISSES):
        assert track.usable()
        track = hit(track, sequence, float(sequence), ready=False)
        track = tick(track, sequence + 0.9)
    assert (track.state, track.ready, track.usable()) == (State.UP, False, False)
    assert hit(track, 50, 50.0).usable()


def test_patience_has_bounds() -> None:
    track = dialled()
    assert track.patience_s == health.PATIENCE_FIRST_S
    for sequence in range(1, 50):
        track = answered(sent(track, sequence, float(sequence)), sequence, True, 0.0001, sequence + 0.0001)
    assert track.patience_s == health.PATIENCE_MIN_S
    for sequence in range(50, 99):
        track = answered(sent(track, sequence, sequence * 4.0), sequence, True, 8.0, sequence * 4.0)
    assert track.patience_s == health.PATIENCE_MAX_S


def test_a_path_is_given_up_after_a_while_and_later_each_time() -> None:
    track = down()
    assert not dead(track, track.since + REDIAL_AFTER_S - 0.01)
    assert track.next_deadline() == track.since + REDIAL_AFTER_S
    waits = []
    now = track.since
    for ike in range(2, 12):
        now = track.next_deadline()
        assert dead(track, now)
        waits.append(track.redial_after_s)
        track = facts(redialled(track), None, True, now)
        assert not dead(track, now + 1000) and math.isinf(track.next_deadline())
        track = facts(track, ike, True, now + 1)
        assert not dead(track, now + 1)
    assert waits[:6] == [1, 2, 4, 8, 16, 30] and waits[-1] == health.REDIAL_AFTER_MAX_S
    for sequence in range(100, 100 + RECOVER):
        track = hit(track, sequence, now + sequence)
    assert track.state is State.UP and track.redials == 0


def test_nothing_alive_is_dead() -> None:
    for track in (dialled(), up(), down("ike")):
        assert not dead(track, 1e9) and not dead(track, 1e9, awaited=True)


def test_that_a_path_that_traffic_waits_for_is_given_up_sooner_and_once() -> None:
    track = down()
    sooner = track.since + AWAITED_S
    assert track.next_deadline(awaited=True) == sooner < track.next_deadline()
    assert dead(track, sooner, awaited=True) and not dead(track, sooner - 0.01, awaited=True)
    track = facts(facts(redialled(track), None, True, sooner), 2, True, 20.0)
    assert not dead(track, 20.0 + AWAITED_S, awaited=True), "the new one has its time"
    assert track.next_deadline(awaited=True) == track.next_deadline()
    lost = down("link")
    back = facts(lost, 1, True, lost.since + 0.1)
    assert not dead(back, lost.since + AWAITED_S, awaited=True), "its hub still knows it"


ONE, OTHER, THIRD = (Path(uplink, "centre", "wan") for uplink in ("wired", "lte", "sat"))
BUNDLE = Bundle("centre", "traffic-centre", (ONE, OTHER, THIRD), ())


@pytest.mark.parametrize(
    ("active", "one", "other", "awaited"),
    [
        (ONE, down(), down(), {OTHER, THIRD}),
        (OTHER, down(), down(), {ONE, THIRD}),
        (ONE, up(), down(), set()),
        (ONE, down(), up(), set()),  # traffic goes there
        (None, down(), down(), set()),  # it never had any
    ],
)
def test_which_paths_traffic_waits_for(active: Path | None, one: Track, other: Track, awaited: set[Path]) -> None:
    tracks = {ONE: one, OTHER: other, THIRD: down()}
    assert awaited_paths([BUNDLE], {"centre": active}, tracks) == awaited


def test_that_what_carries_another_bundle_is_not_given_up_for_this_one() -> None:
    second = msgspec.structs.replace(BUNDLE, name="second")
    tracks = {ONE: down(), OTHER: down(), THIRD: down()}
    assert awaited_paths([BUNDLE, second], {"centre": ONE, "second": OTHER}, tracks) == {THIRD}


def idle(now: float = 60.0) -> Track:
    """A standby path at a round a minute, whose modem has gone to sleep."""
    return sent(up(), 2, now, 60.0)


def test_a_modem_that_wakes_up_is_no_failure_and_spoils_no_figure() -> None:
    track = idle()
    before = (track.srtt_s, track.rttvar_s, track.window)
    track = tick(track, 62.9)
    assert (track.state, track.missed_in_row) == (State.UP, 0) and track.silent(62.9)
    track = answered(track, 2, True, 2.9, 62.9)
    assert track.usable() and not track.silent(62.9)
    assert (track.srtt_s, track.rttvar_s, track.window) == before
    track = sent(track, 3, 63.0, 60.0)
    assert track.next_deadline() == 63.0 + track.patience_s, "it is awake now"


def test_rounds_that_are_sent_while_a_modem_wakes_up_wait_for_it_too() -> None:
    track = idle()
    for sequence in range(3, 13):
        track = tick(sent(track, sequence, 60.0 + sequence / 10, 0.1), 60.0 + sequence / 10)
    assert (track.state, track.missed_in_row) == (State.UP, 0)
    for sequence in range(2, 13):
        track = answered(track, sequence, True, 1.5, 62.0)
    assert track.usable() and track.figures(62.0).loss == 0


def test_a_path_that_died_while_it_was_idle_is_found_in_bounded_time() -> None:
    track = idle()
    died_at = track.next_deadline()
    assert died_at == 60.0 + WAKE_S
    track = tick(track, died_at)
    assert track.missed_in_row == 1
    for sequence in (3, 4):
        track = miss(track, sequence, died_at + (sequence - 2) / 10)
    assert track.state is State.DOWN


def test_an_answer_in_the_usual_time_is_measured_even_after_a_minute() -> None:
    track = answered(idle(), 2, True, RTT_S, 60.0 + RTT_S)
    assert track.window[-1] == (60.0, RTT_S)


def test_an_extra_round_proves_life_and_no_death() -> None:
    track = up()
    for sequence in range(2, 12):
        track = sent(track, sequence, 1.0 + sequence / 40, 0.1, extra=True)
    track = tick(track, 2.0)
    assert (track.state, track.missed_in_row) == (State.UP, 0)
    assert track.figures(2.0).missed == 10
    track = miss(track, 12, 2.0)
    track = answered(sent(track, 13, 2.1, 0.1, extra=True), 13, True, RTT_S, 2.1 + RTT_S)
    assert track.missed_in_row == 0


def test_that_a_pace_does_not_mix_with_another() -> None:
    """A minute's pace: what it said is no part of what the quick pace says, nor the other way round."""
    track = up()
    for number in range(3):
        track = answered(sent(track, 10 + number, 60.0 * number, 60.0), 10 + number, True, 0.3, 60.0 * number + 0.3)
    assert track.figures(125.0).rounds == 3 and not track.quick()
    for number in range(10):
        at = 130.0 + number / 10
        track = answered(sent(track, 20 + number, at, 0.1), 20 + number, True, 0.04, at + 0.04)
    assert track.quick() and track.figures(131.0) == Figures(10, 0, 0, 0.04, 0.0)
    assert track.figures(136.5).rounds == 0, "seconds later it is stale"
    track = sent(track, 40, 190.0, 60.0)
    assert track.window == ()


def test_that_each_fall_is_remembered_and_the_hold_grows_and_is_forgotten() -> None:
    track, holds, now, sequence = up(), [], 10.0, 100
    for _ in range(6):
        track = facts(facts(track, 1, False, now), 1, True, now + 1)
        assert track.state is State.DOWN
        holds.append(track.hold_s(60.0))
        now += 10
        for _ in range(RECOVER):
            sequence += 1
            track = hit(track, sequence, now)
        assert track.state is State.UP
    assert holds[0] == 60.0 and all(b > a or b == 300.0 for a, b in pairwise(holds)) and holds[-1] == 300.0
    assert facts(track, 1, False, now + 3600).hold_s(60.0) == 60.0, "an hour later it is forgotten"


def test_that_charons_late_word_is_no_second_fall() -> None:
    track = down()
    for sequence in range(10, 10 + RECOVER):
        track = hit(track, sequence, 4.1 + sequence / 10)
    assert track.state is State.UP
    track = facts(track, None, True, 14.0)
    assert track.state is State.DOWN and track.falls.count == 1


events = st.lists(
    st.tuples(
        st.sampled_from(["send", "probe", "ready", "wait", "ike", "no ike", "link", "no link"]),
        st.floats(0.001, 2.0),
        st.integers(0, 3),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(events, st.integers(1, 5), st.booleans())
def test_no_deadline_is_ever_in_the_past(script: list[tuple[str, float, int]], misses: int, awaited: bool) -> None:
    track, now, sequence, ike = Track(misses), 0.0, 0, 0
    for what, wait, back in script:
        now += wait
        match what:
            case "send":
                sequence += 1
                track = sent(track, sequence, now)
            case "probe" | "ready":
                track = answered(track, sequence - back, what == "ready", wait, now)
            case "ike":
                ike += 1
                track = facts(track, ike, track.link_up, now)
            case "no ike":
                track = facts(track, None, track.link_up, now)
            case "link" | "no link":
                track = facts(track, track.ike, what == "link", now)
        before = track
        track = tick(track, now)
        if dead(track, now, awaited):
            track = facts(redialled(track), None, track.link_up, now)
        assert track.next_deadline(awaited) > now
        assert tick(track, now) == track, "a second look at the same time sees nothing new"
        assert (track.state is State.UP) <= (track.ike is not None and track.link_up)
        figures = track.figures(now)
        assert 0 <= figures.loss <= 1 and figures.rounds <= len(track.window)
        assert figures.rounds == sum(at >= now - track.span_s for at, _ in track.window), "nothing stale"
        assert track.state is before.state or track.since == now
