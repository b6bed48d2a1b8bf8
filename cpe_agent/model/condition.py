"""How does this site fare, in words that a person at the rack can act on?

Conditions are named, timestamped facts with a reason; the status report is what `cpe-agent status` prints, what the
metrics are made from, and what the controller will be told.
"""

from __future__ import annotations

from enum import Enum

import msgspec


class Severity(Enum):
    OK = "ok"
    DEGRADED = "degraded"
    DOWN = "down"


class Condition(msgspec.Struct, frozen=True, order=True):
    """`type` is CamelCase and says what is wrong (DocumentRejected, PathDown). `since` is wall time, seconds."""

    type: str
    subject: str
    reason: str
    severity: Severity = Severity.DEGRADED
    since: float = 0.0


class PathReport(msgspec.Struct, frozen=True):
    """A path as it is: state is up, down or unknown; rtt, jitter None until measured. Figures are those of the present
    window (`core.window`)."""

    path: str
    uplink: str
    peer: str
    endpoint: str
    state: str
    ike: str
    rtt_ms: float | None
    jitter_ms: float | None
    loss_percent: float
    mtu: int | None
    ready: bool
    bundles: tuple[str, ...]
    bytes_in: int
    bytes_out: int


class BundleReport(msgspec.Struct, frozen=True):
    """A bundle, the pairs in it, the path it should use and (installed) whether its CHILD_SA is really there. `held_s`:
    for so long it is not moved for the sake of something better (the hold-down after a move)."""

    name: str
    pairs: tuple[str, ...]
    active_path: str | None
    installed: bool
    moves: dict[str, int]
    held_s: float = 0.0


class ServiceReport(msgspec.Struct, frozen=True):
    """A probed server: for which pair, how it is asked, whether it answers (answering, silent, unknown), behind
    whom."""

    pair: str
    bundle: str
    server: str
    state: str
    peer: str | None


class UplinkReport(msgspec.Struct, frozen=True):
    """An uplink as found. `up`: it leads somewhere. `bytes_total`: counted ever, both ways; `used_bytes`: in the budget
    month that began on `month`; `remaining_bytes`: of its monthly bytes (None: it has no cap), never below 0; `budget`:
    free, near or spent. `overhead_bytes`: what the agent itself has spent since it started."""

    name: str
    kind: str
    interface: str
    up: bool
    address: str | None
    gateway: str | None
    bytes_total: int | None = None
    used_bytes: int | None = None
    remaining_bytes: int | None = None
    budget: str | None = None
    month: str | None = None
    overhead_bytes: int | None = None


class PeerReport(msgspec.Struct, frozen=True):
    """On a hub: a branch that dials us, and the IKE_SAs it has here."""

    name: str
    ike_sas: int
    children: int
    bytes_in: int
    bytes_out: int


class TargetReport(msgspec.Struct, frozen=True):
    """One target of the data plane: in sync with what is wanted, and how often it was found altered."""

    name: str
    in_sync: bool
    drift_total: int
    last_success: float
    error: str


# What a nurse does not feel, what a call survives, what people telephone about.
OUTAGE_BOUNDS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)


class Outages(msgspec.Struct, frozen=True):
    """How many outages of bundles have ended since the agent started: `counts` of those up to each of `OUTAGE_BOUNDS_S`
    (and longer than the one before), the last of those that were longer than all; `sum_s` of their lengths."""

    counts: tuple[int, ...] = (0,) * (len(OUTAGE_BOUNDS_S) + 1)
    sum_s: float = 0.0


class DrainAnswer(msgspec.Struct, frozen=True):
    """What became of `drain` or `undrain`. `changed`: it was not so before. `serving`: the ready addresses answer now;
    `in_the_way`: why not, apart from `drained`. `warning`: what the operator must know, or ""."""

    drained: bool
    changed: bool
    serving: bool
    in_the_way: tuple[str, ...] = ()
    warning: str = ""


class RollbackAnswer(msgspec.Struct, frozen=True):
    """What became of `rollback`: the (epoch, version) that was left and the one that is in force now. `warning`: what
    the operator must know, or ""."""

    left: tuple[int, int]
    in_force: tuple[int, int]
    warning: str = ""


class Status(msgspec.Struct, frozen=True):
    """The whole report. Times are wall time in seconds."""

    site: str
    role: str
    agent_version: str
    backend: str
    started: float
    now: float
    document_epoch: int | None
    document_version: int | None
    document_issued: float | None
    document_expires: float | None
    controller_last_contact: float | None
    uplinks: tuple[UplinkReport, ...]
    paths: tuple[PathReport, ...]
    bundles: tuple[BundleReport, ...]
    peers: tuple[PeerReport, ...]
    targets: tuple[TargetReport, ...]
    dropped_packets: dict[str, int]
    pair_packets: dict[str, int]
    pair_bytes: dict[str, int]
    conditions: tuple[Condition, ...]
    document_confirmed: bool = True
    clock_trusted: bool = True
    certificate_expires: float | None = None
    services: tuple[ServiceReport, ...] = ()
    outages: Outages | None = None

    @property
    def severity(self) -> Severity:
        """The worst of its conditions."""
        found = {condition.severity for condition in self.conditions}
        return next((s for s in (Severity.DOWN, Severity.DEGRADED) if s in found), Severity.OK)
