"""Where is each bundle carried, and what stays for a moment of the place that it has left?

In: wanted `Tunnels` and charon's IKE_SAs. Out: `Carried`. Pure, and nothing is remembered: charon tells how old a
CHILD_SA is. Theory of operation:

- charon sends a bundle's packets into the newest CHILD_SA of its name, on whatever path that is.
- A server takes its time to answer. The answer comes to the hub that the question came from, and without the child that
  hub has nowhere to send it. So what was left for another hub stays while the new child is young: its answers are late.
  Of one hub's paths the newest child takes the late answers too: there is nothing to wait for.
- A bundle that goes back within that time finds the child that it had left, but the other hub's is newer and keeps the
  traffic: to end that one while it is sent into loses what is under way. The older is overtaken, and carries nothing.
  When the newer one's path has fallen there is nothing to lose.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from cpe_agent.model.dataplane import Bundle, Child, Connection, Path, Tunnels, stem_of
from cpe_agent.model.observed import Charon, ChildSa, IkeSa


class Carried(msgspec.Struct, frozen=True):
    """`at`: traffic children that carry their bundle where it belongs now: by name, where that is, and the newest of
    them. `late`: unique ids of what was left, by which answers may still come. `overtaken`: of what is where it belongs
    but is older than what another path has."""

    at: dict[str, tuple[Path, ChildSa]] = {}
    late: frozenset[int] = frozenset()
    overtaken: frozenset[int] = frozenset()


def find(wanted: Tunnels, sas: Iterable[IkeSa]) -> Carried:
    """By one look at charon."""
    alive = [sa for sa in sas if sa.unique_id not in wanted.dead]
    at: dict[str, tuple[Path, ChildSa]] = {}
    overtaken: set[int] = set()
    for path, child in _placed(wanted, alive):
        if any(rival.unique_id > child.unique_id for rival in _elsewhere(child.name, path, wanted, alive)):
            overtaken.add(child.unique_id)
        else:
            at[child.name] = path, child
    return Carried(at, _late(wanted, alive, at), frozenset(overtaken))


def carrying(bundles: Iterable[Bundle], charon: Charon) -> dict[str, Path]:
    """Bundle name -> the path of its newest installed traffic child."""
    newest: dict[str, tuple[int, Path]] = {}
    for sa in charon.ike_sas:
        path = Path.parse(stem_of(sa.connection))
        if path is None:
            continue
        for child in sa.children:
            if child.installed and child.unique_id > newest.get(child.name, (0, path))[0]:
                newest[child.name] = (child.unique_id, path)
    return {bundle.name: newest[bundle.child][1] for bundle in bundles if bundle.child in newest}


def just_left(left: Path, path: Path, newest: ChildSa) -> bool:
    """Has what `newest` carries on `path` been at the other hub, by `left`, until a moment ago?"""
    return newest.young and left.peer != path.peer


def config_of(connection: Connection, name: str) -> Child | None:
    """What the connection says of a CHILD_SA of this name."""
    return next((child for child in connection.children if child.name == name), None)


def newest_like(sa: IkeSa, config: Child) -> ChildSa | None:
    """The newest installed child of this name whose selectors are the wanted ones (a narrowed one does not count)."""
    found = [
        child
        for child in sa.children
        if child.name == config.name
        and child.installed
        and sorted(child.local_ts) == sorted(config.local_ts)
        and sorted(child.remote_ts) == sorted(config.remote_ts)
    ]
    return max(found, key=lambda child: child.unique_id, default=None)


def _placed(wanted: Tunnels, alive: list[IkeSa]) -> Iterator[tuple[Path, ChildSa]]:
    """Traffic children that are installed, whole, on the path where they belong: the newest of each there."""
    by_stem: dict[str, list[IkeSa]] = {}
    for sa in alive:
        by_stem.setdefault(stem_of(sa.connection), []).append(sa)
    for connection in wanted.connections:
        path = connection.path
        for name in wanted.active.get(path, frozenset()) if path is not None else ():
            config = config_of(connection, name)
            held = by_stem.get(connection.stem, [])
            children = [child for sa in held if config and (child := newest_like(sa, config))]
            if path is not None and children:
                yield path, max(children, key=lambda child: child.unique_id)


def _elsewhere(name: str, path: Path, wanted: Tunnels, alive: list[IkeSa]) -> Iterator[ChildSa]:
    """What charon would rather send by, on paths that answer."""
    for sa in alive:
        other = Path.parse(stem_of(sa.connection))
        if sa.established and other not in (None, path) and other not in wanted.fallen:
            yield from (child for child in sa.children if child.name == name and child.installed)


def _late(wanted: Tunnels, alive: list[IkeSa], at: dict[str, tuple[Path, ChildSa]]) -> frozenset[int]:
    moved = {name: place for name, place in at.items() if place[1].young}
    found: set[int] = set()
    for sa in alive if moved else ():
        left = Path.parse(stem_of(sa.connection))
        if left is not None and left not in wanted.fallen:
            found |= {c.unique_id for c in sa.children if c.name in moved and just_left(left, *moved[c.name])}
    return frozenset(found)
