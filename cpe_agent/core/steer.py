"""On which path does each bundle travel now?

Pure. Theory of operation, per bundle. Its candidates are ordered by `core.candidates`, their grades (does a path keep
to the limits of the bundle's class?) by `core.quality`. The first row that fits decides:

| the active path                                   | decision                                        | reason         |
|---------------------------------------------------|-------------------------------------------------|----------------|
| is none, but the CHILD_SA lives on one            | adopt that: a restarted agent moves nothing     | adopted        |
| is none                                           | best candidate; `GRACE_S` for a better one that | start          |
|                                                   | is being dialled for the first time             |                |
| is no longer listed                               | best candidate; none: nowhere                   | path_removed   |
| has an uplink without bytes left for this class   | best candidate; none: nowhere, CHILD_SA ends    | budget_spent   |
| is down                                           | best candidate at once; none: stay              | path_down_...  |
| has a peer that is not willing to serve           | best candidate; none: stay                      | peer_not_ready |
| is taken out by a drill                           | best candidate that is not                      | taken_out      |
| leads to servers that fail, but answer elsewhere  | best candidate that does not                    | service_failed |
| has an uplink near its budget's end (`budget`)    | best candidate that has not *                   | budget_near    |
| is degraded, and others were measured to be good  | best of these *                                 | degraded       |
| is degraded, one was measured to be much better   | that: the least bad *                           | less_degraded  |
| has a better candidate that was well for its hold | that *                                          | failback       |
| is none of these                                  | stay                                            |                |

`path_down_` ends in how it is known: `probes`, `link` or `ike`. Rows with a star wait for the end of the hold-down. All
moves are make before break. Much better: by `quality.CLEARLY`.

A path's hold is `failback_s`, counted from when it was last not well: fell, was degraded, its peer was not willing or
its servers failed. It doubles with each fall or lapse that is remembered (`core.damping`). A path that was never
anything but well need not earn it: at start the better link wins although it came up second. One that fell or was
degraded is measured at the quick pace before traffic returns to it.

A bundle's hold-down: after a move none of the lower rows moves it for `HOLD_S`; after a move away from a degraded path
the hold-down doubles with each such move that is remembered, so that it does not go to and fro between two bad paths.
Start, adoption and drills start none.

A choice is between measured things: while the active path of a bundle is degraded or about to be, its candidates are
to be probed at the quick pace (`measure`), for `MEASURE_S`, and ever more rarely while that shows nothing better and
none of them has become better.

A hub is willing to serve or not as a whole, and says so on every path at about the same time: while one path says no,
none of that hub's paths is a candidate. A bundle that no willing hub can take stays with the unwilling one, and there
moves only when its path is down (or starts, once nobody better is left to wait for).
"""

from __future__ import annotations

import math

import msgspec

from cpe_agent.core import damping, quality
from cpe_agent.core.candidates import Candidate, View, candidate, candidates, refusing, spent, unwilling
from cpe_agent.core.damping import Damping
from cpe_agent.core.health import State
from cpe_agent.core.quality import Grade
from cpe_agent.core.window import Figures
from cpe_agent.model.dataplane import Bundle, Path

__all__ = ["Decision", "Hold", "Move", "Steering", "Trial", "View", "step"]

# Long enough for a wired link's IKE_SA to come up beside a faster one, short enough not to be felt at boot.
GRACE_S = 2.0
# Shorter than a brownout may last (5 s), longer than the first look at a new path takes.
HOLD_S = 3.0
DEGRADED_HALF_LIFE_S = 300.0
# Enough rounds at the quick pace to tell a loss of a few percent; then a pause, which doubles.
MEASURE_S = 6.0
REST_S = 15.0
REST_MAX_S = 600.0
# Nearly as long must a path have been measured that was bad before (or `failback_s`, if that is less); one that was
# not, long enough for a few rounds.
LONG_S = 5.0
FRESH_S = 0.5
# Moves that were not made because the path left was bad or unusable, and after which there is no hold-down.
FREE = ("start", "adopted", "taken_out")


