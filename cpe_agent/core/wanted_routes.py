"""Which addresses, routing rules and routes does a document ask for?

Pure. Theory of operation, by rule priority:

1. what enters from an uplink is looked up in INBOUND: nothing is forwarded from there. (The kernel backend decrypts in
   place, so what came through a tunnel also enters from the uplink: there INBOUND knows the LANs, and the XFRM policies
   are the lock.)
2. everything is looked up in OVERLAY: own LANs, and the protected subnets, which lead to the tunnel device and, should
   that be gone, nowhere. So the router itself cannot send to a protected subnet in cleartext either.
3. what entered from a LAN or came out of a tunnel and found nothing so far: INBOUND again, unreachable. There is no
   local breakout.
4. what the router sends from an uplink's address leaves by that uplink.
5. all else that the router itself sends (the controller, DNS, NTP) is looked up in main but for its default routes,
   then in OWN, which leads out by the best uplink that is known to work (core.own_way). Nothing that enters by an
   interface gets as far as that: the rules name `lo`, by which only the router's own packets enter.

Each of the first three is followed by a rule of the same packets into a table where all that it is about leads nowhere.
No packet gets as far as that but while somebody has emptied OVERLAY or INBOUND, or taken an inner address away. Then a
LAN's packets would go on to the internet, and so would what the router itself says, such as that it cannot deliver what
a tunnel has brought.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from cpe_agent.core.addresses import host, network
from cpe_agent.core.lans import lan_interface
from cpe_agent.core.uplinks import ResolvedUplink, interfaces
from cpe_agent.model import dataplane as dp
from cpe_agent.model.dataplane import Backend, Route, Routes, Rule
from cpe_agent.model.document import Document
from cpe_agent.model.observed import Links

LOOPBACK = "lo"
ANYWHERE = {4: "0.0.0.0/0", 6: "::/0"}


def routes(document: Document, uplinks: Iterable[ResolvedUplink], links: Links, backend: Backend) -> Routes:
    """The wanted routing."""
    uplinks = tuple(uplinks)
    families = _families(document, uplinks)
    wanted_rules: set[Rule] = set()
    wanted_routes: set[Route] = set()
    lan_interfaces = sorted({name for lan in document.lans if (name := lan_interface(document, lan))})
    for family in families:
        wanted_routes |= {Route(table, ANYWHERE[family]) for table in (dp.INBOUND, dp.INBOUND_SHUT)}
        wanted_rules.add(Rule(family, dp.PRIORITY_OVERLAY, dp.OVERLAY))
        wanted_rules.add(Rule(family, dp.PRIORITY_OVERLAY_SHUT, dp.OVERLAY_SHUT))
        for interface in interfaces(document, links).values():
            wanted_rules.add(Rule(family, dp.PRIORITY_UPLINK_IN, dp.INBOUND, iif=interface))
            wanted_rules.add(Rule(family, dp.PRIORITY_UPLINK_SHUT, dp.INBOUND_SHUT, iif=interface))
        closed = [*lan_interfaces, backend.device] if backend is Backend.USERLAND else lan_interfaces
        wanted_rules.add(Rule(family, dp.PRIORITY_OWN_NEAR, dp.MAIN, iif=LOOPBACK, near=True))
        wanted_rules.add(Rule(family, dp.PRIORITY_OWN_FAR, dp.OWN, iif=LOOPBACK))
        for interface in closed:
            wanted_rules.add(Rule(family, dp.PRIORITY_LAN_IN, dp.INBOUND, iif=interface))
            wanted_rules.add(Rule(family, dp.PRIORITY_LAN_SHUT, dp.INBOUND_SHUT, iif=interface))
    wanted_routes |= _lan_routes(document, links, backend)
    wanted_routes |= {Route(dp.OVERLAY_SHUT, subnet) for subnet in protected_subnets(document)}
    own = {lan.subnet for lan in document.lans}
    for subnet in remote_subnets(document) - own:
        wanted_routes.add(Route(dp.OVERLAY, subnet))
        # The dummy device is ours to make; the other one charon makes.
        if backend is Backend.KERNEL or backend.device in links.by_name:
            wanted_routes.add(Route(dp.OVERLAY, subnet, backend.device, metric=dp.METRIC_TUNNEL))
    for index, name in enumerate(sorted(document.uplinks)):
        uplink = next((u for u in uplinks if u.name == name), None)
        if uplink is not None:
            _add_uplink(uplink, dp.UPLINK_TABLES + index, wanted_rules, wanted_routes)
    return Routes(
        addresses=frozenset(host(address) for address in own_addresses(document)) | _anchors(document, backend),
        rules=frozenset(wanted_rules),
        routes=frozenset(wanted_routes),
        devices=frozenset() if backend is Backend.USERLAND else frozenset({backend.device}),
        forwarding=frozenset(families),
        lenient=document.role == "hub",
    )


def own_addresses(document: Document) -> frozenset[str]:
    """The router's inner addresses: for management, for its paths, and (hubs) those that answer probes."""
    found = {document.site_address}
    found |= {uplink.path_address for uplink in document.uplinks.values()}
    found |= {endpoint.probe_address for endpoint in document.endpoints}
    found |= {endpoint.ready_address for endpoint in document.endpoints}
    return frozenset(found)


