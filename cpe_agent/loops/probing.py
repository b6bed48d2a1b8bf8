"""How healthy are the paths? Sends the probes that the plan asks for, steps core.health, publishes verdicts.

A path without an IKE_SA is not probed: there is nothing in it that could answer. Verdicts are published only when
something that matters to others has changed; round-trip times are read from `Probing.tracks` when somebody asks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import trio

from cpe_agent.core import health
from cpe_agent.core.health import State, Track
from cpe_agent.log import get_logger
from cpe_agent.loops.bell import Bell, ring_on_change
from cpe_agent.loops.cells import Cells, Verdicts
from cpe_agent.model.dataplane import Path, Probe, stem_of
from cpe_agent.model.observed import Charon, Links
from cpe_agent.ports import ProbePort

log = get_logger()


class Probing:
    """The tracks of all paths, and the tasks that feed them."""

    def __init__(self, cells: Cells, port: ProbePort) -> None:
        self.tracks: dict[Path, Track] = {}
        self._cells = cells
        self._port = port
        self._probes: dict[Path, Probe] = {}
        self._by_target: dict[tuple[str, str], tuple[Path, bool]] = {}
        self._bells: dict[Path, Bell] = {}
        self._scopes: dict[Path, trio.CancelScope] = {}
        self._dead: set[int] = set()
        self._published: Mapping[Path, object] = {}

    async def run(self) -> None:
        """For ever."""
        bell = Bell()
        cells = (self._cells.plan, self._cells.links, self._cells.charon, self._cells.active)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive)
            nursery.start_soon(ring_on_change, bell, "facts", cells)
            bell.ring("facts")
            while True:
                await bell.wait()
                self._follow_plan(nursery)
                self._take_facts()
                for path_bell in self._bells.values():
                    path_bell.ring("facts")
                self._publish()

    def _follow_plan(self, nursery: trio.Nursery) -> None:
        plan = self._cells.plan.value
        wanted = {probe.path: probe for probe in plan.dataplane.probes} if plan else {}
        for path in [path for path, probe in self._probes.items() if wanted.get(path) != probe]:
            self._scopes.pop(path).cancel()
            del self._probes[path], self._bells[path]
            if path not in wanted:
                del self.tracks[path]
        for path, probe in wanted.items():
            if path in self._probes:
                continue
            self._probes[path] = probe
            self.tracks.setdefault(path, Track(probe.misses, since=trio.current_time()))
            self._bells[path] = Bell()
            self._scopes[path] = trio.CancelScope()
            nursery.start_soon(self._probe, probe, self._bells[path], self._scopes[path])
        self._by_target = {
            (probe.source, address): (probe.path, address == probe.ready_address)
            for probe in self._probes.values()
            for address in (probe.probe_address, probe.ready_address)
        }

    def _take_facts(self) -> None:
        plan, charon = self._cells.plan.value, self._cells.charon.value
        if plan is None or charon is None:
            return
        established = established_ikes(charon, self._dead)
        self._dead &= {sa.unique_id for sa in charon.ike_sas}
        now = trio.current_time()
        links = (self._cells.links.value or Links()).by_name
        # The plan says so too, but a compilation later.
        lost = {name for name, on in plan.interfaces.items() if on not in links or not links[on].up}
        for path, track in self.tracks.items():
            up = plan.link_up.get(path.uplink, False) and path.uplink not in lost
            self.tracks[path] = health.facts(track, established.get(path), up, now)

    async def _probe(self, probe: Probe, bell: Bell, scope: trio.CancelScope) -> None:
        """One path's rounds: send when due, judge when patience runs out."""
        sequence = 0
        last_sent = -math.inf
        with scope:
            while True:
                track = self.tracks[probe.path]
                now = trio.current_time()
                due = last_sent + self._interval(probe, track) if track.ike is not None and track.link_up else math.inf
                if now >= due:
                    sequence += 1
                    last_sent = now
                    self._send_round(probe, track, sequence)
                    continue
                await bell.wait(min(due, track.next_deadline()))
                # After a pause of this process the replies may be there already: let them be counted first.
                await trio.lowlevel.checkpoint()
                self._judge(probe.path)

    def _interval(self, probe: Probe, track: Track) -> float:
        # A path that carries traffic, or about which a verdict is still to be found, is asked at the quick pace.
        active = probe.path in self._cells.active.value.values()
        return probe.active_interval_s if active or track.state is not State.UP else probe.standby_interval_s

    def _send_round(self, probe: Probe, track: Track, sequence: int) -> None:
        # Ready implies alive: while the ready address answers, one echo a round is enough.
        doubtful = not track.ready or track.unready_rounds > 0 or track.missed_in_row > 0
        self.tracks[probe.path] = health.sent(track, sequence, trio.current_time())
        self._port.send(probe.source, probe.ready_address, sequence)
        if doubtful and probe.probe_address != probe.ready_address:
            self._port.send(probe.source, probe.probe_address, sequence)

    async def _receive(self) -> None:
        while True:
            for reply in await self._port.replies():
                found = self._by_target.get((reply.source, reply.target))
                if found is None or found[0] not in self.tracks:
                    continue
                path, from_ready = found
                track = self.tracks[path]
                self.tracks[path] = health.answered(track, reply.sequence, from_ready, reply.rtt_s, trio.current_time())
                if self.tracks[path].state is not track.state:
                    log.info("path_up", path=str(path), rtt_ms=round(reply.rtt_s * 1000, 1))
            self._publish()

    def _judge(self, path: Path) -> None:
        now = trio.current_time()
        track = self.tracks[path]
        judged = health.tick(track, now)
        if health.dead(judged, now) and judged.ike not in self._dead and judged.ike is not None:
            self._dead.add(judged.ike)
            # From now on the path has no IKE_SA, whatever charon still believes.
            judged = health.facts(health.redialled(judged), None, judged.link_up, now)
        self.tracks[path] = judged
        self._publish()

    def _publish(self) -> None:
        """Set the verdicts Cell if anything that others act on has changed."""
        matter: dict[Path, object] = {
            path: (track.state, track.ready, track.since, track.reason) for path, track in self.tracks.items()
        }
        if matter == self._published and self._cells.verdicts.value.dead == self._dead:
            return
        for path, track in self.tracks.items():
            before = self._cells.verdicts.value.tracks.get(path)
            if before is not None and before.state is not track.state and track.state is State.DOWN:
                log.warning("path_down", path=str(path), reason=track.reason)
        self._published = matter
        self._cells.verdicts.set(Verdicts(dict(self.tracks), frozenset(self._dead)))


def established_ikes(charon: Charon, dead: set[int]) -> dict[Path, int]:
    """The newest established IKE_SA of each path, by unique id, leaving out those given up."""
    found: dict[Path, int] = {}
    for sa in charon.ike_sas:
        path = Path.parse(stem_of(sa.connection))
        if path is not None and sa.established and sa.unique_id not in dead:
            found[path] = max(sa.unique_id, found.get(path, 0))
    return found
