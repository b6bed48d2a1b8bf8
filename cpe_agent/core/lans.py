"""On which interface is a LAN? Pure."""

from __future__ import annotations

import ipaddress

from cpe_agent.core.addresses import network
from cpe_agent.model.document import Document, Lan


def lan_interface(document: Document, lan: Lan) -> str | None:
    """The interface that a LAN is reached by: its own, or that of the LAN which its router (`via`) is in."""
    if lan.interface or not lan.via:
        return lan.interface
    router = ipaddress.ip_address(lan.via)
    within = (other for other in document.lans if router in network(other.subnet))
    return next((other.interface for other in within), None)
