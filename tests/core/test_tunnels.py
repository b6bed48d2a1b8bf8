"""Which operations does a look at charon lead to, in which order, and how often are they tried?"""

from __future__ import annotations

import itertools

import msgspec
import pytest

from cpe_agent.core.compile import Site, compile_dataplane
from cpe_agent.core.tunnels import (
    RETRY_FIRST_S,
    RETRY_MAX_S,
    UNANSWERED_S,
    Attempt,
    Attempts,
    altered,
    head_start,
    step,
)
from cpe_agent.model.dataplane import PROBE_CHILD, Backend, Child, Path, Tunnels
from cpe_agent.model.observed import Charon, ChildSa, IkeSa
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
    CENTRE,
    CONNECTIONS,
    GOOD_LTE,
    GOOD_WIRED,
    LTE,
    ON_LTE,
    ON_WIRED,
    WIRED,
    installed,
    loaded,
    sa_of,
    with_other_settings,
)
from tests.core.documents import HUB_LINKS, hub


def ops(wanted: Tunnels, observed: Charon) -> list[TunnelOp]:
    return list(step(wanted, observed, {}, 0.0).ops)


def wanted_on(path: Path | None, dead: frozenset[int] = frozenset()) -> Tunnels:
    return Tunnels((WIRED, LTE), {path: frozenset({CENTRE})} if path else {}, dead)


def remade(*children: int) -> Tunnels:
    return msgspec.structs.replace(wanted_on(ON_WIRED), remake=frozenset(children))


def barred(*names: str) -> Tunnels:
    return msgspec.structs.replace(wanted_on(None), barred=frozenset(names))


OLD_WIRED = with_other_settings(WIRED)


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
