"""Which nftables table does a document ask for?

Pure. The rules (wanted_chains) are the same whatever the document lists: pairs, subnets and interfaces live in sets, so
a packet's verdict costs the same with one pair or ten thousand, and editing a pair is an element, not a rule.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from cpe_agent.core.disjoint import Box, address_pair, disjoint, element, network_range
from cpe_agent.core.wanted_chains import chains
from cpe_agent.core.wanted_routes import lan_interface, own_addresses, remote_subnets
from cpe_agent.model.dataplane import Backend, NftSet, Ruleset
from cpe_agent.model.document import Document, Pair, port_range, protocol_number

ADDRESS = {4: "ipv4_addr", 6: "ipv6_addr"}
# How many sources of IKE_SA_INIT are told apart; beyond, all new ones share the limit of all.
INIT_SOURCES = 65535


def ruleset(document: Document | None, backend: Backend) -> Ruleset:
    """The wanted table. Without a document: nothing is forwarded, and only what the host itself began comes in."""
    lans: frozenset[str] = frozenset()
    uplinks: frozenset[str] = frozenset()
    if document is not None:
        lans = frozenset(interface for lan in document.lans if (interface := lan_interface(document, lan)))
        uplinks = frozenset(uplink.interface or name for name, uplink in document.uplinks.items())
    hub = document is not None and document.role == "hub"
    sets = [NftSet("lans", "ifname", elements=lans), NftSet("uplinks", "ifname", elements=uplinks)]
    for version in (4, 6):
        sets += _pair_sets(document, version)
        sets += _address_sets(document, version)
        sets.append(_lan_sources(document, version))
        if hub:
            sets.append(
                NftSet(f"ike_init{version}", ADDRESS[version], f"dynamic,timeout; size {INIT_SOURCES}; timeout 1m")
            )
    return Ruleset(tuple(sorted(sets)), tuple(sorted(chains(backend, hub))))


def pair_elements(document: Document) -> dict[str, str]:
    """Counter name ("local_pairs4 ELEMENT") -> pair id, for reporting."""
    found: dict[str, str] = {}
    for version in (4, 6):
        for side in ("local", "remote"):
            for box in disjoint(_boxes(document.pairs, side, version)):
                found[f"{side}_pairs{version} {element(box)}"] = box.tag
    return found


def _pair_sets(document: Document | None, version: int) -> list[NftSet]:
    sets = []
    address = ADDRESS[version]
    for side in ("local", "remote"):
        boxes = disjoint(_boxes(document.pairs if document else (), side, version))
        elements = frozenset(element(box) for box in boxes)
        pair_type = f"{address} . {address} . inet_proto . inet_service"
        sets.append(NftSet(f"{side}_pairs{version}", pair_type, "interval", True, elements))
        flat = {Box(b.version, b.source, b.destination, (0, 0), (0, 0)) for b in boxes}
        nets = frozenset(address_pair(box) for box in disjoint(flat))
        sets.append(NftSet(f"{side}_nets{version}", f"{address} . {address}", "interval", False, nets))
    return sets


def _boxes(pairs: Iterable[Pair], side: str, version: int) -> list[Box]:
    """Boxes of flows that `side` may start: from its subnet to the other's, on the responder's ports."""
    boxes: list[Box] = []
    for pair in pairs:
        if pair.initiator not in (side, "either"):
            continue
        starter, responder = (pair.local, pair.remote) if side == "local" else (pair.remote, pair.local)
        found, source = network_range(starter)
        _, destination = network_range(responder)
        if found != version:
            continue
        number = None if pair.protocol is None else protocol_number("protocol", pair.protocol)
        protocol = (0, 255) if number is None else (number, number)
        for ports in [port_range("ports", text) for text in pair.ports] or [(0, 65535)]:
            boxes.append(Box(version, source, destination, protocol, ports, pair.id))
    return boxes


def _address_sets(document: Document | None, version: int) -> list[NftSet]:
    subnets: dict[str, set[str]] = {}
    if document is not None:
        own = {_host(address) for address in own_addresses(document, ready=True)}
        dialled = [endpoint for peer in document.peers.values() if peer.dial for endpoint in peer.endpoints]
        subnets = {
            "answering": own,
            "site": {_host(document.site_address)},
            "probed": {_host(a) for endpoint in dialled for a in (endpoint.probe_address, endpoint.ready_address)},
            "protected": own | remote_subnets(document) | {lan.subnet for lan in document.lans},
            "ssh_from": set(document.management.ssh_from),
            "metrics_from": set(document.management.metrics_from),
            "routing_from": set(document.management.routing_from),
        }
    names = ("answering", "site", "probed", "protected", "ssh_from", "metrics_from", "routing_from")
    return [
        NftSet(f"{name}{version}", ADDRESS[version], "interval", False, _collapsed(subnets.get(name, ()), version))
        for name in names
    ]


def _lan_sources(document: Document | None, version: int) -> NftSet:
    """Which sources each LAN interface may send from: what is behind it, nothing else."""
    behind: dict[str, set[str]] = {}
    for lan in document.lans if document else ():
        interface = lan_interface(document, lan) if document else None
        if interface:
            behind.setdefault(interface, set()).add(lan.subnet)
    elements = {
        f"{interface} . {subnet}" for interface, subnets in behind.items() for subnet in _collapsed(subnets, version)
    }
    return NftSet(f"lan_sources{version}", f"ifname . {ADDRESS[version]}", "interval", False, frozenset(elements))


def _host(address: str) -> str:
    return str(ipaddress.ip_network(address))


def _collapsed(subnets: Iterable[str], version: int) -> frozenset[str]:
    """Disjoint prefixes that cover the same addresses, as nft writes them."""
    networks = [network for network in map(ipaddress.ip_network, subnets) if network.version == version]
    collapsed = ipaddress.collapse_addresses(networks)  # type: ignore[type-var]
    return frozenset(str(n.network_address) if n.num_addresses == 1 else str(n) for n in collapsed)
