"""Which nftables table does a document ask for?

Pure. Pairs live in sets, so that a packet's verdict costs the same with one pair or ten thousand, and so that editing
a pair is an element, not a rule. A flow is admitted by who started it: original direction against the pairs of its
starter's side, replies against the same element the other way round, ICMP errors by the flow they speak of. Every
packet is looked up, also of established flows, so a pair that goes takes its flows with it.

Everything is dropped by the chain's policy and by a final rule as well: a base chain that is being replaced accepts
until its policy is committed, the rule does not.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from cpe_agent.core.disjoint import Box, address_pair, disjoint, element, network_range
from cpe_agent.core.wanted_routes import own_addresses, remote_subnets
from cpe_agent.model.dataplane import Backend, NftChain, NftSet, Ruleset
from cpe_agent.model.document import Document, Pair, port_range, protocol_number

PAIR_TYPE = {v: f"{a} . {a} . inet_proto . inet_service" for v, a in ((4, "ipv4_addr"), (6, "ipv6_addr"))}
NETS_TYPE = {4: "ipv4_addr . ipv4_addr", 6: "ipv6_addr . ipv6_addr"}
ADDRESS_TYPE = {4: "ipv4_addr", 6: "ipv6_addr"}
IP = {4: "ip", 6: "ip6"}
ICMP = {4: "icmp", 6: "ipv6-icmp"}
DROP_POLICY = "type filter hook {hook} priority filter; policy drop;"
ACCEPT_POLICY = "type filter hook {hook} priority filter; policy accept;"


def ruleset(document: Document | None, backend: Backend) -> Ruleset:
    """The wanted table. Without a document: nothing is forwarded, and only what the host itself began comes in."""
    lans: frozenset[str] = frozenset()
    uplinks: frozenset[str] = frozenset()
    hub = False
    if document is not None:
        lans = frozenset(lan.interface for lan in document.lans if lan.interface)
        uplinks = frozenset(uplink.interface or name for name, uplink in document.uplinks.items())
        hub = document.role == "hub"
    sets = [NftSet("lans", "ifname", elements=lans), NftSet("uplinks", "ifname", elements=uplinks)]
    for version in (4, 6):
        sets += _pair_sets(document, version)
        sets += _address_sets(document, version)
    return Ruleset(tuple(sorted(sets)), tuple(sorted(_chains(backend, hub))))


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
    for side in ("local", "remote"):
        boxes = disjoint(_boxes(document.pairs if document else (), side, version))
        elements = frozenset(element(box) for box in boxes)
        sets.append(NftSet(f"{side}_pairs{version}", PAIR_TYPE[version], "interval", True, elements))
        flat = {Box(b.version, b.source, b.destination, (0, 0), (0, 0)) for b in boxes}
        nets = frozenset(address_pair(box) for box in disjoint(flat))
        sets.append(NftSet(f"{side}_nets{version}", NETS_TYPE[version], "interval", False, nets))
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
    protected: set[str] = set()
    answering: set[str] = set()
    ssh: set[str] = set()
    if document is not None:
        answering = {str(ipaddress.ip_network(address)) for address in own_addresses(document, ready=True)}
        protected = answering | remote_subnets(document) | {lan.subnet for lan in document.lans}
        ssh = set(document.management.ssh_from)
    return [
        NftSet(f"{name}{version}", ADDRESS_TYPE[version], "interval", False, _collapsed(subnets, version))
        for name, subnets in (("protected", protected), ("answering", answering), ("ssh_from", ssh))
    ]


def _collapsed(subnets: Iterable[str], version: int) -> frozenset[str]:
    """Disjoint prefixes that cover the same addresses, as nft writes them."""
    networks = [network for network in map(ipaddress.ip_network, subnets) if network.version == version]
    collapsed = ipaddress.collapse_addresses(networks)  # type: ignore[type-var]
    return frozenset(str(n.network_address) if n.num_addresses == 1 else str(n) for n in collapsed)


def _chains(backend: Backend, hub: bool) -> list[NftChain]:
    came, goes = backend.came_through, backend.goes_through
    return [
        NftChain(
            "forward",
            DROP_POLICY.format(hook="forward"),
            (
                f"iifname @lans {goes} jump lan_to_tunnel",
                f"{came} oifname @lans jump tunnel_to_lan",
                'counter drop comment "unlisted"',
            ),
        ),
        NftChain("lan_to_tunnel", "", (*_clamp(), *_admit("local", "remote"), 'counter drop comment "unlisted"')),
        NftChain("tunnel_to_lan", "", (*_clamp(), *_admit("remote", "local"), 'counter drop comment "unlisted"')),
        NftChain("input", DROP_POLICY.format(hook="input"), _input(came)),
        NftChain("from_tunnel", "", _from_tunnel()),
        NftChain("from_lan", "", _from_lan()),
        NftChain("from_uplink", "", _from_uplink(hub)),
        NftChain("output", ACCEPT_POLICY.format(hook="output"), _output(goes)),
    ]


def _clamp() -> tuple[str, ...]:
    # Both ends clamp what they encrypt; together that covers both directions of a connection.
    return ("tcp flags syn tcp option maxseg size set rt mtu",)


def _admit(starter: str, answerer: str) -> list[str]:
    """Packets in one direction: of flows that this side starts, and replies to flows that the other side starts."""
    rules: list[str] = []
    for v in (4, 6):
        ip = IP[v]
        errors = f"meta l4proto {ICMP[v]} ct state related ct original {ip} saddr . ct original {ip} daddr"
        rules += [
            f"ct direction original {ip} saddr . {ip} daddr . meta l4proto . th dport @{starter}_pairs{v} accept",
            f"ct direction reply {ip} daddr . {ip} saddr . meta l4proto . th sport @{answerer}_pairs{v} accept",
            f"{errors} @{starter}_nets{v} accept",
            f"{errors} @{answerer}_nets{v} accept",
        ]
    return rules


def _input(came: str) -> tuple[str, ...]:
    return (
        'iifname "lo" accept',
        f"{came} jump from_tunnel",
        # Before "established": a forged echo reply in cleartext must never keep a dead path up.
        'ip saddr @protected4 iifname @uplinks counter drop comment "cleartext"',
        'ip6 saddr @protected6 iifname @uplinks counter drop comment "cleartext"',
        'ip daddr @protected4 iifname @uplinks counter drop comment "cleartext"',
        'ip6 daddr @protected6 iifname @uplinks counter drop comment "cleartext"',
        "ct state established,related accept",
        "iifname @lans jump from_lan",
        "iifname @uplinks jump from_uplink",
        'counter drop comment "input"',
    )


def _from_tunnel() -> tuple[str, ...]:
    return (
        "ct state established,related accept",
        "ip daddr @answering4 icmp type echo-request accept",
        "ip6 daddr @answering6 icmpv6 type echo-request accept",
        "ip saddr @ssh_from4 tcp dport 22 accept",
        "ip6 saddr @ssh_from6 tcp dport 22 accept",
        'counter drop comment "tunnel_input"',
    )


def _from_lan() -> tuple[str, ...]:
    return (
        "icmp type echo-request accept",
        "icmpv6 type { echo-request, nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } accept",
        "ip saddr @ssh_from4 tcp dport 22 accept",
        "ip6 saddr @ssh_from6 tcp dport 22 accept",
        'counter drop comment "lan_input"',
    )


def _from_uplink(hub: bool) -> tuple[str, ...]:
    dialled = ("udp dport 4500 accept",) if hub else ()
    return (
        *dialled,
        # What a working host needs: neighbours, router advertisements, and its own DHCP client's answers.
        "icmpv6 type { nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept",
        "udp sport 67 udp dport 68 accept",
        "udp sport 547 udp dport 546 accept",
        'counter drop comment "uplink_input"',
    )


def _output(goes: str) -> tuple[str, ...]:
    rules = ['oifname "lo" accept']
    for v in (4, 6):
        rules += [
            f"{IP[v]} daddr @protected{v} {goes} accept",
            f"{IP[v]} daddr @protected{v} oifname @lans accept",
            f'{IP[v]} daddr @protected{v} counter drop comment "cleartext"',
        ]
    return tuple(rules)
