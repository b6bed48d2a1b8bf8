"""What should the kernel and charon hold?

The output of `core.compile`, the input of the three diffs (tunnels, firewall, routes). Everything is plain text and
numbers, in the canonical form in which nftables, netlink and VICI give it back, so that wanted and observed compare
with ==. Names here are the only ones the agent ever touches: table `inet cpe_agent`, connections `cpe-...`, one route
protocol number, one band of rule priorities and tables.
"""

from __future__ import annotations

import hashlib
from enum import Enum

import msgspec

from cpe_agent.model.document import Class

TABLE = "cpe_agent"
CONNECTION_PREFIX = "cpe-"
PROBE_CHILD = "probe"
TRAFFIC_CHILD = "traffic"
TRIAL_CHILD = "trial"
# Sets of uplinks whose elements count IKE and NAT keepalives.
IKE_BYTES_IN = "spent_on_ike_in"
IKE_BYTES_OUT = "spent_on_ike_out"

# Not used by the kernel or by any daemon in iproute2's rt_protos.
ROUTE_PROTOCOL = 155
# Below 220, where charon's own rule would stand, and above the local table (0).
PRIORITY_UPLINK_IN = 110
PRIORITY_UPLINK_SHUT = 111
PRIORITY_OVERLAY = 120
PRIORITY_OVERLAY_SHUT = 121
PRIORITY_LAN_IN = 130
PRIORITY_LAN_SHUT = 131
PRIORITY_UPLINK_FROM = 140
# Before there is a document: the same, of links that look like uplinks.
PRIORITY_FOUND_FROM = 145
# What the router itself sends, and has not chosen an address for: where the kernel knows a way better than a default
# route, that; else by the best uplink; else (nobody knows which is) whatever the kernel's default route is.
PRIORITY_OWN_NEAR = 150
PRIORITY_OWN_FAR = 160
# What leads into tunnels; what may be reached from an uplink (nothing); the router's own way out; then one table per
# uplink.
OVERLAY = 15500
INBOUND = 15501
OWN = 15502
# Behind OVERLAY and behind INBOUND, for the time in which somebody has emptied these: protected subnets, and
# everything, lead nowhere.
OVERLAY_SHUT = 15503
INBOUND_SHUT = 15504
UPLINK_TABLES = 15510
FOUND_TABLES = 15600
# In the overlay table the way through IPsec comes first; if its device is gone, the same subnet is unreachable.
METRIC_TUNNEL = 100
METRIC_NOWHERE = 1000
# A hub's routes to the branches that it carries are in the kernel's main table, for routing daemons to redistribute.
# Their metric is behind all that anybody else has there.
MAIN = 254
METRIC_RETURN = 20000
# Ours among the kernel's IPsec policies; charon's are all below 800,000, and the lowest number decides.
BLOCK_PRIORITY = 900_155


class Backend(Enum):
    """Who does ESP: the kernel (XFRM; routers) or charon's kernel-libipsec over a TUN (containers)."""

    KERNEL = "kernel"
    USERLAND = "userland"

    @property
    def device(self) -> str:
        """The device that protected subnets are routed to: IPsec takes the packet there, or nobody does."""
        return "ipsec0" if self is Backend.USERLAND else "cpe0"

    @property
    def came_through(self) -> str:
        """nft: this packet came out of an IPsec tunnel."""
        return 'iifname "ipsec0"' if self is Backend.USERLAND else "meta ipsec exists"

    @property
    def goes_through(self) -> str:
        """nft: this packet will leave through an IPsec tunnel."""
        return 'oifname "ipsec0"' if self is Backend.USERLAND else "rt ipsec exists"


class Path(msgspec.Struct, frozen=True, order=True):
    """(uplink, peer, endpoint), all by name: one IKE_SA pinned to that uplink's address."""

    uplink: str
    peer: str
    endpoint: str

    def __str__(self) -> str:
        return f"{self.uplink}.{self.peer}.{self.endpoint}"

    @classmethod
    def parse(cls, text: str) -> Path | None:
        """The reverse of str(); None if `text` names no path."""
        parts = text.split(".")
        return cls(*parts) if len(parts) == 3 and all(parts) else None


class Child(msgspec.Struct, frozen=True, order=True):
    """A child configuration. Selectors as charon prints them: "10.1.0.0/24" or "10.1.0.0/24[tcp/443]"."""

    name: str
    local_ts: tuple[str, ...]
    remote_ts: tuple[str, ...]
    unique_marks: bool = False


class Ike(msgspec.Struct, frozen=True):
    """What an IKE_SA is negotiated with: a change here takes a new IKE_SA. Times in seconds, 0 for never."""

    local_addrs: tuple[str, ...]
    remote_addrs: tuple[str, ...]
    remote_port: int
    local_id: str
    remote_id: str
    proposal: str
    esp_proposal: str
    dpd_s: int
    rekey_s: int
    reauth_s: int


class Connection(msgspec.Struct, frozen=True):
    """A charon connection. `stem` is the path (we dial) or the peer's site name (we answer)."""

    stem: str
    ike: Ike
    children: tuple[Child, ...]

    @property
    def name(self) -> str:
        """The settings' digest is part of the name, so an IKE_SA made with other settings is told apart by name."""
        digest = hashlib.sha256(msgspec.json.encode(self.ike)).hexdigest()[:8]
        return f"{CONNECTION_PREFIX}{self.stem}-{digest}"

    @property
    def path(self) -> Path | None:
        return Path.parse(self.stem)


