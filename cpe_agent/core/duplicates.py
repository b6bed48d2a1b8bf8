"""Is a branch's key in use in two places?

Pure. In: the record of paths with several IKE_SAs. Out: conditions. One branch sends the probes of a path through one
CHILD_SA, the newest it has. So when probes come in through two IKE_SAs of one path for longer than any replacement
overlaps, two boxes hold that branch's key. (Traffic says less: a branch may leave a bundle in the older IKE_SA for as
long as the newer one lacks something.) It holds while both live and are heard now and then, and ends with either.
"""

from __future__ import annotations

from collections.abc import Mapping

from cpe_agent.core.doubled import OVERLAP_S, Doubled, Use
from cpe_agent.model.condition import Condition, Severity
from cpe_agent.model.document import Document
from cpe_agent.model.observed import Charon

# The slowest pace of probes that a document can ask for is one in 600 s.
HEARD_S = 660.0


def duplicates(doubled: Doubled, charon: Charon, document: Document, now: float) -> tuple[Condition, ...]:
    """`IdentityDuplicated` for each branch that is in two places."""
    if not doubled:
        return ()
    hosts = {sa.unique_id: sa.remote_host for sa in charon.ike_sas}
    found: dict[str, Condition] = {}
    for key, uses in sorted(doubled.items()):
        ids = _twins(uses, now)
        peer = document.peers.get(key.peer)
        if not ids or peer is None or key.peer in found:
            continue
        places = sorted({hosts.get(unique_id, "") for unique_id in ids})
        where = f"from {' and '.join(places)}" if len(places) > 1 else f"both from {places[0]} (behind one NAT)"
        reason = (
            f"two boxes use the key of {peer.identity}, {where}: find the one that is not {key.peer}, "
            f"then give {key.peer} a new identity with `cpe-controller replace {key.peer}`"
        )
        found[key.peer] = Condition("IdentityDuplicated", key.peer, reason, Severity.DEGRADED)
    return tuple(found.values())


def _twins(uses: Mapping[int, Use], now: float) -> tuple[int, ...]:
    """IKE_SAs that were probed when they had long been two; () if there are no two."""
    live = sorted(uses.items())
    for index, (unique_id, use) in enumerate(live):
        for other_id, other in live[:index]:
            both_since = max(use.since, other.since)
            if _heard(use, both_since, now) and _heard(other, both_since, now):
                return (other_id, unique_id)
    return ()


def _heard(use: Use, both_since: float, now: float) -> bool:
    return use.probed_at is not None and use.probed_at - both_since > OVERLAP_S and now - use.probed_at <= HEARD_S
