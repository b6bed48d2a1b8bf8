"""What would be changed, if the wanted data plane were made the living one?

In: the wanted data plane, and what nftables, netlink and charon hold. Out: the operations in the order in which they
would be made: close rules, routes, tunnels, open rules. Pure, and made of the same diffs that the daemon obeys. The
rest is foresight: charon is imagined to do as it is told and every peer to agree, until there is nothing left to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum

import msgspec

from cpe_agent.core import firewall, routes, tunnels
from cpe_agent.core.carried import carrying
from cpe_agent.core.compile import with_active
from cpe_agent.core.verify import structure
from cpe_agent.core.verify_tunnels import connection_differences
from cpe_agent.model.dataplane import Bundle, Connection, Dataplane, Path, Routes, Ruleset, Tunnels, stem_of
from cpe_agent.model.difference import Kind
from cpe_agent.model.observed import Charon, ChildSa, IkeSa, LoadedChild
from cpe_agent.model.ops import (
    AddElements,
    DeleteElements,
    FirewallOp,
    Initiate,
    LoadConnection,
    LoadCredentials,
    ReplaceSet,
    ReplaceTable,
    TerminateChild,
    TerminateIke,
    TunnelOp,
    UnloadConnection,
)
from cpe_agent.model.words import describe

# A path starts one child per look. Nobody has this many bundles; what goes on for longer goes on for ever.
LOOKS_MAX = 200

# What is to be done about a difference.
_TURNED = {Kind.MISSING: "adds", Kind.FOREIGN: "removes", Kind.ALTERED: "changes"}


class Stage(Enum):
    """The parts of a pass, in order."""

    CLOSE_RULES = "close rules"
    ROUTES = "routes"
    TUNNELS = "tunnels"
    OPEN_RULES = "open rules"


class Operation(msgspec.Struct, frozen=True):
    """One change in words, and what there is to say about it, such as the elements of a set one by one."""

    stage: Stage
    what: str
    details: tuple[str, ...] = ()


class Preview(msgspec.Struct, frozen=True):
    """What would be changed for this document, and what else there is to say: what is in its way or not foreseen."""

    site: str
    document_epoch: int
    document_version: int
    count: int
    operations: tuple[Operation, ...]
    notes: tuple[str, ...]


def preview(
    wanted: Dataplane,
    ruleset: Ruleset | None,
    living_routes: Routes,
    charon: Charon | None,
    pair_of: Mapping[str, str],
    *,
    to_the_end: bool,
) -> tuple[Operation, ...]:
    """The operations. `charon` None: it does not answer, and nothing is foreseen of it. `pair_of`: pair id by "SET
    ELEMENT". Not `to_the_end`: only what the next pass would do with charon, before charon has done anything."""
    closing, opening = firewall.diff(wanted.ruleset, ruleset)
    found = [_firewall(Stage.CLOSE_RULES, op, wanted, ruleset, pair_of) for op in closing]
    found += [Operation(Stage.ROUTES, describe(op)) for op in routes.diff(wanted.routes, living_routes)]
    if charon is not None:
        found += _tunnels(wanted, charon, to_the_end)
    found += [_firewall(Stage.OPEN_RULES, op, wanted, ruleset, pair_of) for op in opening]
    return tuple(found)


def _firewall(
    stage: Stage, op: FirewallOp, wanted: Dataplane, ruleset: Ruleset | None, pair_of: Mapping[str, str]
) -> Operation:
    details: tuple[str, ...] = ()
    if isinstance(op, AddElements | DeleteElements):
        details = tuple(_element(op.set_name, element, pair_of) for element in sorted(op.elements))
    elif isinstance(op, ReplaceTable):
        details = tuple(f"{_TURNED[kind]} {what}" for kind, what in structure(wanted.ruleset, ruleset))
    elif isinstance(op, ReplaceSet):
        name = op.new.name
        old = next((s.elements for s in ruleset.sets if s.name == name), frozenset()) if ruleset else frozenset()
        details = (
            *(f"without {_element(name, element, pair_of)}" for element in sorted(old - op.new.elements)),
            *(f"with {_element(name, element, pair_of)}" for element in sorted(op.new.elements - old)),
        )
    return Operation(stage, describe(op), details)


def _element(set_name: str, element: str, pair_of: Mapping[str, str]) -> str:
    pair = pair_of.get(f"{set_name} {element}")
    return f"{element} (pair {pair})" if pair else element


