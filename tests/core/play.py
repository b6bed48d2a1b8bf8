"""Paths that live and die by a script, and health, doubt and steering played over them on a simulated clock.

Nothing but core: probes go out as `cpe_agent.loops.probing` would send them, answers come after a path's round trip
unless the script loses them. A test changes `Play.roads` and lets time go by.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cpe_agent.core import doubt, health, steer
from cpe_agent.core.budget import Budget
from cpe_agent.core.doubt import Doubt
from cpe_agent.core.health import State, Track
from cpe_agent.core.steer import Move, Steering, View
from cpe_agent.model.dataplane import Bundle, Path

GRID_S = 0.005
LOOK_S = 0.25
ACTIVE_S = 0.1
MISSES = 3


@dataclass
class Road:
    """What a path is like now. `loss`: a share of the rounds. `asleep`: how late the answer is that wakes the modem."""

    rtt_s: float = 0.03
    loss: float = 0.0
    up: bool = True
    link: bool = True
    ike: bool = True
    ready: bool = True
    standby_s: float = 1.0
    metered: bool = False
    asleep_s: float = 0.0


@dataclass
class _Lane:
    sequence: int = 0
    sent_at: float = -math.inf
    regular_at: float = -math.inf
    coming: list[tuple[float, int, float, bool]] = field(default_factory=list)


class Play:
    """`moves`: (when, what, whether the path that was left was of no use any more, until when it is held down then)."""

    def __init__(self, bundles: Iterable[Bundle], failback_s: float = 60.0, seed: int = 1) -> None:
        self.bundles = tuple(bundles)
        self.failback_s = failback_s
        self.now = 0.0
        paths = sorted({path for bundle in self.bundles for path in bundle.paths})
        self.roads = {path: Road() for path in paths}
        self.tracks = {path: Track(MISSES) for path in paths}
        self.steering = Steering()
        self.budgets: dict[str, Budget] = {}
        self.failing: dict[str, frozenset[str]] = {}
        self.taken_out: frozenset[Path] = frozenset()
        self.moves: list[tuple[float, Move, bool, float]] = []
        self.rounds: dict[Path, int] = dict.fromkeys(paths, 0)
        self.watch: Callable[[Play], None] = lambda play: None
        self._lanes = {path: _Lane() for path in paths}
        self._doubts: dict[Path, Doubt] = {}
        self._chance = random.Random(seed)
        self._look_at = 0.0
        self._seen: object = None

    @property
    def active(self) -> dict[str, Path | None]:
        return self.steering.active

    def run(self, until: float) -> None:
        """Let time go by."""
        while self.now < until:
            self._step()
            self.now = min(until, max(self.now + GRID_S, self._next()))
        self._step()

    def moved(self, since: float = 0.0) -> list[tuple[str, Path | None, str]]:
        """(bundle, to where, why), adoption and start left out."""
        return [(m.bundle, m.target, m.reason) for at, m, _, _ in self.moves if at >= since and m.reason != "start"]

    def view(self) -> View:
        return View(self.tracks, {}, self.budgets, self.failing, self.taken_out)

    def _step(self) -> None:
        for path, road in self.roads.items():
            ike = 1 if road.ike else None
            self.tracks[path] = health.facts(self.tracks[path], ike, road.link, self.now)
            self._receive(path)
            self._judge(path)
            self._send(path, road)
        seen = (
            {path: track.verdict() for path, track in self.tracks.items()},
            dict(self.budgets),
            dict(self.failing),
            self.taken_out,
        )
        if seen != self._seen or self.now >= self._look_at:
            self._seen = seen
            self._steer()
        self.watch(self)

    def _next(self) -> float:
        """When something is due."""
        earliest = self._look_at
        for path, lane in self._lanes.items():
            earliest = min(earliest, self.tracks[path].next_deadline(), self._due(path)[0], self._due(path)[1])
            earliest = min([earliest, *(at for at, *_ in lane.coming)])
        return earliest

    def _steer(self) -> None:
        unwilling = {path.peer for path, track in self.tracks.items() if track.refuses()}
        useless = {
            path
            for path, track in self.tracks.items()
            if track.state is State.DOWN or path.peer in unwilling or path in self.taken_out
        }
        before = dict(self.steering.active)
        decision = steer.step(self.steering, self.bundles, self.view(), self.failback_s, self.now)
        self.steering = decision.steering
        self._look_at = min(decision.wake_at, self.now + LOOK_S)
        for move in decision.moves:
            source = before.get(move.bundle)
            blamed = source is not None and source.peer in self.failing.get(move.bundle, ())
            held_until = self.steering.holds[move.bundle].until
            self.moves.append((self.now, move, source in useless or blamed or source is None, held_until))

    def _receive(self, path: Path) -> None:
        lane = self._lanes[path]
        due = [one for one in lane.coming if one[0] <= self.now]
        lane.coming = [one for one in lane.coming if one[0] > self.now]
        for _, sequence, rtt_s, ready in sorted(due):
            self.tracks[path] = health.answered(self.tracks[path], sequence, ready, rtt_s, self.now)

    def _judge(self, path: Path) -> None:
        self.tracks[path] = health.tick(self.tracks[path], self.now)
        if path in self.active.values():
            track, before = self.tracks[path], self._doubts.get(path, Doubt())
            missed, gaps, lost = track.missed_in_row, track.figures(self.now).gaps, track.missed_at == self.now
            self._doubts[path] = doubt.step(before, missed, MISSES, gaps, self.now, lost)
        else:
            self._doubts.pop(path, None)

    def _interval(self, path: Path) -> float:
        asking = {p for p, one in self._doubts.items() if one.asks and one.holds(self.now)}
        grave = {p for p in asking if doubt.serious(self.tracks[p].missed_in_row, MISSES)}
        asked = {p for b in self.bundles if self.active.get(b.name) in asking for p in b.paths}
        if self.roads[path].metered:
            asked = {p for b in self.bundles if self.active.get(b.name) in grave for p in b.paths}
        track = self.tracks[path]
        quick = path in self.active.values() or path in asked or path in self.steering.measure
        quick = quick or track.state is not State.UP or track.missed_in_row > 0
        return ACTIVE_S if quick else self.roads[path].standby_s

    def _due(self, path: Path) -> tuple[float, float]:
        track, lane = self.tracks[path], self._lanes[path]
        if track.ike is None or not track.link_up:
            return math.inf, math.inf
        mine = self._doubts.get(path)
        extra = math.inf
        if mine is not None and mine.holds(self.now):
            extra = lane.sent_at + ACTIVE_S / doubt.EXTRA
        elif path in self.steering.measure:
            extra = lane.sent_at + ACTIVE_S / doubt.EXTRA_MEASURED
        return lane.regular_at + self._interval(path), extra

    def _send(self, path: Path, road: Road) -> None:
        lane = self._lanes[path]
        regular_at, extra_at = self._due(path)
        if min(regular_at, extra_at) > self.now:
            return
        regular = regular_at <= self.now
        track = self.tracks[path]
        well = track.state is State.UP and track.ready and track.missed_in_row == 0
        twice = well and extra_at == math.inf and path in self.active.values() and not road.metered
        # The handshake of a new IKE_SA has just woken it.
        idle = lane.sequence > 0 and self.now - lane.sent_at >= 10
        lane.sequence += 1
        lane.sent_at = self.now
        lane.regular_at = self.now if regular else lane.regular_at
        self.rounds[path] += 1
        self._echo(path, road, not regular, idle)
        if twice:
            lane.sequence += 1
            self._echo(path, road, True, idle)

    def _echo(self, path: Path, road: Road, extra: bool, idle: bool) -> None:
        lane = self._lanes[path]
        self.tracks[path] = health.sent(self.tracks[path], lane.sequence, self.now, self._interval(path), extra)
        lost = not (road.up and road.ike and road.link) or self._chance.random() < road.loss
        if not lost:
            rtt_s = road.rtt_s + (road.asleep_s if idle else 0.0)
            lane.coming.append((self.now + rtt_s, lane.sequence, rtt_s, road.ready))
