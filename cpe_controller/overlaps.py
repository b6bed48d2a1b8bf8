"""Which two ranges of the network collide?

In: the overlay, the sites' LANs and the hubs' public addresses. Out: nothing, or a `NetworkError` at the later of two.
Every LAN is its site's own, except that several hubs may have the very same subnet: that is how it fails over.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cpe_controller.fields import NetworkError
from cpe_controller.network import Hub, Site, Subnet

_Prefix = tuple[int, int, int]  # IP version, length, the bits


@dataclass(frozen=True)
class _Range:
    subnet: Subnet
    field: str
    hub: str | None  # whose LAN it is, if a hub's


class _Ranges:
    """Ranges by every prefix of theirs, so that 10,000 LANs are not compared each with each."""

    def __init__(self) -> None:
        self._exact: dict[_Prefix, list[_Range]] = {}
        self._inside: dict[_Prefix, _Range] = {}

    def add(self, new: _Range) -> None:
        *above, whole = _prefixes(new.subnet)
        self._exact.setdefault(whole, []).append(new)
        for prefix in above:
            self._inside.setdefault(prefix, new)

    def collision(self, new: _Range) -> _Range | None:
        """A range that shares addresses with `new` and may not."""
        *above, whole = _prefixes(new.subnet)
        for prefix in above:
            if prefix in self._exact:
                return self._exact[prefix][0]
        for same in self._exact.get(whole, ()):
            if new.hub is None or same.hub is None or new.hub == same.hub:
                return same
        return self._inside.get(whole)


def check_overlaps(overlay: Subnet, sites: Sequence[Site], source: str, lines: Mapping[str, int]) -> None:
    taken = _Ranges()
    taken.add(_Range(overlay, "overlay", None))
    for site in sites:
        for lan in site.lans:
            field = f"{site.field}.lans.{lan.name}"
            new = _Range(lan.subnet, field, site.name if isinstance(site, Hub) else None)
            if (other := taken.collision(new)) is not None:
                reason = f"{lan.subnet} overlaps {other.subnet} of {other.field}; give it a range of its own"
                raise NetworkError(source, lines[f"{field}.subnet"], f"{field}.subnet", reason)
            taken.add(new)
    for hub in sites:
        for name, address in hub.endpoints if isinstance(hub, Hub) else ():
            try:
                public = ipaddress.ip_network(address)
            except ValueError:
                continue  # a host name
            if (other := taken.collision(_Range(public, "", None))) is not None:
                field = f"{hub.field}.endpoints.{name}.address"
                reason = f"{address} is inside {other.subnet} of {other.field}; write the public address"
                raise NetworkError(source, lines[field], field, reason)


def _prefixes(subnet: Subnet) -> list[_Prefix]:
    """From the shortest to the subnet itself."""
    bits = int(subnet.network_address)
    return [(subnet.version, length, bits >> (subnet.max_prefixlen - length)) for length in range(subnet.prefixlen + 1)]
