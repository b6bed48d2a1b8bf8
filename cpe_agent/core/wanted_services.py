"""Which servers does this router ask for itself, and from which of its addresses?

Pure. In: pairs with a probe, and the links. Out: a `Service` for each, and what is in the way. A server is asked from
an address of the router inside `pair.local` (the one on that LAN, or the site address), through the bundle's own
CHILD_SA: so the pair's own rules are exercised, here and at the hub.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from cpe_agent.core.addresses import network
from cpe_agent.core.lans import lan_interface
from cpe_agent.model.condition import Condition
from cpe_agent.model.dataplane import Bundle, Service
from cpe_agent.model.document import Document, Pair
from cpe_agent.model.observed import LinkAddress, Links


def services(
    document: Document, links: Links, bundles: Iterable[Bundle]
) -> tuple[tuple[Service, ...], tuple[Condition, ...]]:
    """What is asked, and which pairs cannot be probed from here."""
    of_pair = {pair: bundle.name for bundle in bundles for pair in bundle.pairs}
    found: list[Service] = []
    obstacles: list[Condition] = []
    for pair in document.pairs:
        if pair.probe is None or pair.id not in of_pair:
            continue
        source = _source(document, links, pair)
        if source is None:
            reason = f"this router has no address in {pair.local} to ask the server from: give its LAN interface one"
            obstacles.append(Condition("ServerNotAsked", pair.id, reason))
            continue
        server = pair.probe.address or str(network(pair.remote).network_address)
        found.append(Service(of_pair[pair.id], pair.id, source, server, pair.probe.port or 0))
    return tuple(sorted(found)), tuple(obstacles)


def _source(document: Document, links: Links, pair: Pair) -> str | None:
    local = network(pair.local)
    interfaces = {lan_interface(document, lan) for lan in document.lans}
    addresses = [a.address for name in sorted(filter(None, interfaces)) for a in _addresses(links, name)]
    return next((a for a in (*addresses, document.site_address) if ipaddress.ip_address(a) in local), None)


def _addresses(links: Links, interface: str) -> tuple[LinkAddress, ...]:
    link = links.by_name.get(interface)
    return link.addresses if link else ()
