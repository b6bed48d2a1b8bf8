"""How does this site fare? Puts a `Status` together from what is observed, and logs conditions as they come and go."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

import msgspec
import trio

from cpe_agent import __version__
from cpe_agent.core import certificate, conditions, heartbeat, metering, overhead
from cpe_agent.core.carried import carrying
from cpe_agent.core.health import Track
from cpe_agent.core.path_conditions import path_conditions
from cpe_agent.core.pathmtu import Target
from cpe_agent.core.uplinks import interfaces, resolve
from cpe_agent.core.wanted_pairs import PairSets, pair_sets
from cpe_agent.log import get_logger
from cpe_agent.loops.cells import Cells, Plan
from cpe_agent.loops.probing import Probing, established_ikes
from cpe_agent.model.condition import (
    BundleReport,
    Condition,
    PathReport,
    PeerReport,
    Status,
    TargetReport,
    UplinkReport,
)
from cpe_agent.model.dataplane import Backend, Path, stem_of
from cpe_agent.model.document import Document
from cpe_agent.model.observed import Charon, Links
from cpe_agent.ports import EdgeError, FirewallPort

log = get_logger()

TICK_S = 1.0


class Reporter:
    """Builds reports; remembers since when each condition holds."""

    def __init__(self, cells: Cells, probing: Probing, firewall: FirewallPort, site: str, backend: Backend) -> None:
        self._cells = cells
        self._probing = probing
        self._firewall = firewall
        self._site = site
        self._backend = backend
        self._started = time.time()
        self._since: dict[tuple[str, str], float] = {}
        # As last looked at, for who only wants a line of it.
        self._latest: tuple[Condition, ...] = ()
        # What the document's pairs came to, and whose each counter is.
        self._pairs = PairSets()
        self._pair_of: dict[str, str] = {}
        self._ike = overhead.Overhead()

    async def run(self) -> None:
        """For ever: log conditions as they come and go."""
        while True:
            self._conditions()
            await trio.sleep(TICK_S)

    async def status(self) -> Status:
        """The report as of now."""
        cells = self._cells
        plan, charon = cells.plan.value, cells.charon.value or Charon()
        document = cells.document.value
        # What was in sync with the document or the plan before is not known to be so with this one.
        in_hand = cells.in_hand.value
        planned = (plan.document if plan else None) is document and (in_hand is plan or in_hand == plan)
        drops, packets, volumes = await self._counters(document)
        return Status(
            site=self._site,
            role=document.role if document else "unknown",
            agent_version=__version__,
            backend=self._backend.value,
            started=self._started,
            now=time.time(),
            document_epoch=document.epoch if document else None,
            document_version=document.version if document else None,
            document_issued=document.issued_at.timestamp() if document else None,
            document_expires=document.expires_at.timestamp() if document else None,
            controller_last_contact=cells.controller.value.last_contact,
            uplinks=self._uplinks(document, cells.links.value or Links()),
            paths=self._paths(charon),
            bundles=self._bundles(plan, charon),
            peers=_peers(document, charon),
            targets=tuple(
                TargetReport(name, state.in_sync and planned, state.drift_total, state.last_success, state.error)
                for name, state in sorted(cells.targets.value.items())
            ),
            dropped_packets=drops,
            pair_packets=packets,
            pair_bytes=volumes,
            conditions=self._conditions(),
            clock_trusted=cells.clock_floor.value is None,
            document_confirmed=not cells.standing.value.pending,
            certificate_expires=life.not_after_s if (life := cells.certificate.value) is not None else None,
            services=cells.services.value.reports,
            outages=cells.outages.value,
        )

    @property
    def tracks(self) -> Mapping[Path, Track]:
        """How each path fares."""
        return self._probing.tracks

    def conditions(self) -> tuple[Condition, ...]:
        """Those that hold now, and since when."""
        return self._conditions()

    def line(self) -> str:
        """How the site fares, in a line, as of the last look."""
        document = self._cells.document.value
        return heartbeat.line(self._site, document.order if document else None, self._latest)

    def _conditions(self) -> tuple[Condition, ...]:
        cells = self._cells
        plan = cells.plan.value
        now = time.time()
        found = conditions.conditions(
            document=cells.document.value,
            bundles=plan.dataplane.bundles if plan else (),
            tracks=self._probing.tracks,
            active=cells.active.value,
            now=now,
            obstacles=self._obstacles(plan),
            target_errors={name: state.error for name, state in cells.targets.value.items()}
            | {"store": cells.standing.value.store_error},
            controller_error=cells.controller.value.error,
            rejected=refused.reason if (refused := cells.standing.value.refused) else "",
            services=cells.services.value.reports,
        )
        held = {(condition.type, condition.subject): condition for condition in found}
        for key in [key for key in self._since if key not in held]:
            log.info("condition_cleared", condition=key[0], subject=key[1])
            del self._since[key]
        for key, condition in held.items():
            if key not in self._since:
                log.warning("condition_raised", condition=key[0], subject=key[1], reason=condition.reason)
                self._since[key] = now
        self._latest = tuple(msgspec.structs.replace(c, since=self._since[key]) for key, c in sorted(held.items()))
        return self._latest

    def _obstacles(self, plan: Plan | None) -> tuple[Condition, ...]:
        """What is known elsewhere to be in the way: by compiling, by the checks of a hub, by its branches' IKE_SAs, by
        a document on trial or given up, what paths were measured to do."""
        cells, readiness = self._cells, self._cells.readiness.value
        standing = cells.standing.value
        return (
            *(plan.conditions if plan else ()),
            *(readiness.conditions if readiness else ()),
            *self._cells.duplicates.value,
            *certificate.conditions(self._cells.certificate.value, time.time()),
            *conditions.clock(self._cells.clock_floor.value, time.time()),
            *conditions.standing(standing.pending, standing.missing, standing.reverted),
            *self._cells.silent.value,
            *cells.charon_care.value,
            *(self._path_conditions(plan) if plan else ()),
            *(metering.conditions(plan.document.uplinks, cells.usages.value, cells.budgets.value) if plan else ()),
        )

    def _path_conditions(self, plan: Plan) -> tuple[Condition, ...]:
        bundles, failback_s = plan.dataplane.bundles, plan.document.policy.failback_s
        tracks, now = self._probing.tracks, trio.current_time()
        return path_conditions(self._cells.steering.value, bundles, tracks, failback_s, now)

    async def _counters(self, document: Document | None) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
        """(dropped packets by reason, packets by pair, bytes by pair)."""
        drops: Counter[str] = Counter()
        packets: Counter[str] = Counter()
        volumes: Counter[str] = Counter()
        pairs = pair_sets(document.pairs if document else (), self._pairs)
        if pairs is not self._pairs:
            self._pairs, self._pair_of = pairs, pairs.counter_names()
        try:
            counters = await self._firewall.counters()
        except EdgeError:
            return {}, {}, {}
        bound = interfaces(document, self._cells.links.value or Links()) if document else {}
        self._ike = overhead.step(self._ike, overhead.of_ike(counters, bound))
        for name, (count, volume) in counters.items():
            kind, _, rest = name.partition(" ")
            if kind == "drop":
                drops[rest] += count
            elif name in self._pair_of:
                packets[self._pair_of[name]] += count
                volumes[self._pair_of[name]] += volume
        return dict(drops), dict(packets), dict(volumes)

    def _uplinks(self, document: Document | None, links: Links) -> tuple[UplinkReport, ...]:
        if document is None:
            return ()
        bound = interfaces(document, links)
        usable = {uplink.name: uplink for uplink in resolve(document, links)[0]}
        probes = self._cells.overhead.value
        reports = []
        for name, asked in sorted(document.uplinks.items(), key=lambda item: (item[1].priority, item[0])):
            found = usable.get(name)
            address = next((a.address for _, a in sorted(found.addresses.items())), None) if found else None
            gateway = next((g or None for _, g in sorted(found.gateways.items())), None) if found else None
            usage, level = self._cells.usages.value.get(name), self._cells.budgets.value.get(name)
            used = usage.month_bytes if usage else None
            capped = asked.monthly_bytes is not None and used is not None
            reports.append(
                UplinkReport(
                    name,
                    asked.kind,
                    bound[name],
                    bool(found and found.leads_out),
                    address,
                    gateway,
                    bytes_total=usage.total_bytes if usage else None,
                    used_bytes=used,
                    remaining_bytes=max(0, (asked.monthly_bytes or 0) - (used or 0)) if capped else None,
                    budget=level.value if level else None,
                    month=usage.month if usage else None,
                    overhead_bytes=probes.get(name, 0) + self._ike.by_uplink.get(name, 0),
                )
            )
        return tuple(reports)

    def _paths(self, charon: Charon) -> tuple[PathReport, ...]:
        up = established_ikes(charon, set())
        carried: dict[Path, list[str]] = {}
        for bundle, path in self._cells.active.value.items():
            if path is not None:
                carried.setdefault(path, []).append(bundle)
        plan, measured = self._cells.plan.value, self._cells.path_mtus.value
        probes = plan.dataplane.probes if plan else ()
        sizes = {p.path: measured.get(Target(p.path.peer, p.source, p.probe_address)) for p in probes}
        reports = []
        for path, track in sorted(self._probing.tracks.items()):
            sas = [sa for sa in charon.ike_sas if stem_of(sa.connection) == str(path)]
            children = [child for sa in sas for child in sa.children]
            ike = "established" if path in up else (sas[0].state.lower() if sas else "none")
            figures = track.figures(trio.current_time())
            # A window that has just started anew knows nothing; the smoothed round trip outlives it.
            rtt_s = track.srtt_s if figures.latency_s is None else figures.latency_s
            reports.append(
                PathReport(
                    path=str(path),
                    uplink=path.uplink,
                    peer=path.peer,
                    endpoint=path.endpoint,
                    state=track.state.value,
                    ike=ike,
                    rtt_ms=None if rtt_s is None else round(rtt_s * 1000, 2),
                    jitter_ms=None if figures.jitter_s is None else round(figures.jitter_s * 1000, 2),
                    loss_percent=round(figures.loss * 100, 1),
                    mtu=sizes.get(path),
                    ready=track.ready,
                    bundles=tuple(sorted(carried.get(path, []))),
                    bytes_in=sum(child.bytes_in for child in children),
                    bytes_out=sum(child.bytes_out for child in children),
                )
            )
        return tuple(reports)

    def _bundles(self, plan: Plan | None, charon: Charon) -> tuple[BundleReport, ...]:
        if plan is None:
            return ()
        installed = carrying(plan.dataplane.bundles, charon)
        reports = []
        for bundle in plan.dataplane.bundles:
            path = self._cells.active.value.get(bundle.name)
            moves = {reason: n for (name, reason), n in self._cells.moves.value.items() if name == bundle.name}
            there = path is not None and installed.get(bundle.name) == path
            hold = self._cells.steering.value.holds.get(bundle.name)
            held_s = max(0.0, hold.until - trio.current_time()) if hold else 0.0
            carrier = str(path) if path else None
            reports.append(BundleReport(bundle.name, bundle.pairs, carrier, there, moves, round(held_s, 1)))
        return tuple(reports)


def unenrolled_status(backend: Backend, started: float, conditions: tuple[Condition, ...]) -> Status:
    """The report of a box that belongs to no site yet."""
    return Status(
        site="",
        role="unknown",
        agent_version=__version__,
        backend=backend.value,
        started=started,
        now=time.time(),
        document_epoch=None,
        document_version=None,
        document_issued=None,
        document_expires=None,
        controller_last_contact=None,
        uplinks=(),
        paths=(),
        bundles=(),
        peers=(),
        targets=(),
        dropped_packets={},
        pair_packets={},
        pair_bytes={},
        conditions=tuple(msgspec.structs.replace(c, since=started) for c in conditions),
    )


def _peers(document: Document | None, charon: Charon) -> tuple[PeerReport, ...]:
    """The peers that dial us."""
    reports = []
    for name, peer in sorted(document.peers.items()) if document else ():
        if peer.dial:
            continue
        sas = [sa for sa in charon.ike_sas if stem_of(sa.connection) == name and sa.established]
        children = [child for sa in sas for child in sa.children if child.installed]
        reports.append(
            PeerReport(
                name,
                len(sas),
                len(children),
                sum(child.bytes_in for child in children),
                sum(child.bytes_out for child in children),
            )
        )
    return tuple(reports)
