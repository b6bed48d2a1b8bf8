"""Does charon come to hold the wanted tunnels, from whatever it holds, without a gap and without being hurried?"""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpe_agent.core.carried import carrying
from cpe_agent.core.compile import Site, compile_dataplane, with_active
from cpe_agent.core.tunnels import (
    LATE_S,
    RETRY_FIRST_S,
    RETRY_MAX_S,
    UNANSWERED_S,
    Attempt,
    Attempts,
    Step,
    altered,
    head_start,
    step,
)
from cpe_agent.model.dataplane import PROBE_CHILD, Backend, Child, Connection, Path, Tunnels, stem_of
from cpe_agent.model.observed import Charon, ChildSa, IkeSa, LoadedChild
from cpe_agent.model.ops import (
    Initiate,
    LoadConnection,
    LoadCredentials,
    TerminateChild,
    TerminateIke,
    TunnelOp,
    UnloadConnection,
)
from tests.core.documents import BRANCH, HUB_LINKS, LINKS, branch, hub

PLAN = compile_dataplane(branch(), LINKS, BRANCH)[0]
CONNECTIONS = {connection.stem: connection for connection in PLAN.tunnels.connections}
WIRED = CONNECTIONS["wired.centre.a"]
LTE = CONNECTIONS["lte.centre.a"]
ON_WIRED, ON_LTE = (Path(uplink, "centre", "a") for uplink in ("wired", "lte"))
CENTRE, SHARED = "traffic-centre", "traffic-centre+cloud"


def sa_of(
    connection: Connection, unique_id: int, *children: str, state: str = "ESTABLISHED", busy: bool = False
) -> IkeSa:
    """An IKE_SA that holds these children of its connection; the n-th has unique id 100 x the IKE_SA's + n."""
    configs = {child.name: child for child in connection.children}
    held = [installed(configs[name], 100 * unique_id + n) for n, name in enumerate(children)]
    return IkeSa(connection.name, unique_id, state, True, busy=busy, children=tuple(held))


def installed(config: Child, unique_id: int) -> ChildSa:
    return ChildSa(config.name, unique_id, "INSTALLED", config.local_ts, config.remote_ts)


def young(sa: IkeSa) -> IkeSa:
    return msgspec.structs.replace(sa, children=tuple(msgspec.structs.replace(c, young=True) for c in sa.children))


def loaded(*sas: IkeSa, connections: tuple[Connection, ...] = (WIRED, LTE)) -> Charon:
    names = {
        c.name: tuple(LoadedChild(child.name, child.local_ts, child.remote_ts) for child in c.children)
        for c in connections
    }
    return Charon(names, sas, True)


def ops(wanted: Tunnels, observed: Charon) -> list[TunnelOp]:
    return list(step(wanted, observed, {}, 0.0).ops)


def wanted_on(path: Path | None, dead: frozenset[int] = frozenset()) -> Tunnels:
    return Tunnels((WIRED, LTE), {path: frozenset({CENTRE})} if path else {}, dead)


def remade(*children: int) -> Tunnels:
    return msgspec.structs.replace(wanted_on(ON_WIRED), remake=frozenset(children))


def barred(*names: str) -> Tunnels:
    return msgspec.structs.replace(wanted_on(None), barred=frozenset(names))


def with_other_settings(connection: Connection) -> Connection:
    return msgspec.structs.replace(connection, ike=msgspec.structs.replace(connection.ike, reauth_s=1))


OLD_WIRED = with_other_settings(WIRED)
GOOD_WIRED = sa_of(WIRED, 1, PROBE_CHILD, CENTRE)
GOOD_LTE = sa_of(LTE, 2, PROBE_CHILD)


