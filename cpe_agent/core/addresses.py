"""Which network does a text name?

A hub's document names thousands, each in several places: what was parsed once is kept (networks are immutable), because
parsing them again is what a compilation would spend most of its time on.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from cpe_agent.model.document import Network

# All subnets and addresses of a hub with some thousands of branches.
KEPT = 1 << 15


@lru_cache(KEPT)
def network(text: str) -> Network:
    """ "10.1.0.0/24" or, one host, "10.1.0.1"."""
    return ipaddress.ip_network(text)


@lru_cache(KEPT)
def host(address: str) -> str:
    """The address as a network: "10.1.0.1/32"."""
    return str(network(address))