def _anchors(document: Document, backend: Backend) -> frozenset[str]:
    """charon refuses a whole CHILD_SA in user space if the router has no address in one of its subnets. Behind a LAN
    router it has none: there the network address, which no host has, stands in (nothing can for a single host)."""
    if backend is Backend.KERNEL:
        return frozenset()
    networks = [network(lan.subnet) for lan in document.lans if lan.via]
    return frozenset(host(str(n.network_address)) for n in networks if n.num_addresses > 2)


def remote_subnets(document: Document) -> set[str]:
    """Everything that lies behind tunnels, as networks."""
    found: set[str] = set()
    for peer in document.peers.values():
        found |= set(peer.lans)
        found.add(host(peer.site_address))
        found |= {host(address) for address in peer.path_addresses}
        for endpoint in peer.endpoints:
            found |= {host(endpoint.probe_address), host(endpoint.ready_address)}
    return found


def protected_subnets(document: Document) -> set[str]:
    """All that must never be seen on an uplink, as networks: what lies behind tunnels, own LANs, and the router's own
    inner addresses, which somebody may have taken from it."""
    own = {host(address) for address in own_addresses(document)}
    return own | remote_subnets(document) | {lan.subnet for lan in document.lans}


def _families(document: Document, uplinks: Iterable[ResolvedUplink]) -> set[int]:
    """IP versions that our routing must lock: 4 always (a stray IPv4 LAN host is always possible), 6 if in use."""
    texts = [lan.subnet for lan in document.lans] + [u.path_address for u in document.uplinks.values()]
    texts += sorted(remote_subnets(document))
    found: set[int] = {network(text).version for text in texts}
    found |= {version for uplink in uplinks for version in uplink.addresses}
    return found | {4}


def _lan_routes(document: Document, links: Links, backend: Backend) -> set[Route]:
    """Own LANs in OVERLAY, so that a wider protected subnet cannot swallow them."""
    found: set[Route] = set()
    tables = [dp.OVERLAY] if backend is Backend.USERLAND else [dp.OVERLAY, dp.INBOUND]
    for lan in document.lans:
        for table in tables:
            found.add(Route(table, lan.subnet))
            interface = lan_interface(document, lan)
            link = links.by_name.get(interface or "")
            if interface and link is not None and link.up:
                found.add(Route(table, lan.subnet, interface, lan.via or "", dp.METRIC_TUNNEL))
    return found


def _add_uplink(uplink: ResolvedUplink, table: int, rules: set[Rule], routes: set[Route]) -> None:
    for version, address in uplink.addresses.items():
        rules.add(Rule(version, dp.PRIORITY_UPLINK_FROM, table, source=address.address))
        # Without its own way out, what is pinned to this address must not take another uplink's.
        routes.add(Route(table, ANYWHERE[version]))
        if not uplink.up:
            continue
        subnet = str(ipaddress.ip_network(f"{address.address}/{address.prefix_length}", strict=False))
        if address.prefix_length not in (32, 128):
            routes.add(Route(table, subnet, uplink.interface, metric=dp.METRIC_TUNNEL))
        if version in uplink.gateways:
            gateway = uplink.gateways[version]
            routes.add(Route(table, ANYWHERE[version], uplink.interface, gateway, dp.METRIC_TUNNEL))
