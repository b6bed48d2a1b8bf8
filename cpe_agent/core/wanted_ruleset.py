"""Which nftables table does a document ask for?

Pure. The rules (wanted_chains) are the same whatever the document lists: pairs, subnets and interfaces live in sets, so
a packet's verdict costs the same with one pair or ten thousand, and editing a pair is an element, not a rule.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from cpe_agent.core.addresses import host, network
from cpe_agent.core.lans import lan_interface
from cpe_agent.core.wanted_chains import chains
from cpe_agent.core.wanted_nat import nat_chains
from cpe_agent.core.wanted_pairs import PairSets, pair_sets
from cpe_agent.core.wanted_routes import own_addresses, protected_subnets
from cpe_agent.model.dataplane import IKE_BYTES_IN, IKE_BYTES_OUT, Backend, NftSet, Ruleset, Service
from cpe_agent.model.document import Document

ADDRESS = {4: "ipv4_addr", 6: "ipv6_addr"}
# How many sources of IKE_SA_INIT are told apart; beyond, all new ones share the limit of all.
INIT_SOURCES = 65535


def ruleset(
    document: Document | None,
    backend: Backend,
    pairs: PairSets | None = None,
    ready: bool = True,
    bound: Mapping[str, str] | None = None,
) -> Ruleset:
    """The wanted table. Without a document: nothing is forwarded, and only what the host itself began comes in.

    `pairs`: what the document's pairs come to, if that is known already. `ready`: this hub is willing to serve, so its
    ready addresses answer. They are on the router all the same: charon in user space refuses a whole CHILD_SA with
    an address in its selectors that the router does not have, and probes must go on while a hub is drained. `bound`:
    each uplink's interface, where the document leaves that to what is found.
    """
    bound = bound or {}
    lans: frozenset[str] = frozenset()
    uplinks: frozenset[str] = frozenset()
    if document is not None:
        lans = frozenset(interface for lan in document.lans if (interface := lan_interface(document, lan)))
        uplinks = frozenset(bound.get(name, uplink.interface or name) for name, uplink in document.uplinks.items())
    hub = document is not None and document.role == "hub"
    sets = [NftSet("lans", "ifname", elements=lans), NftSet("uplinks", "ifname", elements=uplinks)]
    sets += [NftSet(name, "ifname", counter=True, elements=uplinks) for name in (IKE_BYTES_IN, IKE_BYTES_OUT)]
    sets += _pair_sets(pairs or pair_sets(document.pairs if document else ()))
    sets += _asked_sets(())
    for version in (4, 6):
        sets += _address_sets(document, version, ready)
        sets.append(_lan_sources(document, version))
        if hub:
            sets += [
                NftSet(f"{name}{version}", kind, f"dynamic,timeout; size {INIT_SOURCES}; timeout {timeout}")
                for name, kind, timeout in _init_sets(ADDRESS[version])
            ]
    nat = nat_chains(document is not None and document.hub_nat, backend)
    return Ruleset(tuple(sorted(sets)), tuple(sorted([*chains(backend, hub), *nat])))


def with_pairs(table: Ruleset, pairs: PairSets) -> Ruleset:
    """The same table with other pairs in it."""
    changed = {found.name: found for found in _pair_sets(pairs)}
    return Ruleset(tuple(changed.get(nft_set.name, nft_set) for nft_set in table.sets), table.chains)


def with_asked(table: Ruleset, asked: Iterable[Service]) -> Ruleset:
    """The same table, which lets the router itself ask these servers, from these addresses."""
    changed = {found.name: found for found in _asked_sets(asked)}
    return Ruleset(tuple(changed.get(nft_set.name, nft_set) for nft_set in table.sets), table.chains)


def pair_elements(document: Document) -> dict[str, str]:
    """Counter name ("local_pairs4 ELEMENT") -> pair id, for reporting."""
    return pair_sets(document.pairs).counter_names()


def _init_sets(address: str) -> tuple[tuple[str, str, str], ...]:
    """(name, type, timeout) of what a hub's rules fill in by themselves: sources of IKE_SA_INIT with their limits, whom
    we send ESP to, and the limits of these. An hour outlasts most outages, and a carrier's NAT soon has other ports."""
    flow = f"{address} . inet_service"
    return (("ike_init", address, "1m"), ("ike_known", flow, "1h"), ("ike_again", flow, "1m"))


def _pair_sets(pairs: PairSets) -> list[NftSet]:
    sets = []
    for (side, version), found in pairs.by_side.items():
        address = ADDRESS[version]
        pair_type = f"{address} . {address} . inet_proto . inet_service"
        sets.append(NftSet(f"{side}_pairs{version}", pair_type, "interval", True, frozenset(found.flows.tags)))
        nets = frozenset(found.nets.tags)
        sets.append(NftSet(f"{side}_nets{version}", f"{address} . {address}", "interval", False, nets))
    return sets


def _asked_sets(asked: Iterable[Service]) -> list[NftSet]:
    """Who asks whom: by echo, and on which TCP port."""
    asked = tuple(asked)
    sets = []
    for version in (4, 6):
        these = [service for service in asked if ipaddress.ip_address(service.server).version == version]
        both = f"{ADDRESS[version]} . {ADDRESS[version]}"
        echo = frozenset(f"{service.source} . {service.server}" for service in these if not service.port)
        tcp = frozenset(f"{service.source} . {service.server} . {service.port}" for service in these if service.port)
        sets.append(NftSet(f"asked_echo{version}", both, elements=echo))
        sets.append(NftSet(f"asked_tcp{version}", f"{both} . inet_service", elements=tcp))
    return sets


def answers(table: Ruleset, address: str) -> bool:
    """Does this table let the router's inner `address` answer echo?"""
    asked = ipaddress.ip_address(address)
    subnets = (subnet for found in table.sets if found.name == f"answering{asked.version}" for subnet in found.elements)
    return any("-" not in subnet and asked in network(subnet) for subnet in subnets)


def _address_sets(document: Document | None, version: int, ready: bool) -> list[NftSet]:
    subnets: dict[str, set[str]] = {}
    if document is not None:
        own = {host(address) for address in own_addresses(document)}
        silent = set() if ready else {host(endpoint.ready_address) for endpoint in document.endpoints}
        peers = document.peers.values()
        dialled = [endpoint for peer in peers if peer.dial for endpoint in peer.endpoints]
        probed = {host(a) for endpoint in dialled for a in (endpoint.probe_address, endpoint.ready_address)}
        # Who dials us is not probed for life, but measured for size.
        probed |= {host(address) for peer in peers if not peer.dial for address in peer.path_addresses}
        subnets = {
            "answering": own - silent,
            "site": {host(document.site_address)},
            "probed": probed,
            "protected": protected_subnets(document),
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


def _collapsed(subnets: Iterable[str], version: int) -> frozenset[str]:
    """Disjoint prefixes that cover the same addresses, as nft writes them."""
    networks = [found for found in map(network, subnets) if found.version == version]
    collapsed = ipaddress.collapse_addresses(networks)  # type: ignore[type-var]
    return frozenset(str(n.network_address) if n.num_addresses == 1 else str(n) for n in collapsed)
