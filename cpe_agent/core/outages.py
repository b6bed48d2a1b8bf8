"""How long was the traffic of each bundle away?

Pure. In: which path carries each bundle, path health, and what earlier looks have seen. Out: the outages that have
ended, as a histogram. Theory of operation, per bundle:

| state   | a look sees                                     | then                                                  |
|---------|-------------------------------------------------|-------------------------------------------------------|
| unknown | an up path carries it                           | carried: what was before was the start, not an outage |
| carried | none carries it, or one that is not up          | out, since the last answer on the path that it was on |
| out     | an up path carries it, the same one or another  | carried: one outage more, that long                   |
| any     | it is no longer in the plan                     | forgotten, and an outage under way with it            |

An outage counts when it has ended; one that goes on is the condition `BundleDown`. A planned move is none: the path
that is left is up until the other one carries. The beginning is known by probes, so an outage that is shorter than
their interval is not seen.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping

import msgspec

from cpe_agent.core.health import State, Track
from cpe_agent.model.condition import OUTAGE_BOUNDS_S, Outages
from cpe_agent.model.dataplane import Path


class Watch(msgspec.Struct, frozen=True):
    """`carriers`: the path that carried each bundle at the last look (None: it is out); `out`: since when, of those
    that are."""

    carriers: dict[str, Path | None] = {}
    out: dict[str, float] = {}
    seen: Outages = Outages()


def step(
    watch: Watch, bundles: Iterable[str], carrying: Mapping[str, Path], tracks: Mapping[Path, Track], now: float
) -> Watch:
    """What is known after a look at `now`."""
    carriers: dict[str, Path | None] = {}
    out: dict[str, float] = {}
    ended: list[float] = []
    for name in bundles:
        path = carrying.get(name)
        track = tracks.get(path) if path is not None else None
        if path is not None and track is not None and track.state is State.UP:
            carriers[name] = path
            if name in watch.out:
                ended.append(max(0.0, now - watch.out[name]))
        elif name in watch.carriers:
            before = watch.carriers[name]
            carriers[name] = None
            out[name] = watch.out[name] if before is None else _last_answer(tracks.get(before), now)
    return Watch(carriers, out, _counted(watch.seen, ended) if ended else watch.seen)


def _last_answer(track: Track | None, now: float) -> float:
    if track is None:
        return now
    answered = [sent_at + rtt_s for sent_at, rtt_s in track.window if rtt_s is not None]
    fallen = track.since if track.state is not State.UP else now
    return min(now, max(answered)) if answered else min(now, fallen)


def _counted(seen: Outages, lengths_s: Iterable[float]) -> Outages:
    counts, sum_s = list(seen.counts), seen.sum_s
    for length_s in lengths_s:
        counts[bisect_left(OUTAGE_BOUNDS_S, length_s)] += 1
        sum_s += length_s
    return Outages(tuple(counts), sum_s)
