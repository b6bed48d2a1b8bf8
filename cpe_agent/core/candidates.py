"""Which of a bundle's paths could carry it now, and which of these is the best?

Pure. In: a bundle (its paths ranked: best peer first, then the uplink that its class prefers, then priority, then
endpoint), what is known (`View`), and the grades of its paths. Out: the candidates, best first. What a path must have
to be one, and what then counts, most important first:

| must have                                                                                                  |
|------------------------------------------------------------------------------------------------------------|
| it is up, and its peer is ready to serve: while one path says no, none of that peer's paths is a candidate |
| its uplink has not spent its monthly bytes, or the class uses metered uplinks `always`                     |

| then better is                         | because                                                                  |
|----------------------------------------|--------------------------------------------------------------------------|
| not taken out by a drill               | the drill is over soon, and must see that the traffic can live elsewhere |
| servers answer behind its peer         | a path to servers that are dead is no path                               |
| its budget is not near its end         | for `metered: budget`; near is not spent: it stays rather than to stop   |
| it keeps to the class's limits         | a second-best peer that is heard is better than the best one that is not |
| it has answered when it was last asked | who is asked and silent is dead or asleep; nobody knows yet              |
| its rank                               |                                                                          |
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cpe_agent.core.budget import Budget
from cpe_agent.core.health import State, Track
from cpe_agent.core.quality import Grade
from cpe_agent.model.dataplane import Bundle, Path


class View(msgspec.Struct, frozen=True):
    """What is known when a decision is due.

    `tracks`: path health. `carrying`: bundles whose traffic child charon has installed, and where. `budgets`: of
    metered uplinks, by name. `failing`: by bundle, the peers behind which all its probed servers fail although they
    answer behind another. `taken_out`: paths that a drill keeps traffic off.
    """

    tracks: Mapping[Path, Track]
    carrying: Mapping[str, Path] = {}
    budgets: Mapping[str, Budget] = {}
    failing: Mapping[str, frozenset[str]] = {}
    taken_out: frozenset[Path] = frozenset()


class Candidate(msgspec.Struct, frozen=True):
    """A path that could carry the bundle. The lower `order` the better."""

    path: Path
    rank: int
    taken_out: bool = False
    failing: bool = False
    near: bool = False
    degraded: bool = False
    silent: bool = False

    @property
    def fitness(self) -> tuple[bool, bool, bool]:
        """What somebody else has said of it; the lower the better."""
        return (self.taken_out, self.failing, self.near)

    @property
    def order(self) -> tuple[bool, bool, bool, bool, bool, int]:
        return (*self.fitness, self.degraded, self.silent, self.rank)


Grades = Mapping[tuple[str, Path], Grade]


def candidates(bundle: Bundle, view: View, grades: Grades, now: float) -> list[Candidate]:
    """Best first."""
    refused = unwilling(bundle, view)
    found = [
        candidate(bundle, path, view, grades, now)
        for path in bundle.paths
        if path in view.tracks
        and view.tracks[path].usable()
        and path.peer not in refused
        and not spent(bundle, path, view)
    ]
    return sorted(found, key=lambda one: one.order)


def candidate(bundle: Bundle, path: Path, view: View, grades: Grades, now: float) -> Candidate:
    """What counts of this one of the bundle's paths, whether it can carry it or not."""
    grade = grades.get((bundle.name, path))
    return Candidate(
        path,
        bundle.paths.index(path),
        taken_out=path in view.taken_out,
        failing=path.peer in view.failing.get(bundle.name, ()),
        near=bundle.needs.metered == "budget" and view.budgets.get(path.uplink, Budget.FREE) is not Budget.FREE,
        degraded=grade is not None and grade.degraded,
        silent=view.tracks[path].silent(now) if path in view.tracks else True,
    )


def unwilling(bundle: Bundle, view: View) -> frozenset[str]:
    """Peers that are not willing to serve: one of the bundle's paths there has said so, whether it may carry or not."""
    return frozenset(path.peer for path in bundle.paths if path in view.tracks and view.tracks[path].refuses())


def refusing(bundle: Bundle, view: View) -> list[Path]:
    """Paths that are up and whose peer is not willing to serve, and that may be used if nobody else is, best first."""
    refused = unwilling(bundle, view)
    return [
        path
        for path in bundle.paths
        if path.peer in refused
        and path in view.tracks
        and view.tracks[path].state is State.UP
        and not spent(bundle, path, view)
    ]


def spent(bundle: Bundle, path: Path, view: View) -> bool:
    """Has its uplink no bytes left for this class?"""
    return bundle.needs.metered != "always" and view.budgets.get(path.uplink) is Budget.SPENT
