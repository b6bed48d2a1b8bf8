"""What do a path's latest probes say of its loss, latency and jitter?

Pure. A window holds the rounds of one pace: those of the last `span_s` seconds, which is `WINDOW_S` or, at a slow pace,
`ROUNDS` rounds. When the pace changes so far that the span does, the window starts anew: a standby path that was asked
once a minute and is now asked ten times a second is judged by the seconds that have just passed, and what a burst has
found does not outweigh the slow rounds that follow it. At the quick pace a window tells a loss of a few percent within
seconds; at a slow one it says less, and is never older than `ROUNDS` rounds.

| figure  | of                                          | why                                                    |
|---------|---------------------------------------------|--------------------------------------------------------|
| loss    | all rounds of the window                    | a late answer is latency and no loss                   |
| latency | median of the last `LATEST` answered rounds | one slow packet is no slow path, and a step shows soon |
| jitter  | mean difference between neighbours of these | what a playout buffer must even out (RFC 3550)         |

`gaps` is in how many separate places rounds were missed: what is lost at random is lost here and there, a link that
was away for a moment has one gap, however many rounds fell into it.
"""

from __future__ import annotations

from itertools import pairwise

import msgspec

WINDOW_S = 5.0
ROUNDS = 10
LATEST = 20
# Fewer rounds than these say nothing about a path.
ENOUGH = 8

# (when it was sent, its round trip in seconds or None if it was missed), in the order in which they were judged
Sample = tuple[float, float | None]


class Figures(msgspec.Struct, frozen=True):
    """`rounds` judged, of these `missed`, in `gaps` places. Seconds; None without answered rounds."""

    rounds: int = 0
    missed: int = 0
    gaps: int = 0
    latency_s: float | None = None
    jitter_s: float | None = None

    @property
    def loss(self) -> float:
        """0 to 1."""
        return self.missed / self.rounds if self.rounds else 0.0

    @property
    def enough(self) -> bool:
        """Do they say anything?"""
        return self.rounds >= ENOUGH


def span_s(interval_s: float) -> float:
    """How far back a window reaches at this pace."""
    return max(WINDOW_S, ROUNDS * interval_s)


def with_sample(window: tuple[Sample, ...], sample: Sample, span: float) -> tuple[Sample, ...]:
    """The window with one round more, and without those that have become too old."""
    oldest = sample[0] - span
    first = 0
    while first < len(window) and window[first][0] < oldest:
        first += 1
    return (*window[first:], sample) if first else (*window, sample)


def answered_late(window: tuple[Sample, ...], sent_at: float, rtt_s: float) -> tuple[Sample, ...]:
    """The window with the miss of the round sent at `sent_at` replaced by its late answer."""
    return tuple((sent_at, rtt_s) if sample == (sent_at, None) else sample for sample in window)


def figures(window: tuple[Sample, ...], now: float, span: float) -> Figures:
    """What the window says at `now`."""
    oldest = now - span
    rounds = missed = gaps = 0
    was_missed = False
    round_trips: list[float] = []
    for sent_at, rtt_s in window:
        if sent_at < oldest:
            continue
        rounds += 1
        if rtt_s is None:
            missed += 1
            gaps += not was_missed
        else:
            round_trips.append(rtt_s)
        was_missed = rtt_s is None
    if not round_trips:
        return Figures(rounds, missed, gaps)
    latest = round_trips[-LATEST:]
    differences = [abs(later - earlier) for earlier, later in pairwise(latest)]
    jitter_s = sum(differences) / len(differences) if differences else None
    return Figures(rounds, missed, gaps, sorted(latest)[len(latest) // 2], jitter_s)
