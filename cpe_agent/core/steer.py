"""On which path does each bundle travel now?

Pure. Theory of operation, per bundle, with its paths ranked best first:

| situation                                           | decision                                                  |
|-----------------------------------------------------|-----------------------------------------------------------|
| no active path, its CHILD_SA lives on one           | adopt that: a restarted agent moves nothing               |
| no active path                                      | the best usable one, but wait `GRACE_S` for a better one  |
|                                                     | that is still being dialled for the first time            |
| active path is down, not ready, or no longer listed | the best usable path at once; none: stay, unless unlisted |
| a better path has been healthy for `failback_s`     | move there (make before break)                            |
| otherwise                                           | stay                                                      |

A hub is willing to serve or not as a whole, and says so on every path at about the same time: while one path says no,
none of that hub's paths is usable. A bundle that no willing hub can take stays with the unwilling one, and there moves
only when its path is down (or starts, once nobody better is left to wait for).

A path that never fell need not earn `failback_s`: at start the better link wins although it came up second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from cpe_agent.core.budget import Budget
from cpe_agent.core.health import State, Track
from cpe_agent.model.dataplane import Bundle, Path

# Long enough for a wired link's IKE_SA to come up beside a faster one, short enough not to be felt at boot.
GRACE_S = 2.0


class Move(msgspec.Struct, frozen=True):
    """A decision: bundle, from where (None: from nowhere), to where, why."""

    bundle: str
    source: Path | None
    target: Path | None
    reason: str


class Steering(msgspec.Struct, frozen=True):
    """Active path of each bundle; since when one that has none could have had one and waits for a better one."""

    active: dict[str, Path | None] = {}
    waiting_since: dict[str, float] = {}


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


class Decision(msgspec.Struct, frozen=True):
    """New state, the moves that led to it, and when to look again at the latest."""

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
    tracks, carrying = view.tracks, view.carrying
    active: dict[str, Path | None] = {}
    waiting: dict[str, float] = {}
    moves: list[Move] = []
    wake_at = math.inf
    for bundle in bundles:
        present = steering.active.get(bundle.name)
        if present is None and carrying.get(bundle.name) in bundle.paths:
            present = carrying[bundle.name]
            moves.append(Move(bundle.name, None, present, "adopted"))
        since = steering.waiting_since.get(bundle.name, now)
        chosen, reason, again = _choose(bundle, present, tracks, failback_s, since, now)
        wake_at = min(wake_at, again)
        if chosen is None and again < math.inf:
            waiting[bundle.name] = since
        if chosen != present:
            moves.append(Move(bundle.name, present, chosen, reason))
        active[bundle.name] = chosen
    return Decision(Steering(active, waiting), tuple(moves), wake_at)


def _choose(
    bundle: Bundle, present: Path | None, tracks: Mapping[Path, Track], failback_s: float, since: float, now: float
) -> tuple[Path | None, str, float]:
    refusing = [path for path in bundle.paths if path in tracks and _refuses(tracks[path])]
    unwilling = {path.peer for path in refusing}
    usable = [p for p in bundle.paths if p in tracks and tracks[p].usable() and p.peer not in unwilling]
    best = usable[0] if usable else None
    if present is None:
        if best is None:
            return _start_unwilling(bundle, refusing, tracks, since, now)
        better = bundle.paths[: bundle.paths.index(best)]
        dialling = any(path in tracks and tracks[path].state is State.UNKNOWN for path in better)
        if dialling and now < since + GRACE_S:
            return None, "", since + GRACE_S
        return best, "start", math.inf
    if present not in bundle.paths:
        return best or next(iter(refusing), None), "path_removed", math.inf
    track = tracks.get(present)
    if track is None or track.state is State.DOWN:
        alive = best or next(iter(refusing), None)
        return alive or present, f"path_down_{track.reason}" if track else "path_down", math.inf
    if present.peer in unwilling:
        return best or present, "peer_not_ready", math.inf
    return _failback(bundle, present, usable, tracks, failback_s, now)


def _refuses(track: Track) -> bool:
    """Is the peer not willing to serve? Its ready address must have had its chances: after a restart it was not asked
    yet, and that moves nothing."""
    return track.state is State.UP and not track.ready and track.unready_rounds >= track.misses


def _start_unwilling(
    bundle: Bundle, refusing: list[Path], tracks: Mapping[Path, Track], since: float, now: float
) -> tuple[Path | None, str, float]:
    """No hub is willing: one that is not is better than none."""
    if not refusing:
        return None, "", math.inf
    dialling = any(path in tracks and tracks[path].state is State.UNKNOWN for path in bundle.paths)
    if dialling and now < since + GRACE_S:
        return None, "", since + GRACE_S
    return refusing[0], "start", math.inf


def _failback(
    bundle: Bundle, present: Path, usable: list[Path], tracks: Mapping[Path, Track], failback_s: float, now: float
) -> tuple[Path | None, str, float]:
    wake_at = math.inf
    for path in usable:
        if bundle.paths.index(path) >= bundle.paths.index(present):
            break
        track = tracks[path]
        # A path that never fell has been good for ever; one that fell is trusted from when it came back.
        good_since = -math.inf if math.isinf(track.stable_since) else track.since
        if now >= good_since + failback_s:
            return path, "failback", wake_at
        wake_at = min(wake_at, good_since + failback_s)
    return present, "", wake_at