@pytest.mark.parametrize(
    ("wanted", "sas", "expected"),
    [
        # In place.
        (wanted_on(ON_WIRED), (GOOD_WIRED, GOOD_LTE), []),
        # Nothing there: the bundle's path starts with its traffic, which goes first.
        (wanted_on(ON_LTE), (), [Initiate(LTE.name, CENTRE), Initiate(WIRED.name, PROBE_CHILD)]),
        # Set-up or a task of ours is under way: one in flight per path.
        (wanted_on(ON_WIRED), (sa_of(WIRED, 1, state="CONNECTING"), GOOD_LTE), []),
        (wanted_on(ON_WIRED), (sa_of(WIRED, 1, PROBE_CHILD, busy=True), GOOD_LTE), []),
        # A move: the new one is asked for, the old one stays ...
        (wanted_on(ON_LTE), (GOOD_WIRED, GOOD_LTE), [Initiate(LTE.name, CENTRE)]),
        # ... until the new one is there.
        (wanted_on(ON_LTE), (GOOD_WIRED, sa_of(LTE, 2, PROBE_CHILD, CENTRE)), [TerminateChild(101)]),
        # The probe child after the traffic child.
        (wanted_on(ON_WIRED), (sa_of(WIRED, 1, CENTRE), GOOD_LTE), [Initiate(WIRED.name, PROBE_CHILD)]),
        # Dead, and the traffic goes elsewhere: that first.
        (
            wanted_on(ON_LTE, frozenset({1})),
            (GOOD_WIRED, GOOD_LTE),
            [Initiate(LTE.name, CENTRE), TerminateIke(1, force=True)],
        ),
        # Dead, and there is no other: charon would refuse a double, so it must be gone first.
        (wanted_on(ON_WIRED, frozenset({1})), (GOOD_WIRED, GOOD_LTE), [TerminateIke(1, force=True)]),
        # A bundle that is not placed yet keeps its child: the agent has just been restarted.
        (wanted_on(None), (GOOD_WIRED, GOOD_LTE), []),
        # Other settings: the successor is made beside it ...
        (wanted_on(ON_WIRED), (sa_of(OLD_WIRED, 1, PROBE_CHILD, CENTRE), GOOD_LTE), [Initiate(WIRED.name, CENTRE)]),
        (
            wanted_on(ON_WIRED),
            (sa_of(OLD_WIRED, 1, PROBE_CHILD, CENTRE), sa_of(WIRED, 3, CENTRE), GOOD_LTE),
            [Initiate(WIRED.name, PROBE_CHILD)],
        ),
        # ... and takes over when it carries all.
        (
            wanted_on(ON_WIRED),
            (sa_of(OLD_WIRED, 1, PROBE_CHILD, CENTRE), sa_of(WIRED, 3, CENTRE, PROBE_CHILD), GOOD_LTE),
            [TerminateIke(1, force=False)],
        ),
        # Other settings on the path that is left, before the traffic has arrived where it goes.
        (
            wanted_on(ON_LTE),
            (sa_of(OLD_WIRED, 1, CENTRE), sa_of(WIRED, 3, PROBE_CHILD), GOOD_LTE),
            [Initiate(LTE.name, CENTRE)],
        ),
        # A double.
        (wanted_on(ON_WIRED), (sa_of(WIRED, 1, PROBE_CHILD, CENTRE, CENTRE), GOOD_LTE), [TerminateChild(101)]),
        # Nothing comes back through it: it is ended, and started anew once it is gone.
        (remade(101), (GOOD_WIRED, GOOD_LTE), [TerminateChild(101)]),
        (remade(101), (sa_of(WIRED, 1, PROBE_CHILD), GOOD_LTE), [Initiate(WIRED.name, CENTRE)]),
        # It may live nowhere now, though nobody else carries it.
        (barred(CENTRE), (GOOD_WIRED, GOOD_LTE), [TerminateChild(101)]),
        # A path that is wanted no more; its traffic is elsewhere.
        (
            wanted_on(ON_WIRED),
            (GOOD_WIRED, GOOD_LTE, sa_of(CONNECTIONS["lte.cloud.a"], 9, PROBE_CHILD)),
            [TerminateIke(9, force=True)],
        ),
    ],
)
def test_one_look(wanted: Tunnels, sas: tuple[IkeSa, ...], expected: list[TunnelOp]) -> None:
    assert ops(wanted, loaded(*sas)) == expected


