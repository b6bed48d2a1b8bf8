"""How healthy are the paths? Sends the probes that the plan asks for, steps core.health, publishes verdicts.

A path without an IKE_SA is not probed: there is nothing in it that could answer. One task sends and judges for all
paths, in step (rounds are due at multiples of their interval), since it is the waking up that costs.

| a path is probed at    | while                                                                        |
|------------------------|------------------------------------------------------------------------------|
| its active interval    | it carries a bundle; or no verdict is found yet; or it missed its last round |
| its active interval    | a bundle's active path is in doubt (`core.doubt`) and it could take over; on |
|                        | a metered uplink only while that path has missed more than one in a row      |
| that, and extra rounds | it carries a bundle and is in doubt, or steering wants it measured           |
| its standby interval   | otherwise                                                                    |

A round of a path that carries a bundle over an uplink that is not metered is two echoes. The second proves nothing, as
no extra round does; but the first loss is what a brownout is known by, and one echo in ten is lost often enough too
late to be left within five seconds. On a SIM card that would be 10 GB a month.

Verdicts are published only when something that matters to others has changed; the tracks in them are always the
latest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import msgspec
import trio

from cpe_agent.core import doubt, health
from cpe_agent.core.doubt import Doubt
from cpe_agent.core.health import State, Track
from cpe_agent.log import get_logger
from cpe_agent.loops.bell import Bell, ring_on_change
from cpe_agent.loops.cells import Cells, Verdicts
from cpe_agent.model.dataplane import Path, Probe, stem_of
from cpe_agent.model.observed import Charon, Links
from cpe_agent.ports import ProbePort

log = get_logger()

# A round that is due within so much of its interval is sent with the others.
IN_STEP = 0.1


class _Lane:
    """One path's rounds: how many, and when the last one went out, extra ones counted or not."""

    def __init__(self, probe: Probe, sequence: int) -> None:
        self.probe = probe
        self.sequence = sequence
        self.sent_at = -math.inf
        self.regular_at = -math.inf


