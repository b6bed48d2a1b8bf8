"""Which of the document's uplinks are there, and with which address and gateway?

In: a `Document` and the `Links` as found. Out: usable uplinks, best first, and conditions about the others. Two uplinks
that cannot be told apart (same address) or one that overlaps a LAN are conflicts: neither is used, because a packet
pinned to that address could leave by the wrong link.
"""

from __future__ import annotations

import ipaddress

import msgspec

from cpe_agent.core.addresses import network
from cpe_agent.model.condition import Condition, Severity
from cpe_agent.model.document import Document, Network
from cpe_agent.model.observed import Link, LinkAddress, Links


class ResolvedUplink(msgspec.Struct, frozen=True):
    """An uplink that can be used. `addresses` and `gateways` by IP version; gateway "" if the link needs none."""

    name: str
    interface: str
    priority: int
    kind: str
    path_address: str
    addresses: dict[int, LinkAddress]
    gateways: dict[int, str]
    up: bool


def resolve(document: Document, links: Links) -> tuple[tuple[ResolvedUplink, ...], tuple[Condition, ...]]:
    """Usable uplinks sorted by priority, and a condition for each that is not usable."""
    conditions: list[Condition] = []
    found: list[ResolvedUplink] = []
    for name, uplink in document.uplinks.items():
        interface = uplink.interface or name
        link = links.by_name.get(interface)
        if link is None:
            conditions.append(Condition("UplinkMissing", name, f"there is no interface {interface}"))
            continue
        addresses = _addresses(link)
        if not addresses:
            conditions.append(Condition("UplinkUnaddressed", name, f"{interface} has no address yet"))
            continue
        found.append(
            ResolvedUplink(
                name,
                interface,
                uplink.priority,
                uplink.kind,
                uplink.path_address,
                addresses,
                _gateways(link),
                link.up,
            )
        )
        if not link.up:
            conditions.append(Condition("UplinkDown", name, f"{interface} is down or has no carrier"))
        elif not link.gateways:
            conditions.append(Condition("UplinkNoGateway", name, f"{interface} has no default route"))
    usable, conflicts = _without_conflicts(document, found)
    usable.sort(key=lambda uplink: (uplink.priority, uplink.name))
    return tuple(usable), tuple(conditions + conflicts)


def _addresses(link: Link) -> dict[int, LinkAddress]:
    addresses: dict[int, LinkAddress] = {}
    for address in link.addresses:
        addresses.setdefault(ipaddress.ip_address(address.address).version, address)
    return addresses


def _gateways(link: Link) -> dict[int, str]:
    gateways: dict[int, str] = {}
    for gateway in link.gateways:
        if gateway:
            gateways.setdefault(ipaddress.ip_address(gateway).version, gateway)
        else:
            gateways.setdefault(4, "")
            gateways.setdefault(6, "")
    return gateways


def _without_conflicts(document: Document, found: list[ResolvedUplink]) -> tuple[list[ResolvedUplink], list[Condition]]:
    conditions: list[Condition] = []
    bad: set[str] = set()
    lans: list[tuple[str, Network]] = [(f"LAN {lan.name}", ipaddress.ip_network(lan.subnet)) for lan in document.lans]
    for name, peer in document.peers.items():
        lans += [(f"{name}'s LAN", network(subnet)) for subnet in peer.lans]
    for index, uplink in enumerate(found):
        for address in uplink.addresses.values():
            for lan, subnet in lans:
                link = ipaddress.ip_network(f"{address.address}/{address.prefix_length}", strict=False)
                if link.version == subnet.version and link.overlaps(subnet):
                    bad.add(uplink.name)
                    reason = f"its network {link} overlaps {lan} ({subnet})"
                    conditions.append(Condition("UplinkConflict", uplink.name, reason, Severity.DEGRADED))
            for other in found[:index]:
                if any(address.address == own.address for own in other.addresses.values()):
                    bad |= {uplink.name, other.name}
                    reason = f"has the same address {address.address} as uplink {other.name}; neither is used"
                    conditions.append(Condition("UplinkConflict", uplink.name, reason, Severity.DEGRADED))
    return [uplink for uplink in found if uplink.name not in bad], conditions