@pytest.mark.parametrize(
    ("wanted", "known", "expected"),
    [
        # A move: what is started, and nothing else, is started.
        (wanted_on(ON_LTE), loaded(GOOD_WIRED, GOOD_LTE), [Initiate(LTE.name, CENTRE)]),
        (wanted_on(ON_LTE, frozenset({1})), loaded(GOOD_WIRED, GOOD_LTE), [Initiate(LTE.name, CENTRE)]),
        # In place already, not established, busy, judged dead, not loaded: that is for a look.
        (wanted_on(ON_WIRED), loaded(GOOD_WIRED, GOOD_LTE), []),
        (wanted_on(ON_LTE), loaded(GOOD_WIRED), []),
        (wanted_on(ON_LTE), loaded(GOOD_WIRED, sa_of(LTE, 2, state="CONNECTING")), []),
        (wanted_on(ON_LTE), loaded(GOOD_WIRED, sa_of(LTE, 2, PROBE_CHILD, busy=True)), []),
        (wanted_on(ON_LTE, frozenset({2})), loaded(GOOD_WIRED, GOOD_LTE), []),
        (wanted_on(ON_LTE), loaded(GOOD_WIRED, GOOD_LTE, connections=(WIRED,)), []),
    ],
)
def test_a_head_start(wanted: Tunnels, known: Charon, expected: list[TunnelOp]) -> None:
    assert list(head_start(wanted, known, {}, 0.0).ops) == expected


def test_that_a_head_start_is_counted_and_not_made_again_in_a_hurry() -> None:
    known = loaded(GOOD_WIRED, GOOD_LTE)
    other = {("cpe-other", PROBE_CHILD): Attempt(3, 9.0)}
    first = head_start(wanted_on(ON_LTE), known, other, 0.0)
    assert first.attempts == {**other, (LTE.name, CENTRE): Attempt(1, first.attempts[LTE.name, CENTRE].not_before)}
    # The look right after it does not see it in charon yet.
    assert step(wanted_on(ON_LTE), known, first.attempts, 0.01).ops == ()
    assert head_start(wanted_on(ON_LTE), known, first.attempts, 0.01).ops == ()


def test_what_was_left_for_another_hub_waits_for_late_answers() -> None:
    left, cloud = sa_of(WIRED, 1, PROBE_CHILD, SHARED), CONNECTIONS["wired.cloud.a"]
    there = sa_of(cloud, 2, PROBE_CHILD, SHARED)
    there_on = Path("wired", "cloud", "a")
    wanted = Tunnels((WIRED, cloud), {there_on: frozenset({SHARED})})

    def look(sas: tuple[IkeSa, ...], wanted: Tunnels = wanted) -> Step:
        return step(wanted, loaded(*sas, connections=(WIRED, cloud)), {}, 5.0)

    kept = look((left, young(there)))
    assert kept.ops == () and kept.wake_at == 5.0 + LATE_S
    # Once the new one has been there for a while, or where nothing can or should come any more.
    ended = Step((TerminateChild(101),), {}, None)
    assert look((left, there)) == ended
    assert look((left, young(there)), msgspec.structs.replace(wanted, fallen=frozenset({ON_WIRED}))) == ended
    barring = msgspec.structs.replace(wanted, active={}, barred=frozenset({SHARED}))
    assert look((left, young(there)), barring).ops == (TerminateChild(101), TerminateChild(201))
    dead = msgspec.structs.replace(wanted, dead=frozenset({1}))
    assert look((left, young(there)), dead).ops == (TerminateIke(1, force=True),)
    # The hub that it went to dies before that: what was kept carries at once, if nothing newer is in its way.
    died = msgspec.structs.replace(wanted, active={ON_WIRED: frozenset({SHARED})}, fallen=frozenset({there_on}))
    assert look((left, young(there)), died).ops == (TerminateIke(2, force=True),)


