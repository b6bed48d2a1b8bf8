"""Which IKE_SAs of a branch are left over on its hub?

Pure. In: the record of paths with several IKE_SAs. Out: the unique ids of those to be ended. A leftover is older than
the newest of its path, has carried nothing in either direction for longer than any replacement overlaps, and its
successor was seen to receive at `REMEMBERED` looks since. So the successor is in use; and, as both would be probed at
the same pace, one that is silent is silent for good: a standby path that is probed once in ten minutes is waited for
accordingly. The newest is never ended, and nothing is ever started: an IKE_SA that the branch still wants is its to
dial. One whose key is in use in two places carries something, so it is not a leftover.

charon itself ends what does not answer its liveness checks; this is for what does, and what nobody uses any more.
"""

from __future__ import annotations

from cpe_agent.core.doubled import OVERLAP_S, REMEMBERED, Doubled, Use


def stale(doubled: Doubled, now: float) -> frozenset[int]:
    """Unique ids of leftovers, as of the look at `now`."""
    found: set[int] = set()
    for uses in doubled.uses.values():
        newest = max(uses)
        found |= {unique_id for unique_id, use in uses.items() if unique_id != newest and _left(use, uses[newest], now)}
    return frozenset(found)


def _left(use: Use, successor: Use, now: float) -> bool:
    silent_since = max(use.carried_at, successor.since)
    in_use = len(successor.received_at) == REMEMBERED and successor.received_at[0] > silent_since
    return in_use and now - silent_since > OVERLAP_S
