"""What is a network?

Frozen data, as parse.py reads it from network.yaml: every name is known, no subnet overlaps one that it must not, every
service is at a hub, and of two hubs exactly one dials. What goes into documents as it is (policy, classes ...) is
of the documents' own types.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cpe_agent.model import document
from cpe_controller.fields import NetworkError

Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Lan:
    """A subnet of a site, on one of its interfaces or behind the LAN router `via`, which is on that interface."""

    name: str
    subnet: Subnet
    interface: str | None
    via: str | None
    check: str | None


@dataclass(frozen=True)
class Uplink:
    """A site's link to the internet; its inner address is allocated, not written."""

    name: str
    kind: Literal["wired", "cellular"]
    priority: int
    interface: str | None
    mtu: int | None
    monthly_bytes: int | None
    budget_day: int
    probe: document.Probing


@dataclass(frozen=True)
class Site:
    """What hubs and branches have in common. `field` is the site's path in the file, for errors."""

    name: str
    field: str
    uplinks: tuple[Uplink, ...]
    lans: tuple[Lan, ...]
    management: document.Management


@dataclass(frozen=True)
class Hub(Site):
    """`endpoints` are names and public addresses; `dials` the hubs whose paths this one opens."""

    endpoints: tuple[tuple[str, str], ...]
    dials: tuple[str, ...]
    drain: bool
    hub_nat: bool


@dataclass(frozen=True)
class Service:
    """Named servers: their subnets (at most one of each IP version), the hubs they are behind (best first), and what is
    spoken there (None: anything)."""

    name: str
    subnets: tuple[Subnet, ...]
    at: tuple[str, ...]
    protocol: str | None
    ports: tuple[str, ...]
    probe: document.ServiceProbe | None


@dataclass(frozen=True)
class End:
    """Who a permit is from: a LAN of a site, or (None) the site's router itself.

    `named` says how the file names it: as this LAN, as its site, or as one of a group (branches, hubs).
    """

    site: str
    lan: str | None
    named: Literal["lan", "site", "group"]


@dataclass(frozen=True)
class Permit:
    """These ends may talk to this service, or to these sites' routers. `field` is its path in the file, for errors.

    Protocol and ports are the responder's, as in a document's pair; `label` tells it, in pair ids, from other permits
    between the same ends.
    """

    field: str
    ends: tuple[End, ...]
    service: Service | None
    routers: tuple[str, ...]
    starts: Literal["from", "to", "either"]
    class_: str
    protocol: str | None
    ports: tuple[str, ...]
    label: str
    log: bool


@dataclass(frozen=True)
class Network:
    """One network.yaml. `lines` (dotted field -> line) is for errors that only show later."""

    name: str
    overlay: Subnet
    controllers: tuple[str, ...]
    hubs: tuple[Hub, ...]
    branches: tuple[Site, ...]
    services: tuple[Service, ...]
    permits: tuple[Permit, ...]
    classes: Mapping[str, document.Class]
    ipsec: document.Ipsec
    policy: document.Policy
    canaries: tuple[str, ...]
    lifetime_days: int
    on_expiry: Literal["keep", "block"]
    source: str = field(compare=False)
    lines: Mapping[str, int] = field(compare=False, repr=False)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Hubs first, in the file's order."""
        return (*self.hubs, *self.branches)

    def error_at(self, field: str, reason: str) -> NetworkError:
        """An error at a field that the file has."""
        return NetworkError(self.source, self.lines[field], field, reason)

    def error(self, site: Site, path: str, reason: str) -> NetworkError:
        """An error in a site's document, put where the file says it, as nearly as its field names are the same."""
        # What is written once for all sites is found under its own name: policy.failback_s, probe.misses.
        for whole in (f"{site.field}.{path}", path, path[path.find("probe.") :]):
            if whole in self.lines:
                return NetworkError(self.source, self.lines[whole], whole, reason)
        nearest = f"{site.field}.{path}"
        while nearest not in self.lines:
            nearest = nearest.rpartition(".")[0]
        return NetworkError(self.source, self.lines[nearest], f"{site.field}.{path}", reason)


def identity(site: str, network: str, generation: int = 1) -> str:
    """The name in a site's certificate, by which peers and the controller know it. A box that takes another's place has
    a name of its own, so that no peer takes the other for it."""
    return f"{site}.{network}.cpe" if generation == 1 else f"g{generation}.{site}.{network}.cpe"