def test_a_bundle_that_goes_back_before_that_has_the_newest_child_there_first() -> None:
    """charon sends by the other hub's until then: ended now, it would take packets with it."""
    kept, cloud = sa_of(WIRED, 1, PROBE_CHILD, SHARED), CONNECTIONS["wired.cloud.a"]
    newer = young(sa_of(cloud, 2, PROBE_CHILD, SHARED))
    wanted = Tunnels((WIRED, cloud), {ON_WIRED: frozenset({SHARED})})

    def look(*sas: IkeSa) -> tuple[TunnelOp, ...]:
        return step(wanted, loaded(*sas, connections=(WIRED, cloud)), {}, 5.0).ops

    assert look(kept, newer) == (TerminateChild(101),)
    assert look(sa_of(WIRED, 1, PROBE_CHILD), newer) == (Initiate(WIRED.name, SHARED),)
    anew = young(sa_of(WIRED, 3, PROBE_CHILD, SHARED))
    assert look(anew, newer) == (), "and answers may be late again"
    assert look(sa_of(WIRED, 3, PROBE_CHILD, SHARED), newer) == (TerminateChild(201),)
    # One that is being deleted with its IKE_SA is nothing to stay with.
    going = msgspec.structs.replace(newer, state="DELETING")
    assert look(kept, going) == (Initiate(cloud.name, PROBE_CHILD),)


def test_what_was_left_for_another_path_of_the_same_hub_does_not_wait() -> None:
    """The hub answers by the newest, whichever way it was asked."""
    there = young(sa_of(LTE, 2, PROBE_CHILD, CENTRE))
    assert ops(wanted_on(ON_LTE), loaded(GOOD_WIRED, there)) == [TerminateChild(101)]


def test_a_path_that_goes_keeps_its_traffic_until_it_is_elsewhere() -> None:
    wanted = Tunnels((LTE,), {ON_LTE: frozenset({CENTRE})})
    assert ops(wanted, loaded(GOOD_WIRED, GOOD_LTE, connections=(LTE,))) == [Initiate(LTE.name, CENTRE)]
    there = sa_of(LTE, 2, PROBE_CHILD, CENTRE)
    assert ops(wanted, loaded(GOOD_WIRED, there, connections=(LTE,))) == [TerminateIke(1, force=True)]


def test_loads_come_first_and_unloads_last() -> None:
    foreign = OLD_WIRED
    found = ops(wanted_on(ON_WIRED), Charon({foreign.name: ()}))
    assert found[0] == LoadCredentials()
    assert found[1:3] == [LoadConnection(WIRED), LoadConnection(LTE)]
    assert found[-1] == UnloadConnection(foreign.name)
    assert altered(wanted_on(ON_WIRED), Charon()) == (
        "credentials are not loaded",
        f"connection {WIRED.stem} is not loaded",
        f"connection {LTE.stem} is not loaded",
    )
    assert altered(wanted_on(ON_WIRED), loaded()) == ()


def test_changed_children_are_loaded_again() -> None:
    fewer = msgspec.structs.replace(WIRED, children=WIRED.children[:1])
    assert fewer.name == WIRED.name
    observed = loaded(GOOD_WIRED, GOOD_LTE, connections=(fewer, LTE))
    assert ops(wanted_on(ON_WIRED), observed) == [LoadConnection(WIRED)]
    # And what is no longer configured is ended.
    wanted = Tunnels((fewer, LTE), {})
    assert ops(wanted, loaded(GOOD_WIRED, GOOD_LTE, connections=(fewer, LTE))) == [TerminateChild(101)]


def test_a_narrowed_child_does_not_count_and_is_asked_for_ever_more_rarely() -> None:
    narrow = ChildSa(CENTRE, 101, "INSTALLED", ("10.101.0.0/24",), ("10.10.0.0/24",))
    held = msgspec.structs.replace(sa_of(WIRED, 1, PROBE_CHILD), children=(GOOD_WIRED.children[0], narrow))
    now, attempts, gaps = 0.0, Attempts(), []
    for _ in range(10):
        found = step(wanted_on(ON_WIRED), loaded(held, GOOD_LTE), attempts, now)
        assert found.ops == (Initiate(WIRED.name, CENTRE),)
        assert found.wake_at is not None
        gaps.append(found.wake_at - now)
        assert step(wanted_on(ON_WIRED), loaded(held, GOOD_LTE), found.attempts, now).ops == ()
        now, attempts = found.wake_at, found.attempts
    assert gaps[-1] > 10 * gaps[0]


