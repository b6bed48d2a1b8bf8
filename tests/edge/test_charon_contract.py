"""What every `TunnelPort` keeps to: the fake, and two real charons (hub and branch) in two network namespaces."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest
import trio

from cpe_agent.core.tunnels import step
from cpe_agent.model.dataplane import Child, Tunnels
from cpe_agent.model.observed import Charon, EventKind
from cpe_agent.model.ops import (
    Initiate,
    LoadConnection,
    LoadCredentials,
    TerminateChild,
    TerminateIke,
    UnloadConnection,
)
from cpe_agent.ports import EdgeError
from tests.edge.charon_bed import (
    BRANCH_ID,
    BRANCH_LAN,
    HUB_ADDRESS,
    HUB_ID,
    HUB_LANS,
    Bed,
    bed,
)
from tests.edge.charon_ends import (
    BOUND_S,
    CELLULAR,
    NEEDS_CHARON,
    TRAFFIC,
    WIRED,
    Ends,
    FakeEnds,
    RealEnds,
    both_up,
    branch_wants,
    grown,
    hub_wants,
    installed,
    settle,
)
from tests.fakes.charon import GIVE_UP_S

# A call that waited for a silent peer would take as long as charon does to give him up.
AT_ONCE_S = GIVE_UP_S / 2


@pytest.fixture(scope="module")
def real_bed() -> Iterator[Bed]:
    with bed() as both:
        yield both


@pytest.fixture(params=["fake", pytest.param("real", marks=NEEDS_CHARON)])
async def ends(request: pytest.FixtureRequest) -> AsyncIterator[Ends]:
    if request.param == "fake":
        yield FakeEnds()
        return
    real = RealEnds(request.getfixturevalue("real_bed"))
    yield real
    real.close()


async def test_a_branch_with_one_path_comes_up_and_stays(ends: Ends) -> None:
    run = await both_up(ends, WIRED)
    name = branch_wants(WIRED).connections[0].name
    assert [type(op) for op in run.ops] == [LoadCredentials, LoadConnection, Initiate, Initiate]
    assert run.ops[2:] == [Initiate(name, TRAFFIC), Initiate(name, "probe")]
    assert installed(run.last) == [("wired.centre.wan", "probe"), ("wired.centre.wan", TRAFFIC)]
    (sa,) = run.last.ike_sas
    assert (sa.connection, sa.initiator, sa.remote_id, sa.remote_host) == (name, True, HUB_ID, HUB_ADDRESS)
    traffic = next(child for child in sa.children if child.name == TRAFFIC)
    assert (traffic.local_ts, traffic.remote_ts) == ((BRANCH_LAN,), HUB_LANS)
    again = await settle(ends.branch, branch_wants(WIRED))
    assert (again.ops, grown(again.last)) == ([], grown(run.last))
    hub = await settle(ends.hub, hub_wants())
    assert hub.ops == []
    assert installed(hub.last) == [("hospital-1", "probe"), ("hospital-1", "traffic")]
    assert [(sa.initiator, sa.remote_id) for sa in hub.last.ike_sas] == [(False, BRANCH_ID)]


async def test_a_move_makes_the_new_child_before_the_old_one_ends(ends: Ends) -> None:
    await both_up(ends)
    run = await settle(ends.branch, branch_wants(active=CELLULAR))
    assert [type(op) for op in run.ops] == [Initiate, TerminateChild]
    for look in run.looks:
        assert TRAFFIC in [child for _, child in installed(look)]
    assert installed(run.last) == [
        ("cellular.centre.wan", "probe"),
        ("cellular.centre.wan", TRAFFIC),
        ("wired.centre.wan", "probe"),
    ]
    hub = await settle(ends.hub, hub_wants(), lambda charon: len(installed(charon)) == 3)
    assert hub.ops == []


async def test_a_child_is_young_for_a_second_at_least_and_then_no_more(ends: Ends) -> None:
    await settle(ends.hub, hub_wants())
    before = trio.current_time()
    run = await settle(ends.branch, branch_wants(WIRED))
    all_young = run.last != grown(run.last) and all(c.young for sa in run.last.ike_sas for c in sa.children)
    assert all_young or trio.current_time() > before + 1
    await settle(ends.branch, branch_wants(WIRED), lambda charon: charon == grown(charon))
    assert trio.current_time() >= before + 1


async def test_after_charon_was_killed_everything_comes_back(ends: Ends) -> None:
    await both_up(ends, WIRED)
    async with ends.branch.subscription() as events:
        ends.kill_branch()
        with trio.fail_after(BOUND_S), pytest.raises(EdgeError, match="charon"):
            while True:
                await anext(events)
    with pytest.raises(EdgeError, match="charon"):
        await anext(aiter(ends.branch.events()))
    with pytest.raises(EdgeError, match="charon"):
        await ends.branch.read()
    with pytest.raises(EdgeError, match="charon"):
        await ends.branch.apply(LoadCredentials())
    ends.start_branch()
    assert await ends.branch.read() == Charon()
    run = await settle(ends.branch, branch_wants(WIRED))
    assert [type(op) for op in run.ops] == [LoadCredentials, LoadConnection, Initiate, Initiate]
    assert installed(run.last) == [("wired.centre.wan", "probe"), ("wired.centre.wan", TRAFFIC)]


async def test_a_hub_ends_what_goes_beyond_its_lans(ends: Ends) -> None:
    await both_up(ends, WIRED)
    async with ends.branch.subscription() as events:
        run = await settle(ends.hub, hub_wants(HUB_LANS[:1]))
        assert [type(op) for op in run.ops] == [LoadConnection, TerminateChild]
        assert installed(run.last) == [("hospital-1", "probe")]
        with trio.fail_after(BOUND_S):
            event = await anext(events)
    assert (event.kind, event.child) == (EventKind.CHILD_DOWN, TRAFFIC)
    assert installed(await ends.branch.read()) == [("wired.centre.wan", "probe")]
    # The live IKE_SA answers with the new configuration: what the branch gets now is narrower.
    await ends.branch.apply(Initiate(event.connection, TRAFFIC))
    narrowed = await settle(ends.hub, hub_wants(HUB_LANS[:1]), lambda charon: len(installed(charon)) == 2)
    assert narrowed.ops == []


async def test_a_lan_that_is_added_is_carried_without_a_gap(ends: Ends) -> None:
    await settle(ends.hub, hub_wants(HUB_LANS[:1]))
    before = await settle(ends.branch, branch_wants(WIRED, lans=HUB_LANS[:1]))
    await settle(ends.hub, hub_wants())
    run = await settle(ends.branch, branch_wants(WIRED))
    assert [type(op) for op in run.ops] == [LoadConnection, Initiate, TerminateChild]
    for look in run.looks:
        assert TRAFFIC in [child for _, child in installed(look)]
    (sa,) = run.last.ike_sas
    assert sa.unique_id == before.last.ike_sas[0].unique_id
    assert [child.remote_ts for child in sa.children if child.name == TRAFFIC and child.installed] == [HUB_LANS]


async def test_a_dead_path_is_ended_at_once_and_its_traffic_moves(ends: Ends) -> None:
    run = await both_up(ends)
    (dead,) = [sa.unique_id for sa in run.last.ike_sas if sa.connection.startswith("cpe-wired.")]
    ends.blackhole(WIRED)
    # The dead path is not dialled again here: only its end is looked at.
    wanted = branch_wants(CELLULAR, active=CELLULAR)
    with trio.fail_after(AT_ONCE_S):
        await ends.branch.apply(TerminateIke(dead, force=True))
        assert dead not in [sa.unique_id for sa in (await ends.branch.read()).ike_sas]
    moved = await settle(ends.branch, wanted)
    assert installed(moved.last) == [("cellular.centre.wan", "probe"), ("cellular.centre.wan", TRAFFIC)]


async def test_an_initiation_that_nobody_answers_is_under_way_and_not_repeated(ends: Ends) -> None:
    await settle(ends.hub, hub_wants())
    ends.blackhole(WIRED)
    wanted = branch_wants(WIRED)
    for op in (LoadCredentials(), LoadConnection(wanted.connections[0])):
        await ends.branch.apply(op)
    with trio.fail_after(AT_ONCE_S):
        await ends.branch.apply(Initiate(wanted.connections[0].name, TRAFFIC))
    observed = await ends.branch.read()
    assert [(sa.established, sa.busy) for sa in observed.ike_sas] == [(False, True)]
    assert step(wanted, observed, {}, trio.current_time()).ops == ()


async def test_a_change_of_ike_settings_takes_a_new_ike_sa_first(ends: Ends) -> None:
    run = await both_up(ends, WIRED)
    wanted = branch_wants(WIRED, dpd_s=11)
    changed = await settle(ends.branch, wanted)
    assert [type(op) for op in changed.ops] == [LoadConnection, Initiate, UnloadConnection, Initiate, TerminateIke]
    assert set(changed.last.connections) == {wanted.connections[0].name}
    assert [sa.connection for sa in changed.last.ike_sas] == [wanted.connections[0].name]
    assert changed.last.ike_sas[0].unique_id != run.last.ike_sas[0].unique_id
    for look in changed.looks:
        assert TRAFFIC in [child for _, child in installed(look)]


async def test_a_glance_sees_what_no_event_tells(ends: Ends) -> None:
    await both_up(ends)
    known = await ends.branch.read()
    assert not (await ends.branch.glance()).differs(known)
    (one, *_) = (connection.name for connection in branch_wants().connections)
    await ends.branch.apply(UnloadConnection(one))
    glance = await ends.branch.glance()
    assert glance.differs(known) and one not in glance.connections and glance.key_loaded
    await ends.branch.apply(LoadConnection(branch_wants().connections[0]))
    assert not (await ends.branch.glance()).differs(known)
    ends.kill_branch()
    with pytest.raises(EdgeError):
        await ends.branch.glance()
    ends.start_branch()
    glance = await ends.branch.glance()
    assert glance.differs(known) and not glance.connections and not glance.key_loaded


async def test_doing_it_twice_changes_nothing(ends: Ends) -> None:
    run = await both_up(ends, WIRED)
    connection = branch_wants(WIRED).connections[0]
    for op in (
        LoadCredentials(),
        LoadConnection(connection),
        Initiate(connection.name, "probe"),
        Initiate(connection.name, TRAFFIC),
        TerminateChild(999),
        TerminateIke(999, force=True),
        TerminateIke(999, force=False),
        UnloadConnection("cpe-gone-00000000"),
    ):
        await ends.branch.apply(op)
    assert grown((await settle(ends.branch, branch_wants(WIRED))).last) == grown(run.last)
    with pytest.raises(EdgeError, match="nobody"):
        await ends.branch.apply(Initiate(connection.name, "nobody"))
    await ends.branch.apply(UnloadConnection(connection.name))
    after = grown(await ends.branch.read())
    assert (after.connections, after.ike_sas) == ({}, grown(run.last).ike_sas)


async def test_selectors_are_read_as_they_were_loaded(ends: Ends) -> None:
    children = (
        Child("narrow", ("10.1.0.0/24[tcp]",), ("10.0.0.0/24[tcp/443]", "10.0.1.0/24[tcp/8000-8080]")),
        Child("hosts", ("10.1.0.9/32[udp/53]", "10.1.0.8/32"), ("10.0.0.0/24[udp]", "10.0.1.7/32[udp/7777]")),
        Child("ping", ("10.1.0.0/24[icmp]",), ("0.0.0.0/0",)),
        Child("six", ("fd00:1::/64[tcp/22]",), ("fd00::1/128[ipv6-icmp]",)),
    )
    connection = msgspec.structs.replace(branch_wants(WIRED).connections[0], children=children)
    await ends.branch.apply(LoadConnection(connection))
    read = (await ends.branch.read()).connections[connection.name]
    assert {(c.name, c.local_ts, c.remote_ts) for c in read} == {(c.name, c.local_ts, c.remote_ts) for c in children}
    # Another load under the same name is seen at the next look.
    await ends.branch.apply(LoadConnection(msgspec.structs.replace(connection, children=children[:1])))
    assert [c.name for c in (await ends.branch.read()).connections[connection.name]] == ["narrow"]


async def test_a_child_of_some_ports_is_installed_as_wanted(ends: Ends) -> None:
    await settle(ends.hub, hub_wants())
    connection = branch_wants(WIRED).connections[0]
    ports = Child(
        TRAFFIC, (f"{BRANCH_LAN}[tcp]",), tuple(f"{lan}[tcp/{port}]" for lan in HUB_LANS for port in (443, 80))
    )
    connection = msgspec.structs.replace(connection, children=(connection.children[0], ports))
    run = await settle(ends.branch, Tunnels((connection,), {WIRED: frozenset({TRAFFIC})}))
    (child,) = [child for sa in run.last.ike_sas for child in sa.children if child.name == TRAFFIC]
    assert (child.local_ts, sorted(child.remote_ts)) == (ports.local_ts, sorted(ports.remote_ts))
    assert (await settle(ends.hub, hub_wants())).ops == []


async def test_an_end_that_waits_for_its_answer_shows(ends: Ends) -> None:
    run = await both_up(ends, WIRED)
    (sa,) = run.last.ike_sas
    ends.blackhole(WIRED)
    await ends.branch.apply(TerminateChild(sa.children[0].unique_id))
    (waiting,) = (await ends.branch.read()).ike_sas
    assert (waiting.state, waiting.busy) == ("ESTABLISHED", True)
    # It queues behind the first, and charon's own word for the IKE_SA is still ESTABLISHED.
    await ends.branch.apply(TerminateIke(sa.unique_id, force=False))
    (ending,) = (await ends.branch.read()).ike_sas
    assert (ending.state, ending.established) == ("DELETING", False)
    await ends.branch.apply(TerminateIke(sa.unique_id, force=True))
    assert (await ends.branch.read()).ike_sas == ()
