"""Does charon come to hold the wanted tunnels from whatever it holds, whatever fails on the way, without a gap?"""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from cpe_agent.core.carried import carrying
from cpe_agent.core.compile import with_active
from cpe_agent.core.tunnels import Attempt, Step, altered, step
from cpe_agent.model.dataplane import PROBE_CHILD, Connection, Tunnels, stem_of
from cpe_agent.model.observed import Charon, IkeSa
from cpe_agent.model.ops import (
    Initiate,
    LoadConnection,
    LoadCredentials,
    TerminateChild,
    TerminateIke,
    TunnelOp,
    UnloadConnection,
)
from tests.core.charons import (
    CONNECTIONS,
    PLAN,
    installed,
    loaded,
    sa_of,
    with_other_settings,
)


class SimulatedCharon:
    """Initiations take a round trip (a `turn`), some of the first fail; what charon refuses or mistakes is an error."""

    def __init__(self, wanted: Tunnels, sas: list[IkeSa], failures: int) -> None:
        self.wanted = wanted
        self.connections: dict[str, Connection] = {}
        self.credentials = False
        self.sas = {sa.unique_id: sa for sa in sas}
        self.failures = failures
        self.pending: dict[int, str] = {}
        self.next_id = 10_000  # above all that are there

    def read(self) -> Charon:
        return msgspec.structs.replace(
            loaded(*self.sas.values(), connections=tuple(self.connections.values())),
            credentials_loaded=self.credentials,
        )

    def new_id(self) -> int:
        self.next_id += 1
        return self.next_id

    def apply(self, op: TunnelOp) -> None:
        match op:
            case LoadCredentials():
                self.credentials = True
            case LoadConnection(connection):
                self.connections[connection.name] = connection
            case UnloadConnection(name):
                del self.connections[name]
            case Initiate(connection=name, child=child):
                self.initiate(name, child)
            case TerminateChild(unique_id):
                self.end_child(unique_id)
            case TerminateIke(unique_id):
                del self.sas[unique_id]
                self.pending.pop(unique_id, None)

    def initiate(self, name: str, child: str) -> None:
        assert self.credentials and child in {c.name for c in self.connections[name].children}
        same = [sa for sa in self.sas.values() if sa.connection == name]
        assert not any(sa.unique_id in self.wanted.dead for sa in same), "it would start in the dead IKE_SA"
        live = [sa for sa in same if sa.established]
        if live:
            newest = max(live, key=lambda sa: sa.unique_id)
            assert not newest.busy, "two in flight on one path"
            sa = msgspec.structs.replace(newest, busy=True)
        else:
            assert not same, "two in flight on one path"
            sa = IkeSa(name, self.new_id(), "CONNECTING", True)
        self.sas[sa.unique_id], self.pending[sa.unique_id] = sa, child

    def end_child(self, unique_id: int) -> None:
        for sa in self.sas.values():
            if any(child.unique_id == unique_id for child in sa.children):
                left = tuple(child for child in sa.children if child.unique_id != unique_id)
                self.sas[sa.unique_id] = msgspec.structs.replace(sa, children=left)

    def turn(self) -> None:
        """What is in flight arrives, or fails."""
        for unique_id, sa in list(self.sas.items()):
            child = self.pending.pop(unique_id, None)
            if child is None and sa.established and not sa.busy:
                continue
            if child is None or self.failures > 0:
                # Not ours, or unlucky: charon gives up.
                self.failures -= child is not None
                if sa.established:
                    self.sas[unique_id] = msgspec.structs.replace(sa, busy=False)
                else:
                    del self.sas[unique_id]
                continue
            config = next(c for c in self.connections[sa.connection].children if c.name == child)
            children = (*sa.children, installed(config, self.new_id()))
            self.sas[unique_id] = msgspec.structs.replace(sa, state="ESTABLISHED", busy=False, children=children)

    def carried(self) -> set[str]:
        """Traffic that is not in a hole: its child is on an IKE_SA that is not dead."""
        return {
            child.name
            for sa in self.sas.values()
            if sa.unique_id not in self.wanted.dead and stem_of(sa.connection) in CONNECTIONS
            for child in sa.children
            if child.name != PROBE_CHILD
        }


@st.composite
def histories(draw: st.DrawFn) -> tuple[Tunnels, list[IkeSa]]:
    """A wanted state and an unrelated one that charon is in."""
    sas: list[IkeSa] = []
    for connection in CONNECTIONS.values():
        for _ in range(draw(st.integers(0, 2))):
            made_with = draw(st.sampled_from([connection, connection, with_other_settings(connection)]))
            names = draw(st.lists(st.sampled_from([child.name for child in connection.children]), max_size=4))
            state = draw(st.sampled_from(["ESTABLISHED", "ESTABLISHED", "CONNECTING"]))
            held = names if state == "ESTABLISHED" else []
            sas.append(sa_of(made_with, len(sas) + 1, *held, state=state, busy=draw(st.booleans())))
    dead = draw(st.frozensets(st.sampled_from([sa.unique_id for sa in sas]))) if sas else frozenset()
    active = {
        bundle.name: draw(st.sampled_from([None, *(path for path in bundle.paths if str(path) in CONNECTIONS)]))
        for bundle in PLAN.bundles
    }
    return with_active(PLAN.tunnels, PLAN.bundles, active, dead), sas


@settings(max_examples=120, deadline=None)
@given(histories(), st.integers(0, 4))
def test_from_any_state_to_the_wanted_one_without_a_gap(start: tuple[Tunnels, list[IkeSa]], failures: int) -> None:
    wanted, sas = start
    charon = SimulatedCharon(wanted, sas, failures)
    placed = {name for names in wanted.active.values() for name in names}
    attempts: dict[tuple[str, str], Attempt] = {}
    now, found = 0.0, Step((), {}, None)
    for _ in range(80):
        found = step(wanted, charon.read(), attempts, now)
        attempts = found.attempts
        assert found.wake_at is None or found.wake_at > now
        dialled = [stem_of(op.connection) for op in found.ops if isinstance(op, Initiate)]
        assert len(dialled) == len(set(dialled))
        carried = charon.carried() & placed
        for op in found.ops:
            charon.apply(op)
            assert carried <= charon.carried(), f"{op} leaves traffic without a child"
        charon.turn()
        if not found.ops and found.wake_at is None and not charon.pending:
            break
        now = max(now + 0.1, found.wake_at or 0.0)
    assert found.ops == (), "it never comes to rest"
    observed = charon.read()
    assert altered(wanted, observed) == ()
    where = carrying(PLAN.bundles, observed)
    assert all(
        where[bundle.name] == path
        for path, names in wanted.active.items()
        for bundle in PLAN.bundles
        if bundle.child in names
    )
    for connection in wanted.connections:
        assert connection.path is not None
        (sa,) = [sa for sa in observed.ike_sas if stem_of(sa.connection) == connection.stem]
        assert sa.connection == connection.name and sa.unique_id not in wanted.dead
        here = sorted(child.name for child in sa.children)
        belonging = {PROBE_CHILD, *wanted.active.get(connection.path, frozenset())}
        assert len(here) == len(set(here)) or set(here) - belonging - placed, here
        assert belonging <= set(here)
        # Else only what belongs nowhere yet.
        assert not (set(here) - belonging) & placed