def stem_of(connection_name: str) -> str:
    """The stem in a connection's name: "cpe-wired.centre.a-0f1e2d3c" -> "wired.centre.a"."""
    return connection_name.removeprefix(CONNECTION_PREFIX).rpartition("-")[0]


class Tunnels(msgspec.Struct, frozen=True):
    """What charon should hold. `active`: for each dialled path the traffic children that belong on it now.

    `dead`: unique ids of IKE_SAs that the probes have judged dead: to be replaced, not trusted. `fallen`: paths that
    answer no probes. `stale`: unique ids of what a dialler has left over here: to be ended. `remake`: of CHILD_SAs to
    be ended and started anew. `barred`: traffic children that belong nowhere now.
    """

    connections: tuple[Connection, ...] = ()
    active: dict[Path, frozenset[str]] = {}
    dead: frozenset[int] = frozenset()
    fallen: frozenset[Path] = frozenset()
    stale: frozenset[int] = frozenset()
    remake: frozenset[int] = frozenset()
    barred: frozenset[str] = frozenset()


class NftSet(msgspec.Struct, frozen=True, order=True):
    """A named set. `type` and `flags` as nft writes them; elements canonical (no /32, numeric protocols)."""

    name: str
    type: str
    flags: str = ""
    counter: bool = False
    elements: frozenset[str] = frozenset()


class NftChain(msgspec.Struct, frozen=True, order=True):
    """A chain. `hook` is its first line as `nft list` prints it ("" for a regular chain); rules likewise."""

    name: str
    hook: str
    rules: tuple[str, ...]


class Ruleset(msgspec.Struct, frozen=True):
    """Table `inet cpe_agent`, whole: sets and chains sorted by name."""

    sets: tuple[NftSet, ...]
    chains: tuple[NftChain, ...]


class Rule(msgspec.Struct, frozen=True, order=True):
    """A routing rule: from `source` (address or "") or entering by `iif` (name or ""), look in `table`; `near`: its
    default routes do not count."""

    family: int  # 4 or 6
    priority: int
    table: int
    iif: str = ""
    source: str = ""
    near: bool = False


class Route(msgspec.Struct, frozen=True, order=True):
    """A route. No `device`: unreachable. `gateway` "" for directly connected. `mtu` 0: the device's."""

    table: int
    destination: str  # "10.1.0.0/24"; default is "0.0.0.0/0" or "::/0"
    device: str = ""
    gateway: str = ""
    metric: int = METRIC_NOWHERE
    mtu: int = 0


class BlockPolicy(msgspec.Struct, frozen=True, order=True):
    """An IPsec policy of the kernel that lets nothing pass unless charon has one for it. `direction`: in, fwd, out."""

    direction: str
    source: str  # "10.1.0.0/24"; anywhere is "0.0.0.0/0" or "::/0"
    destination: str


class Routes(msgspec.Struct, frozen=True):
    """Routing that is ours, addresses on `lo` that are ours, and whether the router forwards.

    `lenient`: connection tracking takes a TCP segment that lies beyond what it has seen of its flow for one of that
    flow. A hub's must: what is carried to the other hub and comes back has gone on meanwhile, and would be "invalid".
    """

    addresses: frozenset[str] = frozenset()  # "10.255.0.1/32"
    rules: frozenset[Rule] = frozenset()
    routes: frozenset[Route] = frozenset()
    devices: frozenset[str] = frozenset()  # dummy devices
    forwarding: frozenset[int] = frozenset()  # IP versions that forward: 4, 6
    policies: frozenset[BlockPolicy] = frozenset()  # kernel backend
    lenient: bool = False  # wanted only of hubs; where it is not wanted it is somebody else's matter


class Probe(msgspec.Struct, frozen=True, order=True):
    """How a path is probed: echo from `source` to `probe_address` and `ready_address`, inside the path. `metered`: each
    byte is paid for."""

    path: Path
    source: str
    probe_address: str
    ready_address: str
    active_interval_s: float
    standby_interval_s: float
    misses: int
    metered: bool = False


class Bundle(msgspec.Struct, frozen=True):
    """Pairs that move as one, in the traffic CHILD_SA `child`, on one of `paths` (best first). `needs`: what their
    class asks of a path."""

    name: str
    child: str
    paths: tuple[Path, ...]
    pairs: tuple[str, ...]
    needs: Class = Class()


class Service(msgspec.Struct, frozen=True, order=True):
    """A server behind a pair, and how this router asks it: from its own address `source`, which the pair admits. `port`
    0: by echo."""

    bundle: str
    pair: str
    source: str
    server: str
    port: int = 0

    @property
    def asked(self) -> str:
        """In words: "10.10.0.10 (tcp 443)"."""
        return f"{self.server} ({f'tcp {self.port}' if self.port else 'echo'})"


class Dataplane(msgspec.Struct, frozen=True):
    """All of it."""

    tunnels: Tunnels
    ruleset: Ruleset
    routes: Routes
    probes: tuple[Probe, ...]
    bundles: tuple[Bundle, ...]
    services: tuple[Service, ...] = ()