def test_backoff_grows_is_capped_and_ends_with_success() -> None:
    now, attempts, gaps = 0.0, Attempts(), []
    for _ in range(12):
        found = step(wanted_on(ON_WIRED), loaded(GOOD_LTE), attempts, now)
        assert found.ops == (Initiate(WIRED.name, CENTRE),) and found.wake_at is not None
        gaps.append(found.wake_at - now)
        now, attempts = found.wake_at, found.attempts
    assert 0.75 * RETRY_FIRST_S <= gaps[0] <= 1.25 * RETRY_FIRST_S
    assert all(later > sooner for sooner, later in itertools.pairwise(gaps[:5]))
    assert max(gaps) <= 1.25 * RETRY_MAX_S and min(gaps[-3:]) >= 0.75 * RETRY_MAX_S
    assert step(wanted_on(ON_WIRED), loaded(GOOD_WIRED, GOOD_LTE), attempts, now).attempts == {}


def test_an_ike_sa_that_leaves_an_initiation_unanswered_is_dead_whatever_probes_say() -> None:
    """The kernel of a hub whose charon was restarted goes on answering them."""
    first = step(wanted_on(ON_LTE), loaded(GOOD_LTE), {}, 0.0)
    assert Initiate(LTE.name, CENTRE) in first.ops
    asked = msgspec.structs.replace(GOOD_LTE, busy=True, creating=True)
    patient = step(wanted_on(ON_LTE), loaded(asked), first.attempts, UNANSWERED_S - 0.1)
    assert not any(isinstance(op, TerminateIke) for op in patient.ops)
    found = step(wanted_on(ON_LTE), loaded(asked), patient.attempts, UNANSWERED_S)
    assert TerminateIke(GOOD_LTE.unique_id, force=True) in found.ops
    # Nobody waits where the probes have fallen silent too.
    fallen = msgspec.structs.replace(wanted_on(ON_LTE), fallen=frozenset({ON_LTE}))
    found = step(fallen, loaded(asked), first.attempts, 0.5)
    assert TerminateIke(GOOD_LTE.unique_id, force=True) in found.ops
    assert not any(isinstance(op, TerminateIke) for op in step(fallen, loaded(GOOD_LTE), first.attempts, 0.5).ops)
    # What rekeys itself is busy too, and alive.
    rekeying = msgspec.structs.replace(GOOD_LTE, busy=True)
    found = step(wanted_on(ON_LTE), loaded(rekeying), patient.attempts, UNANSWERED_S)
    assert not any(isinstance(op, TerminateIke) for op in found.ops)


def test_the_answering_side_only_ends_what_goes_too_far() -> None:
    for backend in Backend:
        (answering,) = compile_dataplane(hub(), HUB_LINKS, Site("centre.city", backend))[0].tunnels.connections
        wanted = Tunnels((answering,))
        traffic = next(child for child in answering.children if child.name != PROBE_CHILD)
        asked = msgspec.structs.replace(traffic, remote_ts=("10.101.0.0/24",), local_ts=("10.10.0.0/24[tcp/443]",))
        too_far = msgspec.structs.replace(traffic, remote_ts=("10.101.0.0/24", "10.102.0.0/24"))
        other = Child("forgotten", asked.local_ts, asked.remote_ts)
        old = with_other_settings(answering)
        children = tuple(installed(config, 50 + n) for n, config in enumerate((asked, asked, too_far, other)))
        for name in (answering.name, old.name):
            sa = IkeSa(name, 1, "ESTABLISHED", False, children=children)
            assert ops(wanted, loaded(sa, connections=(answering,))) == [TerminateChild(52), TerminateChild(53)]
        assert ops(wanted, loaded(connections=(answering,))) == [], "it never dials"


def test_carrying_is_where_the_newest_child_is() -> None:
    observed = loaded(sa_of(WIRED, 1, PROBE_CHILD, CENTRE), sa_of(LTE, 2, CENTRE))
    assert carrying(PLAN.bundles, observed) == {"centre": ON_LTE}
    assert carrying(PLAN.bundles, loaded(GOOD_LTE)) == {}


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
