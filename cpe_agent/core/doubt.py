"""Is an active path in doubt, so that it and those that could take over are to be asked more often?

Pure: one `Doubt` per active path. Theory of operation: a missed round is the first sign of a failure, and almost
always of nothing. So it buys a few seconds of closer looks: extra rounds on the path itself, which show a loss of a few
percent in that time, and the quick pace on the standby paths, so that who takes over after a verdict has answered just
now. A path that loses a packet now and then must not cost its standbys much: it makes them be asked ever more
rarely, but for a second miss in a row, which asks at once. And it must not empty a SIM card: the best of wires lose one
packet in ten thousand, which is one every quarter of an hour. So those on metered uplinks are asked only while the
misses in a row are `serious`: they still answer before the verdict, and the next answer of the active path ends it.

| doubt    | event                                       | new doubt | standbys are asked         |
|----------|---------------------------------------------|-----------|----------------------------|
| none     | a round missed, or the second echo of one   | in doubt  | if `ask_again_at` has come |
| in doubt | `SERIOUS` rounds missed in a row            | the same  | yes                        |
| in doubt | `DOUBT_S` over, the last round was answered | resting   | no                         |
| resting  | `SERIOUS` rounds missed in a row            | in doubt  | yes                        |
| resting  | a round missed, the third place in a window | in doubt  | if `ask_again_at` has come |
| resting  | `REST_S` over                               | none      | no                         |
"""

from __future__ import annotations

import math

import msgspec

from cpe_agent.core import damping
from cpe_agent.core.damping import Damping

DOUBT_S = 4.0
# So many rounds in the time of a regular one, and their least distance: a tenth that is lost shows in a second or two.
# Of a path that is measured before traffic moves there they are fewer: it has more time.
EXTRA = 8
EXTRA_MEASURED = 4
EXTRA_MIN_S = 0.0125
# In doubt a quarter of the time at most.
REST_S = 12.0
# In so many places of its window rounds were missed: that is no chance any more, rest or not.
GAPS = 3
SERIOUS = 2  # or all that make a path down, if that is one
ASK_REST_S = 15.0
ASK_REST_GROWTH = 3.0
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


def serious(missed_in_row: int, misses: int) -> bool:
    """Is that no chance any more, so that who could take over is to be asked, whatever it costs?"""
    return missed_in_row >= min(SERIOUS, misses)


def step(doubt: Doubt, missed_in_row: int, misses: int, gaps: int, now: float, lost: bool = False) -> Doubt:
    """One look at the path's rounds. `gaps`: of its window. `lost`: an extra round was missed just now."""
    grave = serious(missed_in_row, misses)
    if doubt.holds(now):
        if grave and not doubt.asks:
            return _asking(doubt, now)
        # It may not end in the middle of a failure.
        return doubt if not grave else msgspec.structs.replace(doubt, until=max(doubt.until, now + DOUBT_S / 2))
    if not (missed_in_row or lost) or (now < doubt.rest_until and not grave and gaps < GAPS):
        return doubt
    until = now + DOUBT_S
    doubt = msgspec.structs.replace(doubt, until=until, rest_until=until + REST_S, asks=False)
    return _asking(doubt, now) if grave or now >= doubt.ask_again_at else doubt


def _asking(doubt: Doubt, now: float) -> Doubt:
    asked = damping.failed(doubt.asked, now, ASK_HALF_LIFE_S)
    rest_s = min(ASK_REST_MAX_S, ASK_REST_S * ASK_REST_GROWTH ** (asked.count - 1))
    return msgspec.structs.replace(doubt, asks=True, asked=asked, ask_again_at=doubt.until + rest_s)
