"""By which routes does a data centre find the branches that this hub carries?

Pure. In: the document and charon's own account. Out: routes in the main table, under our protocol number, one for each
subnet of a branch (its LANs and its `site_address`) that lies within a live traffic CHILD_SA of that branch. A routing
daemon redistributes them; a subnet that no branch has here now has none, so two hubs can both announce what they carry.

They decide nothing on this router: our rules come before the main table, and OVERLAY holds every protected subnet,
leading to the tunnel device or nowhere. Should somebody flush our rules, these routes lead to the tunnel device as
well: nftables still judges what goes there, and nothing of it can leave in cleartext. Their metric is the last of all,
and a subnet of our own LANs gets none, so a hub's own LANs are never announced as somebody else's.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from cpe_agent.model.dataplane import MAIN, METRIC_RETURN, PROBE_CHILD, Backend, Route, stem_of
from cpe_agent.model.document import Document
from cpe_agent.model.observed import Charon, Links


def return_routes(document: Document, charon: Charon, links: Links, backend: Backend) -> frozenset[Route]:
    """One route per branch subnet that is carried now; none while the tunnel device is gone."""
    if document.role != "hub" or backend.device not in links.by_name:
        return frozenset()
    found: set[Route] = set()
    own: frozenset[str] | None = None
    for sa in charon.ike_sas:
        if not sa.established:
            continue
        peer = document.peers.get(stem_of(sa.connection))
        if peer is None or peer.dial:
            continue
        own = own if own is not None else frozenset(lan.subnet for lan in document.lans)
        for child in sa.children:
            if child.installed and child.name != PROBE_CHILD:
                found |= _routes(child.remote_ts, (*peer.lans, peer.site_address), own, backend)
    return frozenset(found)


# A hub with thousands of branches asks at every event: the same selectors give the same routes.
@lru_cache(maxsize=16384)
def _routes(
    remote_ts: tuple[str, ...], subnets: tuple[str, ...], own: frozenset[str], backend: Backend
) -> frozenset[Route]:
    carried = [ipaddress.ip_network(selector.partition("[")[0]) for selector in remote_ts]
    found: set[str] = set()
    for text in subnets:
        subnet = ipaddress.ip_network(text)
        for part in carried:
            if part.version != subnet.version:
                continue
            # A branch may claim a part of its LAN only.
            if subnet.subnet_of(part):  # type: ignore[arg-type]
                found.add(str(subnet))
            elif part.subnet_of(subnet):  # type: ignore[arg-type]
                found.add(str(part))
    return frozenset(Route(MAIN, text, backend.device, metric=METRIC_RETURN) for text in found - own)
