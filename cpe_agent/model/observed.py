"""What do the kernel and charon hold, and what did the probes say?

Filled by the edges, read by core. Nothing here is remembered from what we asked for.
"""

from __future__ import annotations

from enum import Enum

import msgspec


class LinkAddress(msgspec.Struct, frozen=True, order=True):
    """An address with its prefix length."""

    address: str
    prefix_length: int


class Link(msgspec.Struct, frozen=True, order=True):
    """A network interface. `up`: administratively up and with carrier. `gateways`: of its default routes, best first
    ("" for a default route without gateway, as on ppp and wwan)."""

    name: str
    up: bool
    addresses: tuple[LinkAddress, ...] = ()
    gateways: tuple[str, ...] = ()


class Links(msgspec.Struct, frozen=True):
    """Every interface of the router, by name."""

    by_name: dict[str, Link] = {}


# charon counts whole seconds: a CHILD_SA is young for one second at least.
YOUNG_S = 2


class ChildSa(msgspec.Struct, frozen=True):
    """An installed CHILD_SA. Selectors as charon prints them. Bytes and packets since it was installed, as they are
    inside. `spi_in`: what packets for it carry here (0: not known). `young`: installed less than `YOUNG_S` ago."""

    name: str
    unique_id: int
    state: str
    local_ts: tuple[str, ...]
    remote_ts: tuple[str, ...]
    bytes_in: int = 0
    bytes_out: int = 0
    packets_in: int = 0
    packets_out: int = 0
    spi_in: int = 0
    spi_out: int = 0
    young: bool = False

    @property
    def installed(self) -> bool:
        # A child under rekeying still carries traffic.
        return self.state in ("INSTALLED", "REKEYING", "REKEYED")


class CharonSigns(msgspec.Struct, frozen=True):
    """Of which use charon is. `answers`: ours does. `listens`: somebody has UDP 4500. `strangers`: other IKE daemons
    that run here, by what gives them away, in words."""

    answers: bool
    listens: bool
    strangers: tuple[str, ...] = ()


class KernelSa(msgspec.Struct, frozen=True, order=True):
    """An SA of ESP in UDP that the kernel holds. `added`: wall time. `mark`: what it marks decrypted packets with."""

    source: str
    destination: str
    spi: int
    reqid: int
    source_port: int
    destination_port: int
    added: float
    mark: int = 0


class KernelPolicy(msgspec.Struct, frozen=True, order=True):
    """An IPsec policy that the kernel holds: ports and protocol 0 are any, reqid 0 is one without ESP, `spi` 0 says
    nothing. `selector` is the kernel's own form of what it selects."""

    direction: str
    source: str
    destination: str
    protocol: int
    source_port: int
    destination_port: int
    priority: int
    reqid: int = 0
    spi: int = 0
    mark: int = 0
    mask: int = 0
    selector: bytes = b""


class KernelIpsec(msgspec.Struct, frozen=True):
    """Everybody's SAs and policies."""

    sas: frozenset[KernelSa] = frozenset()
    policies: frozenset[KernelPolicy] = frozenset()


class IkeSa(msgspec.Struct, frozen=True):
    """An IKE_SA known to charon, by unique id. `busy`: charon has a task of ours under way in it (set-up, a child);
    `creating`: a new child."""

    connection: str
    unique_id: int
    state: str
    initiator: bool
    remote_id: str = ""
    remote_host: str = ""
    busy: bool = False
    children: tuple[ChildSa, ...] = ()
    creating: bool = False

    @property
    def established(self) -> bool:
        return self.state in ("ESTABLISHED", "REKEYING", "REKEYED")


class LoadedChild(msgspec.Struct, frozen=True, order=True):
    """A child configuration as charon reports it."""

    name: str
    local_ts: tuple[str, ...]
    remote_ts: tuple[str, ...]


class Charon(msgspec.Struct, frozen=True):
    """charon's own account: loaded `cpe-` connections, IKE_SAs of those, and whether our key and authorities are in."""

    connections: dict[str, tuple[LoadedChild, ...]] = {}
    ike_sas: tuple[IkeSa, ...] = ()
    credentials_loaded: bool = False


class Glance(msgspec.Struct, frozen=True):
    """Of charon's account only the names of our loaded connections, and whether it holds our key and no other."""

    connections: frozenset[str] = frozenset()
    key_loaded: bool = False

    def differs(self, known: Charon) -> bool:
        """Has something been loaded, unloaded or cleared since `known` was read?"""
        return self.connections != known.connections.keys() or self.key_loaded < known.credentials_loaded


class EventKind(Enum):
    IKE_UP = "ike_up"
    IKE_DOWN = "ike_down"
    CHILD_UP = "child_up"
    CHILD_DOWN = "child_down"


class CharonEvent(msgspec.Struct, frozen=True):
    """charon says that something became of one of our connections. `spi_in`: of a child that came up."""

    kind: EventKind
    connection: str
    unique_id: int
    child: str = ""
    spi_in: int = 0


class Reply(msgspec.Struct, frozen=True):
    """An echo reply to a probe of ours, and how long it took."""

    target: str  # the address that was asked
    source: str
    sequence: int
    rtt_s: float


class LinkBytes(msgspec.Struct, frozen=True):
    """An interface's own counters, from its creation on. An interface that is made anew has another `index`."""

    index: int
    received: int
    sent: int


class LinkCounters(msgspec.Struct, frozen=True):
    """Every interface's counters by name, and which boot of the machine they are of."""

    boot: str
    by_name: dict[str, LinkBytes] = {}
