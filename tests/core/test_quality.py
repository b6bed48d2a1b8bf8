"""Is a path graded as its table says?"""

from __future__ import annotations

import math

import pytest

from cpe_agent.core.quality import ENTER_S, LEAVE_S, Grade, breach, hold_s, judge, keeps, strain, well
from cpe_agent.core.window import Figures
from cpe_agent.model.document import HEAVY_LOSS_PERCENT, Class

VOICE = Class(latency_ms=100, jitter_ms=20, loss_percent=1.0)
FINE = Figures(100, 0, 0, 0.05, 0.005)


def lost(missed: int, rounds: int = 100, gaps: int | None = None) -> Figures:
    return Figures(rounds, missed, missed if gaps is None else gaps, 0.05, 0.005)


@pytest.mark.parametrize(
    ("needs", "figures", "limit"),
    [
        (VOICE, FINE, None),
        (VOICE, Figures(100, 0, 0, 0.101, 0.005), "latency"),
        (VOICE, Figures(100, 0, 0, 0.1, 0.02), None),
        (VOICE, Figures(100, 0, 0, 0.05, 0.021), "jitter"),
        (VOICE, Figures(100, 0, 0, 0.15, 0.06), "jitter"),  # three times its limit is the worst
        (Class(), Figures(100, 0, 0, 9.0, 9.0), None),  # not asked after
        (VOICE, lost(3), None),  # of these two are forgiven
        (VOICE, lost(4), "loss"),
        (VOICE, lost(9, gaps=2), None),  # it was away for a moment, twice
        (VOICE, lost(5, rounds=50), "loss"),
        (VOICE, lost(4, rounds=50), None),  # few rounds: the closer look comes first
        (Class(), lost(7), None),
        (Class(), lost(8), "loss"),
        (Class(loss_percent=20.0), lost(8), None),
        (Class(loss_percent=0.0), lost(3), "loss"),
    ],
)
def test_over_a_limit(needs: Class, figures: Figures, limit: str | None) -> None:
    found = breach(needs, figures)
    assert (found.limit if found else None) == limit
    assert (found is None) or strain(needs, figures) > 1
    assert not (found and well(needs, figures)) and not (found and keeps(needs, figures))


def test_it_says_what_was_measured_and_what_is_allowed() -> None:
    assert str(breach(Class(), lost(12))) == f"loss is 12 %, {HEAVY_LOSS_PERCENT:g} % are allowed"
    assert str(breach(VOICE, Figures(100, 0, 0, 0.1404, 0.005))) == "latency is 140 ms, 100 ms are allowed"


def test_between_over_and_well_nothing_changes() -> None:
    near = Figures(100, 0, 0, 0.09, 0.005)
    assert breach(VOICE, near) is None and not well(VOICE, near)
    for grade in (Grade(), Grade(True)):
        for now in (0.0, 5.0, 100.0):
            assert judge(grade, VOICE, near, now).degraded is grade.degraded


def test_degraded_only_after_a_while_and_good_only_after_a_longer_one() -> None:
    bad = lost(30)
    grade = judge(Grade(), VOICE, bad, 10.0)
    assert not grade.degraded and grade.turning_since == 10.0
    assert judge(grade, VOICE, FINE, 10.2).turning_since == math.inf
    grade = judge(grade, VOICE, bad, 10.0 + ENTER_S)
    assert grade.degraded and grade.worst is not None and grade.worst.limit == "loss"
    grade = judge(grade, VOICE, FINE, 20.0)
    grade = judge(grade, VOICE, FINE, 20.0 + LEAVE_S - 0.1)
    assert grade.degraded
    interrupted = judge(grade, VOICE, bad, 20.0 + LEAVE_S)
    assert judge(interrupted, VOICE, FINE, 20.1 + LEAVE_S).degraded
    grade = judge(grade, VOICE, FINE, 20.0 + LEAVE_S)
    assert (grade.degraded, grade.since) == (False, 20.0 + LEAVE_S)
    assert LEAVE_S > ENTER_S


def test_too_few_rounds_change_nothing() -> None:
    grade = Grade(turning_since=1.0)
    assert judge(grade, VOICE, Figures(3, 3, 1), 99.0) is grade


def test_each_lapse_makes_the_next_one_dearer() -> None:
    grade, now, holds = Grade(), 0.0, []
    for _ in range(5):
        for figures in (lost(30), FINE):
            judge_until = now + LEAVE_S + 1
            while now < judge_until:
                grade = judge(grade, VOICE, figures, now)
                now += 0.25
        holds.append(hold_s(grade, 60.0))
    assert holds[0] == 60.0 and holds == sorted(holds) and holds[-1] == 300.0
