"""What is wrong with paths that are up, in words that say what to do?

Pure. In: what steering remembers, the bundles, the tracks. Out: conditions.

- `PathDegraded`: a path that carries a bundle, or would carry it if it were better, does not keep to the limits of the
  bundle's class. A standby path that is worse but of lower rank is no news.
- `PathFlapping`: a path has fallen again and again, and is held down for longer than `failback_s`.
- `BundleBarred`: a bundle may use none of the paths that are up, because their uplinks have spent their bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cpe_agent.core import damping
from cpe_agent.core.health import State, Track
from cpe_agent.core.quality import Breach
from cpe_agent.core.steer import Steering
from cpe_agent.model.condition import Condition, Severity
from cpe_agent.model.dataplane import Bundle, Path


def path_conditions(
    steering: Steering, bundles: Iterable[Bundle], tracks: Mapping[Path, Track], failback_s: float, now: float
) -> tuple[Condition, ...]:
    """All that hold. `now` by the clock of the tracks."""
    lacking: dict[Path, dict[str, Breach]] = {}
    carried: set[Path] = set()
    for bundle in bundles:
        active = steering.active.get(bundle.name)
        rank = bundle.paths.index(active) if active in bundle.paths else len(bundle.paths)
        for path in bundle.paths[: rank + 1]:
            grade = steering.grades.get((bundle.name, path))
            up = path in tracks and tracks[path].state is State.UP
            if up and grade is not None and grade.degraded and grade.worst is not None:
                lacking.setdefault(path, {})[bundle.name] = grade.worst
                carried |= {path} if path == active else set()
    found = [Condition("PathDegraded", str(path), _lacking(path in carried, lacking[path])) for path in sorted(lacking)]
    for name in sorted(steering.barred | steering.starved):
        reason = (
            "the uplinks that are up have spent their monthly_bytes, and its class must not exceed them; mend another "
            "uplink, raise monthly_bytes, or set `metered: always`"
        )
        found.append(Condition("BundleBarred", name, reason, Severity.DOWN))
    for path, track in sorted(tracks.items()):
        if track.falls.level(now) >= damping.TWICE:
            hold_s = track.hold_s(failback_s)
            reason = (
                f"it fell {track.falls.level(now):.0f} times lately and must be well for {hold_s:.0f} s before it "
                f"carries traffic again; look at uplink {path.uplink}: cable, signal, modem"
            )
            found.append(Condition("PathFlapping", str(path), reason))
    return tuple(found)


def _lacking(carries: bool, by_bundle: Mapping[str, Breach]) -> str:
    worst = max(by_bundle.values(), key=lambda one: one.measured / one.allowed)
    names = ", ".join(sorted(by_bundle))
    if carries:
        return f"{worst} for {names}, and no other path is known to do better; ask the provider of its uplink"
    return f"{worst} for {names}, which went elsewhere; ask the provider of its uplink"
