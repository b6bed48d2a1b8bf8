"""What do the loops share? One Cell per fact, and who writes it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cpe_agent.cell import Cell
from cpe_agent.core.budget import Budget
from cpe_agent.core.certificate import Life
from cpe_agent.core.health import Track
from cpe_agent.core.pathmtu import Target
from cpe_agent.core.steer import Steering
from cpe_agent.model.condition import Condition, Outages, ServiceReport
from cpe_agent.model.confirmation import Rejection
from cpe_agent.model.dataplane import Dataplane, Path
from cpe_agent.model.document import Document
from cpe_agent.model.observed import Charon, Links
from cpe_agent.model.usage import Usage


class Plan(msgspec.Struct, frozen=True):
    """A document, compiled for the links as they are, and what stands in its way."""

    document: Document
    dataplane: Dataplane
    conditions: tuple[Condition, ...]
    link_up: dict[str, bool]  # by uplink name: has carrier, and leads anywhere
    interfaces: dict[str, str] = {}  # likewise


class Verdicts(msgspec.Struct, frozen=True):
    """Path health as steering needs it, and the IKE_SAs (unique ids) that probes have judged dead. `tracks` are always
    the latest; `revision` grows when something in them has changed that others act on."""

    tracks: Mapping[Path, Track] = {}
    dead: frozenset[int] = frozenset()
    revision: int = 0


class TargetState(msgspec.Struct, frozen=True):
    """How one target of the data plane fares. `last_success`: wall time."""

    in_sync: bool = False
    drift_total: int = 0
    last_success: float = 0.0
    error: str = ""


class ControllerState(msgspec.Struct, frozen=True):
    """When the controller was last heard (wall time), and why not if not."""

    last_contact: float | None = None
    error: str = ""


class Standing(msgspec.Struct, frozen=True):
    """How firmly the document in force stands. `since`: when it was put in force (wall time). `pending`: it is on
    trial, and `missing` what it lacks still. `refused`: what the controller offers instead and may not be obeyed.
    `reverted`: the newer one that was given up. `store_error`: why a restart would not find all of this."""

    since: float = 0.0
    pending: bool = False
    missing: str = ""
    refused: Rejection | None = None
    reverted: Rejection | None = None
    store_error: str = ""


class Readiness(msgspec.Struct, frozen=True):
    """Whether a hub's ready addresses may answer, and why not."""

    ready: bool
    conditions: tuple[Condition, ...] = ()


class Services(msgspec.Struct, frozen=True):
    """What probes of servers say. `failing`: by bundle, the peers behind which all its probed servers fail although
    they answer behind another. `trials`: by bundle, the path on which its servers are being tried besides the active
    one. `reports`: each server."""

    failing: Mapping[str, frozenset[str]] = {}
    trials: Mapping[str, Path] = {}
    reports: tuple[ServiceReport, ...] = ()


class Cells:
    """One writer each: document, standing (loops.confirm); controller (loops.follow); certificate (loops.renew);
    clock_floor (loops.clock); links (loops.links); readiness (loops.readiness); plan (loops.planning); charon, targets,
    in_hand, duplicates, silent (loops.reconcile); verdicts (loops.probing); path_mtus (loops.pathmtu); broken
    (loops.ipsec); active, moves, steering, measure, outages (loops.steering); usages, budgets, overhead
    (loops.metering); own_uplink (loops.own_way); services (loops.services); taken_out (loops.drill); charon_care
    (loops.charon_care)."""

    def __init__(self) -> None:
        self.document: Cell[Document | None] = Cell(None)
        self.standing: Cell[Standing] = Cell(Standing())
        self.controller: Cell[ControllerState] = Cell(ControllerState())
        self.certificate: Cell[Life | None] = Cell(None)
        self.clock_floor: Cell[float | None] = Cell(None)  # None: the system's clock is believed
        self.links: Cell[Links | None] = Cell(None)
        self.readiness: Cell[Readiness | None] = Cell(None)
        self.plan: Cell[Plan | None] = Cell(None)
        self.charon: Cell[Charon | None] = Cell(None)
        self.duplicates: Cell[tuple[Condition, ...]] = Cell(())
        self.targets: Cell[dict[str, TargetState]] = Cell({})
        # The plan that targets speak of: a newer one waits until what is under way has been done.
        self.in_hand: Cell[Plan | None] = Cell(None)
        self.verdicts: Cell[Verdicts] = Cell(Verdicts())
        # IKE_SAs (unique ids) that lack in the kernel what they need.
        self.broken: Cell[frozenset[int]] = Cell(frozenset())
        self.path_mtus: Cell[dict[Target, int]] = Cell({})
        self.active: Cell[dict[str, Path | None]] = Cell({})
        self.moves: Cell[dict[tuple[str, str], int]] = Cell({})
        # All that steering remembers, for reports; and which paths it wants probed at the quick pace.
        self.steering: Cell[Steering] = Cell(Steering())
        self.measure: Cell[frozenset[Path]] = Cell(frozenset())
        self.outages: Cell[Outages] = Cell(Outages())
        self.silent: Cell[tuple[Condition, ...]] = Cell(())
        self.budgets: Cell[dict[str, Budget]] = Cell({})
        self.usages: Cell[dict[str, Usage]] = Cell({})
        self.overhead: Cell[dict[str, int]] = Cell({})
        self.own_uplink: Cell[str | None] = Cell(None)
        self.services: Cell[Services] = Cell(Services())
        self.taken_out: Cell[frozenset[Path]] = Cell(frozenset())
        # What is wrong with charon itself, as a process.
        self.charon_care: Cell[tuple[Condition, ...]] = Cell(())