def _tunnels(wanted: Dataplane, charon: Charon, to_the_end: bool) -> list[Operation]:
    asked = with_active(wanted.tunnels, wanted.bundles, _active(wanted, charon), frozenset())
    asked = msgspec.structs.replace(asked, barred=wanted.tunnels.barred)
    if not to_the_end:
        return [_tunnel(op, charon) for op in tunnels.step(asked, charon, {}, 0.0).ops]
    found: list[Operation] = []
    imagined = _at_rest(charon)
    for _ in range(LOOKS_MAX):
        ops = tunnels.step(asked, imagined, {}, 0.0).ops
        if not ops:
            break
        for op in ops:
            found.append(_tunnel(op, imagined))
            imagined = _after(imagined, op, asked)
    return found


def _active(wanted: Dataplane, charon: Charon) -> dict[str, Path | None]:
    """Where each bundle will be: where it is, else on its best path that is up, else on its best path."""
    carried = carrying(wanted.bundles, charon)
    up = {stem_of(sa.connection) for sa in charon.ike_sas if sa.established}
    return {bundle.name: _best(bundle, carried.get(bundle.name), up) for bundle in wanted.bundles}


def _best(bundle: Bundle, carried: Path | None, up: Iterable[str]) -> Path | None:
    if carried in bundle.paths:
        return carried
    return next((path for path in bundle.paths if str(path) in up), next(iter(bundle.paths), None))


def _tunnel(op: TunnelOp, charon: Charon) -> Operation:
    details: tuple[str, ...] = ()
    what = describe(op)
    if isinstance(op, LoadConnection):
        details = _loaded(op.connection, charon)
    elif isinstance(op, TerminateIke):
        # Ids mean something to charon only.
        stem = next((stem_of(sa.connection) for sa in charon.ike_sas if sa.unique_id == op.unique_id), "")
        what += f" of {stem}" if stem else ""
    elif isinstance(op, TerminateChild):
        places = ((sa, c) for sa in charon.ike_sas for c in sa.children if c.unique_id == op.unique_id)
        what += next((f" ({child.name}) of {stem_of(sa.connection)}" for sa, child in places), "")
    return Operation(Stage.TUNNELS, what, details)


def _loaded(connection: Connection, charon: Charon) -> tuple[str, ...]:
    """Whether the connection is new, has a successor's settings, or which of its children change."""
    loaded = charon.connections.get(connection.name)
    if loaded is not None:
        return tuple(f"{_TURNED[kind]} {what}" for kind, what in connection_differences(connection, loaded))
    others = [name for name in charon.connections if stem_of(name) == connection.stem]
    return ("with other settings than the present one",) if others else ()


def _at_rest(charon: Charon) -> Charon:
    """As it will be when what is under way has come to nothing."""
    kept = tuple(msgspec.structs.replace(sa, busy=False) for sa in charon.ike_sas if sa.established)
    return msgspec.structs.replace(charon, ike_sas=kept)


def _after(charon: Charon, op: TunnelOp, wanted: Tunnels) -> Charon:
    """charon when it has done `op` and the peer has agreed."""
    connections, sas, credentials = dict(charon.connections), list(charon.ike_sas), charon.credentials_loaded
    match op:
        case LoadCredentials():
            credentials = True
        case LoadConnection():
            connections[op.connection.name] = tuple(
                LoadedChild(child.name, child.local_ts, child.remote_ts) for child in op.connection.children
            )
        case UnloadConnection():
            connections.pop(op.name, None)
        case Initiate():
            sas = _initiated(sas, op, wanted)
        case TerminateIke():
            sas = [sa for sa in sas if sa.unique_id != op.unique_id]
        case TerminateChild():
            sas = [
                msgspec.structs.replace(sa, children=tuple(c for c in sa.children if c.unique_id != op.unique_id))
                for sa in sas
            ]
    return Charon(connections, tuple(sas), credentials)


def _initiated(sas: list[IkeSa], op: Initiate, wanted: Tunnels) -> list[IkeSa]:
    config = next(
        child
        for connection in wanted.connections
        if connection.name == op.connection
        for child in connection.children
        if child.name == op.child
    )
    newest = max((sa for sa in sas if sa.connection == op.connection), key=lambda sa: sa.unique_id, default=None)
    number = 1 + max((n for sa in sas for n in (sa.unique_id, *(c.unique_id for c in sa.children))), default=0)
    child = ChildSa(config.name, number, "INSTALLED", config.local_ts, config.remote_ts)
    if newest is None:
        return [*sas, IkeSa(op.connection, number, "ESTABLISHED", True, children=(child,))]
    return [msgspec.structs.replace(sa, children=(*sa.children, child)) if sa is newest else sa for sa in sas]