class Move(msgspec.Struct, frozen=True):
    """A decision: bundle, from where (None: from nowhere), to where, why."""

    bundle: str
    source: Path | None
    target: Path | None
    reason: str


class Hold(msgspec.Struct, frozen=True):
    """No move for the sake of something better before `until`. `degraded`: moves away from degraded paths."""

    until: float = -math.inf
    degraded: Damping = Damping()


class Trial(msgspec.Struct, frozen=True):
    """When a bundle's candidates were last begun to be measured, and how often of late."""

    since: float = -math.inf
    times: Damping = Damping()

    def running(self, now: float) -> bool:
        return now < self.since + MEASURE_S

    def again_at(self) -> float:
        return self.since + MEASURE_S + min(REST_MAX_S, REST_S * math.exp2(min(self.times.count - 1, 10.0)))


class Steering(msgspec.Struct, frozen=True):
    """Active path of each bundle; since when one that has none could have had one and waits for a better one; grades;
    hold-downs; when a bundle's peer was last seen failing; trials; what is to be probed at the quick pace, and since
    when; bundles that may use no path that is there; those that wait on a dead one because what is up has spent its
    bytes."""

    active: dict[str, Path | None] = {}
    waiting_since: dict[str, float] = {}
    grades: dict[tuple[str, Path], Grade] = {}
    holds: dict[str, Hold] = {}
    blamed: dict[tuple[str, str], float] = {}
    trials: dict[str, Trial] = {}
    measure: dict[Path, float] = {}
    barred: frozenset[str] = frozenset()
    starved: frozenset[str] = frozenset()


class Decision(msgspec.Struct, frozen=True):
    """New state, the moves that led to it, and when to look again at the latest (samples apart: who has new ones asks
    again a few times a second)."""

    steering: Steering
    moves: tuple[Move, ...]
    wake_at: float


def step(
    steering: Steering,
    bundles: tuple[Bundle, ...],
    view: View,
    failback_s: float,
    now: float,
) -> Decision:
    """Decide."""
    figures = {path: track.figures(now) for path, track in view.tracks.items() if track.state is State.UP}
    moves: list[Move] = []
    active: dict[str, Path | None] = {}
    waiting: dict[str, float] = {}
    grades: dict[tuple[str, Path], Grade] = {}
    holds: dict[str, Hold] = {}
    blamed: dict[tuple[str, str], float] = {}
    trials: dict[str, Trial] = {}
    measure: set[Path] = set()
    barred: set[str] = set()
    starved: set[str] = set()
    wake_at = math.inf
    for bundle in bundles:
        grades |= _graded(bundle, steering, figures, now)
        blamed |= {key: at for key, at in steering.blamed.items() if key[0] == bundle.name}
        blamed |= {(bundle.name, peer): now for peer in view.failing.get(bundle.name, ())}
        present = steering.active.get(bundle.name)
        carrying = view.carrying.get(bundle.name)
        if present is None and carrying in bundle.paths and not spent(bundle, carrying, view):
            present = carrying
            moves.append(Move(bundle.name, None, present, "adopted"))
        hold = steering.holds.get(bundle.name, Hold())
        since = steering.waiting_since.get(bundle.name, now)
        trial = steering.trials.get(bundle.name, Trial())
        chooser = _Chooser(bundle, view, grades, blamed, figures, steering.measure, trial, failback_s, now)
        chosen, reason = chooser.choose(present, hold, since)
        wake_at = min(wake_at, chooser.wake_at)
        if chosen is None and chooser.wake_at < math.inf:
            waiting[bundle.name] = since
        if chosen != present:
            moves.append(Move(bundle.name, present, chosen, reason))
            hold = _held(hold, reason, failback_s, now)
        if chosen is None and any(spent(bundle, path, view) for path in bundle.paths):
            barred.add(bundle.name)
        up = [path for path in bundle.paths if path in figures]
        if chosen is not None and chosen not in up and any(spent(bundle, path, view) for path in up):
            starved.add(bundle.name)
        active[bundle.name] = chosen
        holds[bundle.name] = hold
        trials[bundle.name] = chooser.trial if chosen == present else Trial()
        measure |= chooser.measure
    measuring = {path: steering.measure.get(path, now) for path in sorted(measure)}
    new = Steering(active, waiting, grades, holds, blamed, trials, measuring, frozenset(barred), frozenset(starved))
    return Decision(new, tuple(moves), wake_at)


