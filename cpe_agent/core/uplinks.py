"""Which of the document's uplinks are there, and with which address and gateway?

In: a `Document` and the `Links` as found. Out: usable uplinks, best first, and conditions about the others. Two uplinks
that cannot be told apart (same address) or one that overlaps a LAN are conflicts: neither is used, because a packet
pinned to that address could leave by the wrong link.

**Which interface is which uplink.** In this order, and the same for the same links:

| the document                                  | the uplink's interface                                           |
|-----------------------------------------------|------------------------------------------------------------------|
| names one (`interface`)                       | that one, whether it is there or not                             |
| names none, and one has the uplink's name     | that one                                                         |
| names none, and there is none of that name    | the first, by name, that was found to be an uplink of its kind   |
|                                               | and that no other uplink has; uplinks choose best first          |

An interface is found to be an uplink if it has a default route; a cellular one (`ww...`: wwan0, wwp0s20u4) also
without, because it is never anything else. All other names are wired, ppp as well. A LAN's interface is never an
uplink, nor is lo or a device of ours. `UplinkFound` says what was chosen. With modems or PPPoE whose names change this
is all there is to do; where two uplinks of one kind must not be confused, name their interfaces.

**Whether it leads anywhere.** Carrier and an address are not enough: without a default route (or a hub on its own
network) an uplink leads nowhere, and does not count as up from the moment at which its gateway goes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

import msgspec

from cpe_agent.core.addresses import network
from cpe_agent.core.lans import lan_interface
from cpe_agent.model.condition import Condition, Severity
from cpe_agent.model.dataplane import Backend
from cpe_agent.model.document import Document, Network
from cpe_agent.model.observed import Link, LinkAddress, Links

CELLULAR, WIRED = "cellular", "wired"
_NEVER = frozenset({"lo", *(backend.device for backend in Backend)})


class ResolvedUplink(msgspec.Struct, frozen=True):
    """An uplink that can be used. `addresses` and `gateways` by IP version; gateway "" if the link needs none. `up`: it
    has carrier; `leads_out`: and a way to the internet, or to a hub on its own network."""

    name: str
    interface: str
    priority: int
    kind: str
    path_address: str
    addresses: dict[int, LinkAddress]
    gateways: dict[int, str]
    up: bool
    leads_out: bool


def kind_of(interface: str) -> str:
    """What an interface that nobody has named is, by its name: the kernel and systemd call modems ww..."""
    return CELLULAR if interface.startswith("ww") else WIRED


def found_uplinks(links: Links, lans: Collection[str]) -> tuple[str, ...]:
    """Interfaces that are uplinks by their looks, by name; never one of `lans`."""
    return tuple(
        name
        for name, link in sorted(links.by_name.items())
        if name not in lans and name not in _NEVER and (link.gateways or kind_of(name) == CELLULAR)
    )


def interfaces(document: Document, links: Links) -> dict[str, str]:
    """The interface of each uplink by the uplink's name; its own name where there is none to be found."""
    bound = {
        name: uplink.interface or name
        for name, uplink in document.uplinks.items()
        if uplink.interface or name in links.by_name
    }
    lans = {interface for lan in document.lans if (interface := lan_interface(document, lan))}
    candidates = [name for name in found_uplinks(links, lans) if name not in bound.values()]
    for name, uplink in sorted(document.uplinks.items(), key=lambda item: (item[1].priority, item[0])):
        if name in bound:
            continue
        bound[name] = next((found for found in candidates if kind_of(found) == uplink.kind), name)
        candidates = [found for found in candidates if found != bound[name]]
    return bound


def resolve(document: Document, links: Links) -> tuple[tuple[ResolvedUplink, ...], tuple[Condition, ...]]:
    """Usable uplinks sorted by priority, and a condition for each that is not usable."""
    conditions: list[Condition] = []
    found: list[ResolvedUplink] = []
    bound = interfaces(document, links)
    for name, uplink in document.uplinks.items():
        interface = bound[name]
        link = links.by_name.get(interface)
        if link is None:
            reason = f"there is no interface {interface}"
            if uplink.interface is None:
                reason += f", and no other {uplink.kind} one with a default route"
            conditions.append(Condition("UplinkMissing", name, reason))
            continue
        if uplink.interface is None and interface != name:
            reason = f"uses {interface}, a {uplink.kind} interface that no other uplink has; name it to make sure"
            conditions.append(Condition("UplinkFound", name, reason, Severity.OK))
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
                link.up and (bool(link.gateways) or _has_hub_on(document, addresses)),
            )
        )
        if not link.up:
            conditions.append(Condition("UplinkDown", name, f"{interface} is down or has no carrier"))
        elif not found[-1].leads_out:
            reason = f"{interface} has no default route: look at its DHCP client, modem or PPPoE session"
            conditions.append(Condition("UplinkNoGateway", name, reason))
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


def _has_hub_on(document: Document, addresses: dict[int, LinkAddress]) -> bool:
    """Is a hub that we dial on the uplink's own network, so that no gateway is needed?"""
    subnets = [ipaddress.ip_network(f"{a.address}/{a.prefix_length}", strict=False) for a in addresses.values()]
    for peer in document.peers.values():
        for endpoint in peer.endpoints if peer.dial else ():
            try:
                asked = ipaddress.ip_address(endpoint.address)
            except ValueError:
                continue  # a name
            if any(asked in subnet for subnet in subnets):
                return True
    return False


def _without_conflicts(document: Document, found: list[ResolvedUplink]) -> tuple[list[ResolvedUplink], list[Condition]]:
    conditions: list[Condition] = []
    bad: set[str] = set()
    lans: list[tuple[str, Network]] = [(f"LAN {lan.name}", ipaddress.ip_network(lan.subnet)) for lan in document.lans]
    for name, peer in document.peers.items():
        lans += [(f"{name}'s LAN", network(subnet)) for subnet in peer.lans]
    for index, uplink in enumerate(found):
        for address in uplink.addresses.values():
            link = ipaddress.ip_network(f"{address.address}/{address.prefix_length}", strict=False)
            for lan, subnet in lans:
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
