"""On which interface is a LAN, and is that one fit for it? Pure.

In: a `Document` and the links as found. Out: an interface's name; conditions about LANs whose interface is not there
(`LanMissing`) or has no address of the LAN (`LanUnaddressed`), so that the hosts there have no gateway.
"""

from __future__ import annotations

import ipaddress

from cpe_agent.core.addresses import network
from cpe_agent.model.condition import Condition
from cpe_agent.model.document import Document, Lan
from cpe_agent.model.observed import Links


def lan_interface(document: Document, lan: Lan) -> str | None:
    """The interface that a LAN is reached by: its own, or that of the LAN which its router (`via`) is in."""
    if lan.interface or not lan.via:
        return lan.interface
    router = ipaddress.ip_address(lan.via)
    within = (other for other in document.lans if router in network(other.subnet))
    return next((other.interface for other in within), None)


def conditions(document: Document, links: Links) -> tuple[Condition, ...]:
    """What is in the way of the LANs that have an interface of their own. One behind a router (`via`) needs no address
    here: its hosts' gateway is that router."""
    found = []
    for lan in document.lans:
        if not lan.interface:
            continue
        link = links.by_name.get(lan.interface)
        if link is None:
            found.append(Condition("LanMissing", lan.name, f"there is no interface {lan.interface}"))
        elif not lan.via and not any(ipaddress.ip_address(a.address) in network(lan.subnet) for a in link.addresses):
            reason = (
                f"{lan.interface} has no address in {lan.subnet}, so its hosts have no gateway: give it one "
                "(networkd/50-lan.network among the examples shows how)"
            )
            found.append(Condition("LanUnaddressed", lan.name, reason))
    return tuple(found)
