"""What can the controller ask of a site?

The wire format: the structures of a document, and the bytes that they become. The controller builds the same ones.
Every IP value is a string: `ipaddress` would take the integer 5 for 0.0.0.5. Bytes become a document again in
`document_check`, which also says what the types cannot.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
from typing import Literal

import msgspec

SCHEMA = 1
# A hub's document for 10,000 branches is about 3 MB; twice that is a mistake or an attack.
MAX_BYTES = 8 * 1024 * 1024
# A path that loses more than this is bad for everybody: the limit of a class that names none.
HEAVY_LOSS_PERCENT = 5.0
# The port that `management.metrics_from` opens.
METRICS_PORT = 9273
# What is signed is this line and the document's exact bytes, so that no other signed thing can pass for a document.
SIGNATURE_CONTEXT = b"cpe-document-v1\n"
SIGNATURE_HEADER = "Cpe-Signature"
KEY_ID_HEADER = "Cpe-Key-Id"

# Names become parts of VICI connection names ("uplink.peer.endpoint"): no dot, no space, no upper case.
NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?\Z")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class DocumentError(Exception):
    """A document that cannot be obeyed: `path` is the field ("" for the whole), `reason` says what is wrong with it."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.path = path
        self.reason = reason


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Frozen, exact: an unknown field is an error, a default is left out on the wire."""


class Endpoint(_Part, frozen=True):
    """One public address (v4, v6 or name) of a hub, and the inner addresses that answer behind it."""

    name: str
    address: str
    probe_address: str
    ready_address: str


class Lan(_Part, frozen=True):
    """A subnet of this site: on `interface`, or behind the LAN router `via`; `check` is an address that must answer."""

    name: str
    subnet: str
    interface: str | None = None
    via: str | None = None
    check: str | None = None


class Probing(_Part, frozen=True):
    """How often a path is probed while it carries traffic and while it does not, and how many misses mean down."""

    active_interval_ms: int = 100
    standby_interval_ms: int = 1000
    misses: int = 3


class Uplink(_Part, frozen=True):
    """A link to the internet. The lower `priority` is the better. `interface` defaults to the uplink's name."""

    kind: Literal["wired", "cellular"]
    priority: int
    path_address: str
    interface: str | None = None
    mtu: int | None = None
    monthly_bytes: int | None = None
    budget_day: int = 1
    probe: Probing = Probing()


class Peer(_Part, frozen=True):
    """The other end: who it proves to be, whether we dial it, where (`endpoints`), and what lies behind it (`lans`)."""

    identity: str
    dial: bool
    site_address: str
    lans: tuple[str, ...]
    port: int = 4500
    endpoints: tuple[Endpoint, ...] = ()
    path_addresses: tuple[str, ...] = ()


class ServiceProbe(_Part, frozen=True):
    """A probe of the server behind a pair. `address` may be left out where `remote` is a single host: it is that."""

    kind: Literal["icmp", "tcp"] = "icmp"
    port: int | None = None
    address: str | None = None


class Pair(_Part, frozen=True):
    """Who may talk: (local subnet, remote subnet[, protocol, ports of the responder]), and who may start.

    `peers` are the sites that can serve it, best first. `protocol` is tcp, udp, icmp or a number.
    """

    id: str
    local: str
    remote: str
    initiator: Literal["local", "remote", "either"]
    peers: tuple[str, ...]
    protocol: str | None = None
    ports: tuple[str, ...] = ()
    class_: str = msgspec.field(default="default", name="class")
    probe: ServiceProbe | None = None
    log: bool = False


class Class(_Part, frozen=True):
    """The service level that a kind of traffic needs of a path, and which uplinks it may use.

    `latency_ms` (round trip) and `jitter_ms`: not asked if left out. `loss_percent`: `HEAVY_LOSS_PERCENT` if left out,
    also for pairs without a class. `metered`: `always` uses metered uplinks (cellular, or with `monthly_bytes`) like
    any other; `budget` leaves one that is near its `monthly_bytes` if it can, and does without one that has spent them;
    `never` does not use them at all. `uplinks`: names or kinds of uplinks, best first, that this class prefers to their
    priorities; those not named come after these, in the order of their priorities.
    """

    latency_ms: int | None = None
    jitter_ms: int | None = None
    loss_percent: float | None = None
    metered: Literal["always", "budget", "never"] = "always"
    uplinks: tuple[str, ...] = ()


class SigningKey(_Part, frozen=True):
    """An Ed25519 public key (base64 of its 32 bytes) that may sign documents."""

    id: str
    key: str


class Trust(_Part, frozen=True):
    """Who may sign documents, and which authorities (PEM) vouch for peers."""

    signing_keys: tuple[SigningKey, ...] = ()
    cas: tuple[str, ...] = ()


class Ipsec(_Part, frozen=True):
    """One suite for the whole network; times in seconds."""

    suite: Literal["aes256gcm-ecp256", "aes128gcm-ecp256"] = "aes256gcm-ecp256"
    dpd_s: int = 20
    rekey_s: int = 14400
    max_age_s: int = 86400


class Policy(_Part, frozen=True):
    """How patient the site is: seconds of good health before failback, seconds to confirm a new document."""

    failback_s: int = 60
    confirm_s: int = 120


class Management(_Part, frozen=True):
    """Which subnets may reach the router itself, and which time servers (addresses or names) it asks; none: those that
    its system has by itself."""

    metrics_from: tuple[str, ...] = ()
    ssh_from: tuple[str, ...] = ()
    routing_from: tuple[str, ...] = ()
    time_servers: tuple[str, ...] = ()


class Document(_Part, frozen=True):
    """All that one site needs to know. Ordered by (epoch, version)."""

    schema: int
    network: str
    site: str
    role: Literal["hub", "branch"]
    epoch: int
    version: int
    issued_at: dt.datetime
    expires_at: dt.datetime
    site_address: str
    lans: tuple[Lan, ...]
    uplinks: dict[str, Uplink]
    peers: dict[str, Peer]
    pairs: tuple[Pair, ...]
    on_expiry: Literal["keep", "block"] = "keep"
    controllers: tuple[str, ...] = ()
    trust: Trust = Trust()
    drain: bool = False
    endpoints: tuple[Endpoint, ...] = ()
    classes: dict[str, Class] = {}
    ipsec: Ipsec = Ipsec()
    policy: Policy = Policy()
    management: Management = Management()
    hub_nat: bool = False
    allow_mass_removal: bool = False

    @property
    def order(self) -> tuple[int, int]:
        return (self.epoch, self.version)


_encoder = msgspec.json.Encoder(order="deterministic")


def encode(document: Document) -> bytes:
    """The bytes that are signed and served: the same document always gives the same bytes."""
    return _encoder.encode(document)
