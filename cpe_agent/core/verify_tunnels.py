"""Does charon hold exactly the tunnels that the document asks for?

In: the wanted `Tunnels` and bundles, and charon's own account. Out: what differs, in words. Pure. A dialled path must
have its IKE_SA and probe CHILD_SA, and each bundle one path that carries it; which one is steering's choice, and not
the document's. A bundle that is `barred` may be carried by none, and none is to be carried on a path that is not among
its own: those are what its class may use, as far as the monthly bytes of their uplinks go. What a peer dials may be
there or not, and be narrower than what we would agree to, but never wider.

A bundle that moves to another hub keeps the CHILD_SA that it left for a moment (core.tunnels says why): that is no
difference yet.

An IKE_SA in DELETING has been ended already, and charon keeps it only until its peer has answered or the whole
retransmission cycle is over, which is minutes if the address under it has gone. It is no difference that it is there:
there is nothing left to be done about it. But it stands in for nothing, and what its CHILD_SAs admit beyond the
document is told, since packets may still come out of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cpe_agent.core.carried import just_left
from cpe_agent.core.selectors import uncovered
from cpe_agent.model.dataplane import PROBE_CHILD, Bundle, Child, Connection, Path, Tunnels, stem_of
from cpe_agent.model.difference import Kind
from cpe_agent.model.observed import Charon, ChildSa, IkeSa, LoadedChild

DELETING = "DELETING"


def tunnels(wanted: Tunnels, bundles: Iterable[Bundle], charon: Charon) -> Iterator[tuple[Kind, str]]:
    """Everything that differs."""
    if wanted.connections and not charon.credentials_loaded:
        yield Kind.MISSING, "credentials: charon does not hold our key, our certificates and the authorities, no others"
    by_name = {connection.name: connection for connection in wanted.connections}
    stems = {connection.stem: connection for connection in wanted.connections}
    for connection in wanted.connections:
        yield from connection_differences(connection, charon.connections.get(connection.name))
    for name in sorted(set(charon.connections) - set(by_name)):
        why = "has other settings than the document's" if stem_of(name) in stems else "is not in the document"
        yield Kind.FOREIGN, f"connection {name} {why}"
    held: dict[str, list[IkeSa]] = {}
    for sa in charon.ike_sas:
        if sa.state == DELETING:
            yield from _left_open(sa, by_name.get(sa.connection) or stems.get(stem_of(sa.connection)))
            continue
        held.setdefault(sa.connection, []).append(sa)
        yield from _ike_sa(sa, by_name.get(sa.connection), stems, sa.connection in charon.connections)
    for connection in wanted.connections:
        if connection.path is not None:
            yield from _path(connection, held.get(connection.name, []))
    for bundle in bundles:
        barred = bundle.child in wanted.barred
        yield from _bundle(bundle, (sa for sas in held.values() for sa in sas), barred)


def connection_differences(
    connection: Connection, loaded: tuple[LoadedChild, ...] | None
) -> Iterator[tuple[Kind, str]]:
    """What differs between a wanted connection and what is loaded under its name (None: nothing is)."""
    if loaded is None:
        yield Kind.MISSING, f"connection {connection.stem}"
        return
    living = {child.name: child for child in loaded}
    for child in connection.children:
        where = f"connection {connection.stem}, child {child.name}"
        have = living.pop(child.name, None)
        if have is None:
            yield Kind.MISSING, where
            continue
        for side, asked, found in (
            ("local", child.local_ts, have.local_ts),
            ("remote", child.remote_ts, have.remote_ts),
        ):
            # In their order as well: so the agent compares, and would load it anew.
            if asked != found:
                yield Kind.ALTERED, f"{where}: {side} selectors are {_list(found)}, not {_list(asked)}"
    for name in living:
        yield Kind.FOREIGN, f"connection {connection.stem}, child {name}"


def _ike_sa(
    sa: IkeSa, connection: Connection | None, stems: dict[str, Connection], loaded: bool
) -> Iterator[tuple[Kind, str]]:
    label = f"IKE_SA {sa.unique_id} of {stem_of(sa.connection)}"
    if connection is None:
        if stem_of(sa.connection) in stems:
            yield Kind.ALTERED, f"{label} was made with other settings than the document's ({sa.connection})"
        else:
            yield Kind.FOREIGN, f"{label} belongs to no connection of the document ({sa.connection})"
    elif not loaded:
        yield Kind.FOREIGN, f"{label} has no connection: that is not loaded"
    known = connection or stems.get(stem_of(sa.connection))
    for child in sa.children if known else ():
        if child.installed:
            yield from _child(child, known, label)


def _left_open(sa: IkeSa, connection: Connection | None) -> Iterator[tuple[Kind, str]]:
    """What may still come out of an IKE_SA that is being deleted although the document does not admit it."""
    known = {child.name: child for child in connection.children} if connection else {}
    for child in sa.children:
        config = known.get(child.name)
        beyond = _compared(child, config)[0] if config else [*child.local_ts, *child.remote_ts]
        if child.installed and beyond:
            where = f"CHILD_SA {child.unique_id} ({child.name}) in IKE_SA {sa.unique_id} of {stem_of(sa.connection)}"
            yield Kind.ALTERED, f"{where}, which is being deleted, goes beyond the document: {_list(beyond)}"


def _child(child: ChildSa, connection: Connection | None, label: str) -> Iterator[tuple[Kind, str]]:
    where = f"CHILD_SA {child.unique_id} ({child.name}) in {label}"
    config = next((c for c in connection.children if c.name == child.name), None) if connection else None
    if connection is None or config is None:
        yield Kind.FOREIGN, f"{where}: the document has no such child there"
        return
    beyond, short = _compared(child, config)
    if beyond:
        yield Kind.ALTERED, f"{where} goes beyond the document: {_list(beyond)}"
    # The dialler asks; whoever answers may have been asked for less.
    if short and connection.path is not None:
        yield Kind.ALTERED, f"{where} falls short of the document: {_list(short)}"


def _compared(child: ChildSa, config: Child) -> tuple[list[str], list[str]]:
    beyond, short = [], []
    for found, asked in ((child.local_ts, config.local_ts), (child.remote_ts, config.remote_ts)):
        beyond += uncovered(found, asked)
        short += uncovered(asked, found)
    return beyond, short


def _path(connection: Connection, sas: list[IkeSa]) -> Iterator[tuple[Kind, str]]:
    established = [sa for sa in sas if sa.established]
    if not established:
        state = f" (one is {sas[0].state})" if sas else ""
        yield Kind.MISSING, f"path {connection.stem}: no established IKE_SA{state}"
        return
    # One that has been replaced is on its way out.
    current = [sa for sa in established if sa.state == "ESTABLISHED"]
    if len(current) > 1:
        ids = ", ".join(str(sa.unique_id) for sa in current)
        yield Kind.FOREIGN, f"path {connection.stem}: more than one IKE_SA ({ids})"
    if not any(child.name == PROBE_CHILD and child.installed for sa in established for child in sa.children):
        yield Kind.MISSING, f"path {connection.stem}: no probe CHILD_SA"


def _bundle(bundle: Bundle, sas: Iterable[IkeSa], barred: bool) -> Iterator[tuple[Kind, str]]:
    found = [
        (path, child)
        for sa in sas
        for child in sa.children
        if child.name == bundle.child and child.installed and (path := Path.parse(stem_of(sa.connection)))
    ]
    if not found:
        if not barred:
            yield Kind.MISSING, f"bundle {bundle.name}: no CHILD_SA carries it"
        return
    at, newest = max(found, key=lambda carried: carried[1].unique_id)
    carrying = sorted({str(path) for path, _ in found if not just_left(path, at, newest)})
    if len(carrying) > 1:
        yield Kind.FOREIGN, f"bundle {bundle.name}: carried on more than one path ({', '.join(carrying)})"
    for path in sorted({path for path, _ in found} - set(bundle.paths)):
        yield Kind.FOREIGN, f"bundle {bundle.name}: carried on {path}, whose uplink it may not use (any more)"


def _list(selectors: Iterable[str]) -> str:
    return ", ".join(selectors) or "none"
