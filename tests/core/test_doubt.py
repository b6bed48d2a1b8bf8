"""Does a doubt buy closer looks, and no more than it may?"""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cpe_agent.core.doubt import ASK_REST_S, DOUBT_S, GAPS, REST_S, Doubt, step

MISSES = 3


def test_a_missed_round_asks_everybody() -> None:
    assert step(Doubt(), 0, MISSES, 0, 1.0) == Doubt()
    one = step(Doubt(), 1, MISSES, 1, 1.0)
    assert one.holds(1.0) and one.asks and one.holds(1.0 + DOUBT_S - 0.1) and not one.holds(1.0 + DOUBT_S)


def test_after_that_it_rests_but_for_what_is_serious() -> None:
    one = step(Doubt(), 1, MISSES, 1, 0.0)
    now = DOUBT_S + 1
    assert step(one, 1, MISSES, 1, now) == one, "a single miss is no news"
    assert step(one, 2, MISSES, 1, now).holds(now) and step(one, 2, MISSES, 1, now).asks
    assert step(one, 1, 1, 1, now).holds(now), "one miss is all there is before the verdict"
    lossy = step(one, 1, MISSES, GAPS, now)
    assert lossy.holds(now) and not lossy.asks, "the path is looked at, the SIM card of the standby is spared"
    assert step(lossy, 2, MISSES, GAPS, now + 0.1).asks


def test_it_does_not_end_in_the_middle_of_a_failure() -> None:
    one = step(Doubt(), 1, MISSES, 1, 0.0)
    for tenth in range(1, 100):
        one = step(one, 2, MISSES, 1, tenth / 10)
        assert one.holds(tenth / 10) and one.asks


def test_standbys_are_asked_ever_more_rarely() -> None:
    one, asked = Doubt(), []
    for second in range(3600):
        before = one.holds(second) and one.asks
        one = step(one, second % 5 == 0, MISSES, 1, float(second))
        if one.holds(second) and one.asks and not before:
            asked.append(second)
    assert len(asked) <= 8 and asked[0] == 0 and asked[1] >= DOUBT_S + ASK_REST_S
    waits = [later - earlier for earlier, later in pairwise(asked)]
    assert waits == sorted(waits)


@given(st.lists(st.tuples(st.floats(0.05, 1.0), st.booleans()), min_size=50, max_size=300))
def test_single_misses_leave_it_at_rest_most_of_the_time(rounds: list[tuple[float, bool]]) -> None:
    one, now, doubtful = Doubt(), 0.0, 0.0
    for wait, missed in rounds:
        doubtful += max(0.0, min(one.until, now + wait) - now)
        now += wait
        one = step(one, int(missed), MISSES, 1, now)
    assert doubtful <= DOUBT_S + now * DOUBT_S / (DOUBT_S + REST_S) + 1e-6
