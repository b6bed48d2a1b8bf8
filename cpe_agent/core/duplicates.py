"""Is a branch's key in use in two places?

Pure. In: the record of paths with several IKE_SAs. Out: conditions. One branch sends the probes of a path through one
CHILD_SA, the newest it has. So when probes come in through two IKE_SAs of one path for longer than any replacement
overlaps, or again and again, two boxes hold that branch's key. (Traffic says less: a branch may leave a bundle in the
older IKE_SA for as long as the newer one lacks something.) It ends when one of them was not heard for a while.
"""

from __future__ import annotations

from cpe_agent.core.doubled import HEARD_S, MEET_AGAIN_S, OVERLAP_S, Doubled, PathKey
from cpe_agent.model.condition import Condition, Severity
from cpe_agent.model.document import Document


def duplicates(doubled: Doubled, document: Document, now: float) -> tuple[Condition, ...]:
    """`IdentityDuplicated` for each branch that is in two places."""
    found: dict[str, Condition] = {}
    for key, meeting in sorted(doubled.meetings.items()):
        peer = document.peers.get(key.peer)
        if peer is None or meeting.last - meeting.since <= OVERLAP_S or now - meeting.last > _patience_s(doubled, key):
            continue
        one, other = sorted(meeting.hosts)
        where = f"from {one} and {other}" if one != other else f"both from {one} (behind one NAT)"
        reason = (
            f"two boxes use the key of {peer.identity}, {where}: find the one that is not {key.peer}, "
            f"then give {key.peer} a new identity with `cpe-controller replace {key.peer}`"
        )
        found[key.peer] = Condition("IdentityDuplicated", key.peer, reason, Severity.DEGRADED)
    return tuple(found.values())


def _patience_s(doubled: Doubled, key: PathKey) -> float:
    """While both are still there, the next probe may be long in coming."""
    there = doubled.uses.get(key, {})
    return HEARD_S if all(unique_id in there for unique_id in doubled.meetings[key].ids) else MEET_AGAIN_S
