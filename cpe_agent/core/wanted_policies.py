"""Which IPsec policies of the kernel shut what charon has no tunnel for?

Pure; kernel backend only. They come last in the kernel's order, so that any tunnel is before them, and stay when charon
goes and when nftables is flushed. Theory of operation, for packets that no tunnel's policy speaks of:

| direction | from              | to                | because                                                       |
|-----------|-------------------|-------------------|---------------------------------------------------------------|
| out       | anywhere          | protected subnet  | it would leave in cleartext, from a LAN or from the router    |
| in, fwd   | protected subnet  | anywhere          | it came in cleartext and claims to be from the other side     |
| fwd       | anywhere          | own LAN           | decrypted packets enter from the uplink, where routing must   |
|           |                   |                   | let them pass to the LANs; this lets nothing else use the way |

A fwd policy by a protected destination would also stop what goes from a LAN into a tunnel: the kernel asks it before it
encrypts.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from cpe_agent.core.addresses import network
from cpe_agent.core.wanted_routes import ANYWHERE, remote_subnets
from cpe_agent.model.dataplane import BlockPolicy
from cpe_agent.model.document import Document, Network


def block_policies(document: Document) -> frozenset[BlockPolicy]:
    """The wanted policies, as few as cover it."""
    own = [network(lan.subnet) for lan in document.lans]
    found: set[BlockPolicy] = set()
    for each in protected(document):
        anywhere = ANYWHERE[each.version]
        found.add(BlockPolicy("out", anywhere, str(each)))
        found.add(BlockPolicy("in", str(each), anywhere))
        found.add(BlockPolicy("fwd", str(each), anywhere))
    for lan in _collapsed(own):
        found.add(BlockPolicy("fwd", ANYWHERE[lan.version], str(lan)))
    return frozenset(found)


def protected(document: Document) -> list[Network]:
    """What lies behind tunnels and nowhere else, in as few parts as cover it: own LANs are cut out of wider subnets."""
    parts = [network(text) for text in remote_subnets(document)]
    for lan in (network(lan.subnet) for lan in document.lans):
        parts = [rest for part in parts for rest in _without(part, lan)]
    return _collapsed(parts)


def _without(whole: Network, hole: Network) -> list[Network]:
    if whole.version != hole.version or not whole.overlaps(hole):
        return [whole]
    if whole.subnet_of(hole):  # type: ignore[arg-type]
        return []
    return list(whole.address_exclude(hole))  # type: ignore[arg-type]


def _collapsed(networks: Iterable[Network]) -> list[Network]:
    found: list[Network] = []
    networks = list(networks)
    for version in (4, 6):
        found += ipaddress.collapse_addresses(n for n in networks if n.version == version)  # type: ignore[type-var]
    return found
