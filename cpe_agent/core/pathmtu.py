"""How large a packet does a path carry?

Pure. Full-size echo requests, not to be fragmented, are sent inside the path; the largest size that is answered is what
the path carries, whatever silently drops the rest on the way. A ladder of sizes is searched by halves, the top first,
because that is the common case. A size is judged lost after `TRIES` tries: one lost packet must not shrink a path.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cpe_agent.core.addresses import host
from cpe_agent.model.dataplane import OVERLAY, Route, Routes
from cpe_agent.model.document import Document

# What UDP-encapsulated ESP with AES-GCM adds: IPv4 20, UDP 8, SPI and sequence 8, IV 8, padding and trailer up to 2,
# ICV 16. The ladder is the MTUs of real links less that: Ethernet, PPPoE, tunnels, LTE, 464XLAT, the least that IPv6
# allows; below it tunnels in tunnels, and what every IPv4 host must take.
OVERHEAD = 62
LINK_MTUS = (1500, 1492, 1480, 1462, 1440, 1420, 1400, 1380, 1358, 1340, 1320, 1300, 1280, 1240, 1200, 1100, 900)
LADDER = (*(mtu - OVERHEAD for mtu in LINK_MTUS), 576)
NOTHING = len(LADDER)
TRIES = 3


class Target(msgspec.Struct, frozen=True, order=True):
    """Between which inner addresses packets are measured: our `source` and `address` of `peer`."""

    peer: str
    source: str
    address: str


class Search(msgspec.Struct, frozen=True):
    """Indices into LADDER: the best that is known to pass (NOTHING: none), the best known to fail (-1: none); how often
    the present one was tried in vain; and whether our own kernel would not send the last."""

    passes: int = NOTHING
    fails: int = -1
    tries: int = 0
    refused: bool = False


def next_size(search: Search) -> int | None:
    """The size to try now, in bytes of the inner packet; None when the search is over."""
    index = _index(search)
    return None if index is None else LADDER[index]


def answered(search: Search) -> Search:
    """The size just tried came back."""
    index = _index(search)
    return search if index is None else Search(index, search.fails)


def missed(search: Search, refused: bool = False) -> Search:
    """The size just tried did not come back in time; `refused`: our own kernel would not send it."""
    index = _index(search)
    if index is None:
        return search
    if search.tries + 1 < TRIES and not refused:
        return msgspec.structs.replace(search, tries=search.tries + 1, refused=False)
    return Search(search.passes, index, refused=refused)


def result(search: Search) -> int | None:
    """What the path carries; None if no size came back."""
    return None if search.passes == NOTHING else LADDER[search.passes]


def targets(document: Document) -> tuple[Target, ...]:
    """What can be measured: each path that we dial, and the paths of those who dial us."""
    found: set[Target] = set()
    for name, peer in document.peers.items():
        if peer.dial:
            for uplink in document.uplinks.values():
                found |= {Target(name, uplink.path_address, endpoint.probe_address) for endpoint in peer.endpoints}
        else:
            for endpoint in document.endpoints:
                found |= {Target(name, endpoint.probe_address, address) for address in peer.path_addresses}
    return tuple(sorted(found))


def with_mtus(
    wanted: Routes, document: Document, measured: Mapping[Target, int], device: str, observed: Routes
) -> Routes:
    """The wanted routes into tunnels with what fits: the least of all paths to any peer that serves the subnet, so that
    a failover needs no new MTU. What was not measured yet keeps what the living route has: a restarted agent changes
    nothing. The inner addresses of paths stay as they are, or nothing larger could be measured.

    IPv6 must be given 1,280 bytes, and its senders are told no less by the kernel, whatever the route says. But TCP's
    segments are clamped to what the route says, and so pass where a provider silently drops the rest.
    """
    held = {route.destination: route.mtu for route in observed.routes if _into_tunnel(route, device)}
    by_peer: dict[str, int] = {}
    for target, size in measured.items():
        by_peer[target.peer] = min(size, by_peer.get(target.peer, size))
    by_subnet: dict[str, int] = {}
    for name, peer in document.peers.items():
        if name in by_peer:
            for subnet in (*peer.lans, host(peer.site_address)):
                by_subnet[subnet] = min(by_peer[name], by_subnet.get(subnet, by_peer[name]))
    sizes = held | by_subnet
    changed = {
        msgspec.structs.replace(route, mtu=sizes.get(route.destination, 0)) if _into_tunnel(route, device) else route
        for route in wanted.routes
    }
    return msgspec.structs.replace(wanted, routes=frozenset(changed))


def _into_tunnel(route: Route, device: str) -> bool:
    return route.table == OVERLAY and route.device == device


def _index(search: Search) -> int | None:
    if search.fails == -1 and search.passes == NOTHING:
        return 0
    if search.fails + 1 >= search.passes:
        return None
    return (search.fails + search.passes) // 2
