"""Is a path that is up good enough for a class of traffic?

Pure: one `Grade` per (bundle, path), stepped with what the path's window says (`core.window`). Theory of operation: a
class may name limits for latency (round trip), jitter and loss. One that names no loss has `HEAVY_LOSS_PERCENT`, since
a path that loses more than that is bad for everybody; without limits latency and jitter are not asked after.

| grade    | event                                             | new grade | why                 |
|----------|---------------------------------------------------|-----------|---------------------|
| good     | over a limit at every look for `ENTER_S`          | degraded  | `lapses` counts one |
| degraded | well under all limits at every look for `LEAVE_S` | good      | `since` starts anew |
| any      | too few rounds to say anything                    | no change | nothing is measured |

Over and well are apart, so that a path at its limit does not go to and fro:

| figure          | over                                                       | well                        |
|-----------------|------------------------------------------------------------|-----------------------------|
| latency, jitter | more than the limit                                        | at most `EASE` of it        |
| loss            | more than the limit even without `FORGIVEN` missed rounds, | at most half of it, without |
|                 | and missed in `GAPS` places at least                       | one of the missed rounds    |

One missed round in fifty is 2 %: a few are forgiven, else a limit of 1 % could not be kept by any real link, and one
that loses 1 % would now and then be taken for one that loses 5 %. A link that is away for a moment has one gap in its
rounds; whether that is a failure is for `core.health` to say.
"""

from __future__ import annotations

import math

import msgspec

from cpe_agent.core import damping
from cpe_agent.core.damping import Damping
from cpe_agent.core.window import Figures
from cpe_agent.model.document import HEAVY_LOSS_PERCENT, Class

ENTER_S = 0.5
LEAVE_S = 5.0
EASE = 0.8
GAPS = 3
FORGIVEN = 2
# Fewer rounds are what a path shows without a closer look; then as many more are forgiven, and the closer look decides.
MANY = 60
# Of two paths that both fail a class, the other must be better by this factor to be worth a move.
CLEARLY = 0.5
# A limit of 0 % is kept as one of 0.1 %: nothing can be shown to lose nothing.
LOSS_FLOOR_PERCENT = 0.1


class Breach(msgspec.Struct, frozen=True):
    """A limit and what was measured against it. `unit`: ms or %."""

    limit: str
    measured: float
    allowed: float
    unit: str

    def __str__(self) -> str:
        return f"{self.limit} is {self.measured:.3g} {self.unit}, {self.allowed:g} {self.unit} are allowed"


class Grade(msgspec.Struct, frozen=True):
    """How good a path is for a bundle. `since`: when it became good again (-inf: it was never anything else).
    `turning_since`: since when every look says otherwise than `degraded` (inf: the last one does not). `worst`: the
    limit that is exceeded most, of those that made it so."""

    degraded: bool = False
    since: float = -math.inf
    turning_since: float = math.inf
    lapses: Damping = Damping()
    worst: Breach | None = None


def judge(grade: Grade, needs: Class, figures: Figures, now: float) -> Grade:
    """One look."""
    if not figures.enough:
        return grade
    worst = breach(needs, figures)
    if grade.degraded and worst is not None:
        # What is shown is what holds now.
        return msgspec.structs.replace(grade, worst=worst, turning_since=math.inf)
    turning = well(needs, figures) if grade.degraded else worst is not None
    if not turning:
        return grade if grade.turning_since == math.inf else msgspec.structs.replace(grade, turning_since=math.inf)
    turning_since = min(grade.turning_since, now)
    if now < turning_since + (LEAVE_S if grade.degraded else ENTER_S):
        return msgspec.structs.replace(grade, turning_since=turning_since)
    if grade.degraded:
        return Grade(False, now, lapses=grade.lapses)
    return Grade(True, grade.since, lapses=damping.failed(grade.lapses, now), worst=worst)


def breach(needs: Class, figures: Figures) -> Breach | None:
    """The limit that is exceeded most, by its ratio; None: none is."""
    found = [one for one in _measured(needs, figures) if one.measured > one.allowed]
    if figures.gaps < GAPS or _loss_percent_without(_forgiven(figures), figures) <= _loss_limit_percent(needs):
        found = [one for one in found if one.unit != "%"]
    return max(found, key=lambda one: one.measured / one.allowed, default=None)


def keeps(needs: Class, figures: Figures) -> bool:
    """Under all limits, and nothing forgiven but a single missed round: good enough to be moved to."""
    return breach(needs, figures) is None and _loss_percent_without(1, figures) <= _loss_limit_percent(needs)


def well(needs: Class, figures: Figures) -> bool:
    """Well under all limits?"""
    eased = all(one.measured <= EASE * one.allowed for one in _measured(needs, figures) if one.unit != "%")
    return eased and _loss_percent_without(1, figures) <= _loss_limit_percent(needs) / 2


def strain(needs: Class, figures: Figures) -> float:
    """How much of what a class allows a path uses up, at its worst figure: more than 1 is over a limit."""
    return max((one.measured / one.allowed for one in _measured(needs, figures)), default=0.0)


def hold_s(grade: Grade, failback_s: float) -> float:
    """How long it must have been good before traffic returns to it."""
    return damping.hold_s(grade.lapses, failback_s)


def _measured(needs: Class, figures: Figures) -> list[Breach]:
    found = [Breach("loss", figures.loss * 100, _loss_limit_percent(needs), "%")]
    if needs.latency_ms is not None and figures.latency_s is not None:
        found.append(Breach("latency", figures.latency_s * 1000, needs.latency_ms, "ms"))
    if needs.jitter_ms is not None and figures.jitter_s is not None:
        found.append(Breach("jitter", figures.jitter_s * 1000, needs.jitter_ms, "ms"))
    return found


def _loss_limit_percent(needs: Class) -> float:
    limit = HEAVY_LOSS_PERCENT if needs.loss_percent is None else needs.loss_percent
    return max(limit, LOSS_FLOOR_PERCENT)


def _forgiven(figures: Figures) -> int:
    return FORGIVEN if figures.rounds >= MANY else 2 * FORGIVEN


def _loss_percent_without(forgiven: int, figures: Figures) -> float:
    return 100 * max(0, figures.missed - forgiven) / figures.rounds if figures.rounds else 0.0
