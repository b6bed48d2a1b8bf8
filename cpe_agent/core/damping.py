"""How long is what failed again and again kept waiting?

Pure. Each failure counts one, and what was counted is forgotten by halves. The first failure in a long time costs what
the document asks of good health, `failback_s`; each one after that doubles it, so that a link which comes and goes is
left alone for longer and longer, and a link that has behaved for a while is trusted again.
"""

from __future__ import annotations

import math

import msgspec

HALF_LIFE_S = 300.0
# From the second failure on: longer than a link that flaps every ten seconds stays up.
AGAIN_S = 15.0
# So many times `failback_s` at the most: a link that is well at last is not kept waiting for ever.
LONGEST = 5
# What is half forgotten of one failure is not another one.
TWICE = 1.5
# More are not remembered: ten minutes after a bad hour it is over.
MOST = 6.0


class Damping(msgspec.Struct, frozen=True):
    """`count` failures, as remembered at `at`."""

    count: float = 0.0
    at: float = -math.inf

    def level(self, now: float, half_life_s: float = HALF_LIFE_S) -> float:
        """How many failures are remembered now."""
        return self.count * math.exp2((self.at - now) / half_life_s) if self.count else 0.0


def failed(damping: Damping, now: float, half_life_s: float = HALF_LIFE_S) -> Damping:
    """One more."""
    return Damping(min(MOST, damping.level(now, half_life_s) + 1), now)


def hold_s(damping: Damping, failback_s: float) -> float:
    """How long good health must last before it is trusted, counted from the last failure's end.

    It depends on what was remembered when the last failure happened, so that the wait does not shrink while it is
    being waited for.
    """
    if damping.count < TWICE:
        return failback_s
    grown = max(failback_s * math.exp2(min(damping.count - 1, 10.0)), AGAIN_S)
    return min(grown, max(AGAIN_S, failback_s * LONGEST))