def _graded(
    bundle: Bundle, steering: Steering, figures: dict[Path, Figures], now: float
) -> dict[tuple[str, Path], Grade]:
    found = {}
    for path in bundle.paths:
        grade = steering.grades.get((bundle.name, path), Grade())
        if path in figures:
            grade = quality.judge(grade, bundle.needs, figures[path], now)
        found[bundle.name, path] = grade
    return found


def _held(hold: Hold, reason: str, failback_s: float, now: float) -> Hold:
    if reason in FREE:
        return hold
    if reason not in ("degraded", "less_degraded"):
        return msgspec.structs.replace(hold, until=now + HOLD_S)
    degraded = damping.failed(hold.degraded, now, DEGRADED_HALF_LIFE_S)
    longest = max(damping.AGAIN_S, damping.LONGEST * failback_s)
    return Hold(now + min(longest, HOLD_S * math.exp2(min(degraded.count - 1, 10.0))), degraded)


class _Chooser:
    """One bundle's choice, now. `wake_at`, `measure` and `trial` are what else comes of it."""

    def __init__(
        self,
        bundle: Bundle,
        view: View,
        grades: dict[tuple[str, Path], Grade],
        blamed: dict[tuple[str, str], float],
        figures: dict[Path, Figures],
        measuring: dict[Path, float],
        trial: Trial,
        failback_s: float,
        now: float,
    ) -> None:
        self.wake_at = math.inf
        self.measure: frozenset[Path] = frozenset()
        self.trial = trial
        self._bundle = bundle
        self._view = view
        self._grades = grades
        self._blamed = blamed
        self._figures = figures
        self._measuring = measuring
        self._failback_s = failback_s
        self._now = now
        self._refusing = refusing(bundle, view)
        self._candidates = candidates(bundle, view, grades, now)

    def choose(self, present: Path | None, hold: Hold, waiting_since: float) -> tuple[Path | None, str]:
        """The path, and if it is not `present`, why."""
        if present is None:
            return self._start(waiting_since)
        best = self._candidates[0] if self._candidates else None
        alive = best.path if best else next(iter(self._refusing), None)
        if present not in self._bundle.paths:
            return alive, "path_removed"
        track = self._view.tracks.get(present)
        if spent(self._bundle, present, self._view):
            return alive, "budget_spent"
        if track is None or track.state is State.DOWN:
            return alive or present, f"path_down_{track.reason}" if track else "path_down"
        if present.peer in unwilling(self._bundle, self._view):
            return best.path if best else present, "peer_not_ready"
        here = candidate(self._bundle, present, self._view, self._grades, self._now)
        if best is not None and not best.silent and here.taken_out and not best.taken_out:
            return best.path, "taken_out"
        if best is not None and not best.silent and here.failing and best.fitness[:2] < here.fitness[:2]:
            return best.path, "service_failed"
        chosen, reason = self._better(here, hold)
        if chosen != present and self._now < hold.until:
            self._wake(hold.until)
            return present, ""
        return chosen, reason

    def _start(self, since: float) -> tuple[Path | None, str]:
        best = self._candidates[0] if self._candidates else None
        if best is None and not self._refusing:
            return None, ""
        better = self._bundle.paths if best is None or best.near else self._bundle.paths[: best.rank]
        tracks = self._view.tracks
        dialling = any(path in tracks and tracks[path].state is State.UNKNOWN for path in better)
        if dialling and self._now < since + GRACE_S:
            self._wake(since + GRACE_S)
            return None, ""
        # No hub is willing: one that is not is better than none.
        return best.path if best else self._refusing[0], "start"

    def _better(self, here: Candidate, hold: Hold) -> tuple[Path, str]:
        """Something better than a path that works."""
        others = [one for one in self._candidates if one.path != here.path and one.fitness <= here.fitness]
        heard = [one for one in others if not one.silent]
        if here.near and heard and not heard[0].near:
            return heard[0].path, "budget_near"
        grade = self._grades[self._bundle.name, here.path]
        if grade.degraded or grade.turning_since < math.inf:
            self._try(others)
        if grade.degraded:
            return self._instead_of_degraded(here, heard)
        return self._failback(here, heard, hold)

    def _try(self, others: list[Candidate]) -> None:
        """Have the others measured, now or when it is time again."""
        news = any(self._well_since(one.path) > self.trial.since for one in others)
        if not self.trial.running(self._now) and (news or self._now >= self.trial.again_at()):
            self.trial = Trial(self._now, damping.failed(self.trial.times, self._now))
        if self.trial.running(self._now):
            self.measure = frozenset(one.path for one in others)
        else:
            self._wake(self.trial.again_at())

    def _instead_of_degraded(self, here: Candidate, heard: list[Candidate]) -> tuple[Path, str]:
        needs = self._bundle.needs
        measured = [one for one in heard if self._fresh(one.path, FRESH_S)]
        good = [one for one in measured if not one.degraded and quality.keeps(needs, self._figures[one.path])]
        if good:
            return min(good, key=lambda one: one.order).path, "degraded"
        strains = {one.path: quality.strain(needs, self._figures[one.path]) for one in measured}
        least = min(strains, key=lambda path: strains[path], default=None)
        figures = self._figures.get(here.path)
        if least is None or figures is None or not figures.enough:
            return here.path, ""
        if strains[least] <= quality.CLEARLY * quality.strain(needs, figures):
            return least, "less_degraded"
        return here.path, ""

    def _failback(self, here: Candidate, heard: list[Candidate], hold: Hold) -> tuple[Path, str]:
        needs, long_s = self._bundle.needs, min(LONG_S, self._failback_s)
        for one in heard:
            if one.degraded or (*one.fitness, one.rank) >= (*here.fitness, here.rank):
                continue
            grade = self._grades[self._bundle.name, one.path]
            at = max(hold.until, self._trusted_at(one.path, grade))
            once_bad = grade.since > -math.inf or self._view.tracks[one.path].stable_since > -math.inf
            if once_bad and self._now >= at - MEASURE_S:
                self.measure |= {one.path}
            elif once_bad:
                self._wake(at - MEASURE_S)
            if self._now < at:
                self._wake(at)
            elif not once_bad or (self._fresh(one.path, long_s) and quality.keeps(needs, self._figures[one.path])):
                return one.path, "failback"
        return here.path, ""

    def _trusted_at(self, path: Path, grade: Grade) -> float:
        track = self._view.tracks[path]
        blamed = self._blamed.get((self._bundle.name, path.peer), -math.inf)
        # A hub that was not willing said so for all its paths, on whichever it was asked.
        willing = max(one.ready_since for other, one in self._view.tracks.items() if other.peer == path.peer)
        return max(
            max(track.good_since(), willing) + track.hold_s(self._failback_s),
            grade.since + quality.hold_s(grade, self._failback_s),
            blamed + self._failback_s,
        )

    def _well_since(self, path: Path) -> float:
        """When it came up, or was good again at the slow pace."""
        return max(self._view.tracks[path].since, self._grades[self._bundle.name, path].since)

    def _fresh(self, path: Path, measured_s: float) -> bool:
        """Was it measured just now, and for so long?"""
        figures, since = self._figures[path], self._measuring.get(path, math.inf)
        return figures.enough and self._now >= since + measured_s

    def _wake(self, at: float) -> None:
        if at > self._now:
            self.wake_at = min(self.wake_at, at)
