"""Do a window's figures say what its rounds were, and nothing of older ones?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpe_agent.core.window import ENOUGH, LATEST, ROUNDS, WINDOW_S, Figures, answered_late, figures, span_s, with_sample


def test_no_rounds_say_nothing() -> None:
    assert figures((), 10.0, WINDOW_S) == Figures() and not Figures().enough
    assert figures(((1.0, 0.02),), 1.0 + WINDOW_S + 0.1, WINDOW_S) == Figures(), "stale"


def test_loss_latency_jitter() -> None:
    window = ((1.0, 0.02), (1.1, None), (1.2, None), (1.3, 0.04), (1.4, None), (1.5, 0.03))
    found = figures(window, 2.0, WINDOW_S)
    assert (found.rounds, found.missed, found.gaps, found.latency_s, found.loss) == (6, 3, 2, 0.03, 0.5)
    assert found.jitter_s == pytest.approx(0.015)


def test_one_slow_packet_is_no_slow_path_and_a_step_shows_in_a_second() -> None:
    steady = [(at / 10, 0.02) for at in range(50)]
    assert figures((*steady, (5.0, 2.0)), 5.0, WINDOW_S).latency_s == 0.02
    step = [(5.0 + at / 10, 0.2) for at in range(LATEST // 2 + 1)]
    assert figures((*steady, *step), 6.1, WINDOW_S).latency_s == 0.2


def test_late_is_latency_and_no_loss() -> None:
    window = answered_late(((1.0, None), (1.1, None)), 1.1, 0.3)
    assert figures(window, 2.0, WINDOW_S) == Figures(2, 1, 1, 0.3, None)


@given(st.lists(st.tuples(st.floats(0.01, 3.0), st.one_of(st.none(), st.floats(0.001, 1.0)))), st.floats(0.02, 60.0))
def test_whatever_comes(rounds: list[tuple[float, float | None]], interval_s: float) -> None:
    window: tuple[tuple[float, float | None], ...] = ()
    now, span = 0.0, span_s(interval_s)
    for wait, rtt_s in rounds:
        now += wait
        window = with_sample(window, (now, rtt_s), span)
        assert window[-1] == (now, rtt_s) and all(at >= now - span for at, _ in window)
    found = figures(window, now, span)
    assert found.rounds == len(window) and 0 <= found.gaps <= found.missed <= found.rounds
    assert (found.latency_s is None) == (found.missed == found.rounds)


def test_a_slow_pace_has_its_own_span() -> None:
    assert (span_s(0.1), span_s(0.5), span_s(1.0), span_s(60.0)) == (WINDOW_S, WINDOW_S, 10.0, 60.0 * ROUNDS)
    assert ENOUGH <= ROUNDS, "or a slow pace would never say anything"
