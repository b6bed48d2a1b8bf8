"""Is an active path in doubt, so that it and those that could take over are to be asked more often?

Pure: one `Doubt` per active path. Theory of operation: a missed round is the first sign of a failure, and nearly always
of nothing. So it buys a few seconds of closer looks: extra rounds on the path itself, which show a loss of a few percent
in that time, and the quick pace on the standby paths, so that who takes over after a verdict has answered just now. A
path that loses a packet now and then must not empty the SIM card of its standby: it makes that be asked ever more
rarely, but for a second miss in a row, which asks at once.

| doubt   | event                                        | new doubt | standbys are asked                                      |
|---------|----------------------------------------------|-----------|---------------------------------------------------------|
| none    | a round missed                               | in doubt  | if `ask_again_at` has come                               |
| in doubt | two rounds missed in a row (or all that count) | the same | yes                                                     |
| in doubt | `DOUBT_S` over, the last round was answered  | resting   | no                                                      |
| resting | two rounds missed in a row (or all that count) | in doubt  | yes                                                     |
| resting | `REST_S` over                                | none      | no                                                      |
"""

from __future__ import annotations

import math

import msgspec

from cpe_agent.core import damping
from cpe_agent.core.damping import Damping

DOUBT_S = 4.0
# A quarter of the time at most, so that extra rounds add less than the rounds themselves.
REST_S = 12.0
ASK_REST_S = 10.0
ASK_REST_MAX_S = 1800.0
ASK_HALF_LIFE_S = 3600.0


class Doubt(msgspec.Struct, frozen=True):
    """In doubt until `until`, at rest until `rest_until`. `asks`: standbys are asked too."""

    until: float = -math.inf
    rest_until: float = -math.inf
    asks: bool = False
    asked: Damping = Damping()
    ask_again_at: float = -math.inf

    def holds(self, now: float) -> bool:
        return now < self.until


def step(doubt: Doubt, missed_in_row: int, misses: int, now: float) -> Doubt:
    """One look at the path's rounds."""
    serious = missed_in_row >= min(2, misses)
    if doubt.holds(now):
        if serious and not doubt.asks:
            return _asking(doubt, now)
        # It may not end in the middle of a failure.
        return doubt if not serious else msgspec.structs.replace(doubt, until=max(doubt.until, now + DOUBT_S / 2))
    if not missed_in_row or (now < doubt.rest_until and not serious):
        return doubt
    until = now + DOUBT_S
    doubt = msgspec.structs.replace(doubt, until=until, rest_until=until + REST_S, asks=False)
    return _asking(doubt, now) if serious or now >= doubt.ask_again_at else doubt


def _asking(doubt: Doubt, now: float) -> Doubt:
    asked = damping.failed(doubt.asked, now, ASK_HALF_LIFE_S)
    rest_s = min(ASK_REST_MAX_S, ASK_REST_S * 2.0 ** min(asked.count - 1, 10.0))
    return msgspec.structs.replace(doubt, asks=True, asked=asked, ask_again_at=doubt.until + rest_s)