class Probing:
    """The tracks of all paths, and the tasks that feed them."""

    def __init__(self, cells: Cells, port: ProbePort) -> None:
        self.tracks: dict[Path, Track] = {}
        self._cells = cells
        self._port = port
        self._lanes: dict[Path, _Lane] = {}
        self._by_target: dict[tuple[str, str], tuple[Path, bool]] = {}
        self._active: frozenset[Path] = frozenset()
        self._doubts: dict[Path, Doubt] = {}
        self._quick: frozenset[Path] = frozenset()
        self._awaited: frozenset[Path] = frozenset()
        self._nap = trio.CancelScope()
        self._dead: set[int] = set()
        self._published: Mapping[Path, tuple[State, bool, bool, float, str]] = {}

    async def run(self) -> None:
        """For ever."""
        bell = Bell()
        known = self._cells
        cells = (known.plan, known.links, known.charon, known.active, known.measure)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive)
            nursery.start_soon(self._keep_pace)
            nursery.start_soon(ring_on_change, bell, "facts", cells)
            bell.ring("facts")
            while True:
                await bell.wait()
                self._follow_plan()
                self._take_facts()
                self._active = frozenset(path for path in self._cells.active.value.values() if path is not None)
                # Steering may not have left yet what the plan has no longer.
                known_active = self._active & self.tracks.keys()
                self._doubts = {path: one for path, one in self._doubts.items() if path in known_active}
                self._publish()
                self._wake()

    def _follow_plan(self) -> None:
        plan = self._cells.plan.value
        wanted = {probe.path: probe for probe in plan.dataplane.probes} if plan else {}
        if {path: lane.probe for path, lane in self._lanes.items()} == wanted:
            return
        now = trio.current_time()
        for path in self._lanes.keys() - wanted.keys():
            del self._lanes[path], self.tracks[path]
        for path, probe in wanted.items():
            before = self._lanes.get(path)
            if before is None:
                self.tracks[path] = Track(probe.misses, since=now)
            elif before.probe == probe:
                continue
            # Rounds go on being counted: what was answered stays older than what is still to come.
            self._lanes[path] = _Lane(probe, before.sequence if before else 0)
            self.tracks[path] = msgspec.structs.replace(self.tracks[path], misses=probe.misses)
        self._by_target = {
            (probe.source, address): (probe.path, address == probe.ready_address)
            for probe in wanted.values()
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

    async def _keep_pace(self) -> None:
        """Send what is due, judge when patience runs out."""
        while True:
            now = trio.current_time()
            for path, lane in self._lanes.items():
                if self.tracks[path].next_deadline(path in self._awaited) <= now:
                    self._judge(path, now)
                regular, extra = self._due(lane, now)
                if min(regular, extra) <= now:
                    self._send_round(lane, regular > now, now)
                    if extra == math.inf and self._looks_twice(lane.probe):
                        self._send_round(lane, True, now)
            self._publish()
            with trio.CancelScope(deadline=self._next(now)) as self._nap:
                await trio.sleep_forever()
            # After a pause of this process the replies may be there already: let them be counted first.
            await trio.lowlevel.checkpoint()

    def _wake(self) -> None:
        """What is next may have changed."""
        self._nap.deadline = self._next(trio.current_time())

    def _next(self, now: float) -> float:
        self._quick = self._to_ask(now)
        plan = self._cells.plan.value
        bundles = plan.dataplane.bundles if plan else ()
        self._awaited = health.awaited_paths(bundles, self._cells.active.value, self.tracks)
        earliest = math.inf
        for path, lane in self._lanes.items():
            deadline = self.tracks[path].next_deadline(path in self._awaited)
            earliest = min(earliest, deadline, *self._due(lane, now))
        return earliest

    def _to_ask(self, now: float) -> frozenset[Path]:
        """Standby paths that are to be asked at the quick pace."""
        asking = {path for path, one in self._doubts.items() if one.asks and one.holds(now)}
        plan = self._cells.plan.value
        found = set(self._cells.measure.value)
        for bundle in plan.dataplane.bundles if plan and asking else ():
            active = self._cells.active.value.get(bundle.name)
            if active in asking:
                grave = doubt.serious(self.tracks[active].missed_in_row, self.tracks[active].misses)
                lanes = (self._lanes[path] for path in bundle.paths if path in self._lanes)
                found.update(lane.probe.path for lane in lanes if grave or not lane.probe.metered)
        return frozenset(found)

    def _due(self, lane: _Lane, now: float) -> tuple[float, float]:
        """When the next round goes out, and the next extra one."""
        path, track = lane.probe.path, self.tracks[lane.probe.path]
        if track.ike is None or not track.link_up:
            return math.inf, math.inf
        interval_s = self._interval(lane.probe, track)
        regular = _after(lane.regular_at, interval_s)
        one = self._doubts.get(path)
        if one is not None and one.holds(now):
            extra = doubt.EXTRA
        elif path in self._cells.measure.value:
            extra = doubt.EXTRA_MEASURED
        else:
            return regular, math.inf
        return regular, _after(lane.sent_at, max(doubt.EXTRA_MIN_S, interval_s / extra))

    def _interval(self, probe: Probe, track: Track) -> float:
        quick = probe.path in self._active or probe.path in self._quick
        doubtful = track.state is not State.UP or track.missed_in_row > 0
        return probe.active_interval_s if quick or doubtful else probe.standby_interval_s

    def _send_round(self, lane: _Lane, extra: bool, now: float) -> None:
        probe, track = lane.probe, self.tracks[lane.probe.path]
        lane.sequence += 1
        lane.sent_at = now
        if not extra:
            lane.regular_at = now
        # Ready implies alive: while the ready address answers, one echo a round is enough.
        doubtful = not track.ready or track.unready_rounds > 0 or track.missed_in_row > 0
        interval_s = self._interval(probe, track)
        self.tracks[probe.path] = health.sent(track, lane.sequence, now, interval_s, extra)
        self._port.send(probe.source, probe.ready_address, lane.sequence)
        if doubtful and probe.probe_address != probe.ready_address:
            self._port.send(probe.source, probe.probe_address, lane.sequence)

    def _looks_twice(self, probe: Probe) -> bool:
        track = self.tracks[probe.path]
        well = track.state is State.UP and track.ready and track.missed_in_row == 0
        return well and probe.path in self._active and not probe.metered

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
            self._wake()

    def _judge(self, path: Path, now: float) -> None:
        judged = health.tick(self.tracks[path], now)
        if path in self._active:
            before = self._doubts.get(path, Doubt())
            lost = judged.missed_at == now
            gaps = judged.figures(now).gaps if lost or judged.missed_in_row else 0
            self._doubts[path] = doubt.step(before, judged.missed_in_row, judged.misses, gaps, now, lost)
        if health.dead(judged, now, path in self._awaited) and judged.ike not in self._dead and judged.ike is not None:
            self._dead.add(judged.ike)
            # From now on the path has no IKE_SA, whatever charon still believes.
            judged = health.facts(health.redialled(judged), None, judged.link_up, now)
        self.tracks[path] = judged

    def _publish(self) -> None:
        """Set the verdicts Cell if anything that others act on has changed."""
        matter = {path: track.verdict() for path, track in self.tracks.items()}
        verdicts = self._cells.verdicts.value
        if matter == self._published and verdicts.dead == self._dead:
            return
        for path, track in self.tracks.items():
            before = self._published.get(path)
            if before is not None and before[0] is not track.state and track.state is State.DOWN:
                log.warning("path_down", path=str(path), reason=track.reason)
        self._published = matter
        tracks = MappingProxyType(self.tracks)
        self._cells.verdicts.set(Verdicts(tracks, frozenset(self._dead), verdicts.revision + 1))


def _after(last: float, interval_s: float) -> float:
    """The first multiple of the interval that is not too soon after `last`."""
    return -math.inf if last == -math.inf else math.ceil(last / interval_s + IN_STEP) * interval_s


def established_ikes(charon: Charon, dead: set[int]) -> dict[Path, int]:
    """The newest established IKE_SA of each path, by unique id, leaving out those given up."""
    found: dict[Path, int] = {}
    for sa in charon.ike_sas:
        path = Path.parse(stem_of(sa.connection))
        if path is not None and sa.established and sa.unique_id not in dead:
            found[path] = max(sa.unique_id, found.get(path, 0))
    return found
