"""Which inner address has each site, uplink and endpoint?

In: the network, and what was allocated before. Out: what is allocated now. An address that is still needed never
changes; a new one is the lowest of the overlay that is free, and was free before too: an address that one site has just
lost may still be in another's document.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping

from cpe_controller.fields import NetworkError
from cpe_controller.network import Hub, Network, Site, Subnet

# site -> what for ("site", "path/UPLINK", "probe/ENDPOINT", "ready/ENDPOINT") -> address
Allocation = Mapping[str, Mapping[str, str]]


def allocate(network: Network, before: Allocation) -> dict[str, dict[str, str]]:
    """Every address that `network` needs, for its sites only. Raises `NetworkError` if the overlay is too small."""
    kept = {site.name: _kept(site, network.overlay, before.get(site.name, {})) for site in network.sites}
    taken = {address for addresses in (*before.values(), *kept.values()) for address in addresses.values()}
    free = (text for text in _hosts(network.overlay) if text not in taken)
    allocated: dict[str, dict[str, str]] = {}
    for site in network.sites:
        allocated[site.name] = {}
        for purpose in purposes(site):
            address = kept[site.name].get(purpose) or next(free, None)
            if address is None:
                needed = sum(len(purposes(each)) for each in network.sites)
                reason = f"{network.overlay} is full; {needed} addresses are needed, so give it a larger range"
                raise NetworkError(network.source, network.lines.get("overlay", 1), "overlay", reason)
            allocated[site.name][purpose] = address
    return allocated


def purposes(site: Site) -> list[str]:
    """What a site needs addresses for."""
    needed = ["site", *(f"path/{uplink.name}" for uplink in site.uplinks)]
    if isinstance(site, Hub):
        needed += [f"{kind}/{name}" for name, _ in site.endpoints for kind in ("probe", "ready")]
    return needed


def _kept(site: Site, overlay: Subnet, before: Mapping[str, str]) -> dict[str, str]:
    needed = purposes(site)
    return {
        purpose: address
        for purpose, address in before.items()
        if purpose in needed and ipaddress.ip_address(address) in overlay
    }


def _hosts(overlay: Subnet) -> Iterator[str]:
    """Neither the first address (the network's own, or any router's) nor the last (broadcast)."""
    first, last = int(overlay.network_address) + 1, int(overlay.broadcast_address)
    kind = type(overlay.network_address)
    return (str(kind(number)) for number in range(first, last))
