"""Waits grow, end growing, and never fall together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpe_agent.core.backoff import backoff_s


@pytest.mark.parametrize(
    ("failures", "chance", "wait_s"),
    [(1, 1.0, 2.0), (1, 0.0, 1.0), (2, 1.0, 4.0), (5, 1.0, 30.0), (5, 0.0, 15.0), (10**9, 1.0, 30.0), (0, 1.0, 2.0)],
)
def test_waits(failures: int, chance: float, wait_s: float) -> None:
    assert backoff_s(failures, 2.0, 30.0, chance) == wait_s


@given(st.integers(1, 10_000), st.floats(0, 1), st.floats(0, 1))
def test_one_failure_more_never_halves_the_wait(failures: int, one: float, other: float) -> None:
    assert backoff_s(failures + 1, 1.0, 600.0, one) >= backoff_s(failures, 1.0, 600.0, other) / 2
    assert 0.5 <= backoff_s(failures, 1.0, 600.0, one) <= 600.0
