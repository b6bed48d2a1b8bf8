"""Is a target called in sync when `cpe-agent verify` would call it so, and how soon does the agent look?"""

from __future__ import annotations

import msgspec
import pytest
import trio
from trio.testing import MockClock

from cpe_agent.core import own_way
from cpe_agent.core.verify import verify
from cpe_agent.loops.glancing import glance_pause_s
from cpe_agent.model.dataplane import Child, Connection, Ike, Route, stem_of
from cpe_agent.model.observed import Link
from cpe_agent.model.ops import LoadConnection, LoadCredentials, TerminateChild, UnloadConnection
from tests.loops.documents import branch
from tests.loops.world import LINKS, Agent, World

NOTICED_S = 2.0
STRAY = Connection(
    "stray", Ike((), (), 0, "a", "b", "p", "e", 10, 0, 0), (Child("all", ("0.0.0.0/0",), ("0.0.0.0/0",)),)
)


async def _out_of_sync(agent: Agent) -> set[str]:
    return {target.name for target in (await agent.status()).targets if not target.in_sync}


async def _drift(agent: Agent) -> int:
    return {target.name: target.drift_total for target in (await agent.status()).targets}["tunnels"]


async def _verified(agent: Agent) -> set[str]:
    """The targets that differ by `verify`, which reads for itself."""
    plan, world = agent.cells.plan.value, agent.world
    assert plan is not None
    # No path has been measured in this world; by which uplink the router's own packets leave is the daemon's choice.
    living = await world.routes.read()
    routes = plan.dataplane.routes
    routes = msgspec.structs.replace(routes, routes=routes.routes | own_way.kept(routes, living))
    found = verify(
        msgspec.structs.replace(plan.dataplane, routes=routes),
        plan.conditions,
        await world.firewall.read(),
        await world.routes.read(),
        await world.charon.read(),
        strangers=await world.routes.strangers(),
    )
    return {difference.target for difference in found}


async def test_all_is_in_sync_and_stays_so(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(5)
        for _ in range(100):
            await trio.sleep(1)
            assert await _out_of_sync(agent) == set() == await _verified(agent)


async def test_a_hub_that_was_left_keeps_its_child_for_a_moment_and_all_is_in_sync(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(5)
        centre = frozenset(path for path in agent.cells.verdicts.value.tracks if path.peer == "centre")
        agent.cells.taken_out.set(centre)
        left_at, kept_s = trio.current_time(), 0.0
        while trio.current_time() < left_at + 5:
            await trio.sleep(0.1)
            assert world.carried()["centre+cloud"] == "wired.cloud.wan"
            assert await _out_of_sync(agent) == set() == await _verified(agent)
            if _carriers(world, "traffic-centre+cloud") == {"wired.centre.wan", "wired.cloud.wan"}:
                kept_s = trio.current_time() - left_at
        assert 1.0 <= kept_s <= 3.0
        assert _carriers(world, "traffic-centre+cloud") == {"wired.cloud.wan"}


def _carriers(world: World, child: str) -> set[str]:
    return {stem_of(sa.connection) for sa in world.charon.ike_sas() if any(c.name == child for c in sa.children)}


async def test_a_missing_probe_is_not_in_sync_although_nothing_is_refused(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(5)
        sa = world.charon.ike_sas()[0]
        (probe,) = [child for child in sa.children if child.name == "probe"]
        world.charon.kept_busy.add(sa.unique_id)  # so that nothing can be done about it for now
        await world.charon.apply(TerminateChild(probe.unique_id))
        await trio.sleep(1)
        assert await _out_of_sync(agent) == {"tunnels"} == await _verified(agent)
        world.charon.kept_busy.clear()
        await trio.sleep(3)
        assert await _out_of_sync(agent) == set() == await _verified(agent)


async def test_a_path_that_is_down_is_not_in_sync(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(5)
        world.blackhole("lte")
        await trio.sleep(15)
        assert "tunnels" in await _out_of_sync(agent)
        world.heal("lte")
        await trio.sleep(60)
        assert await _out_of_sync(agent) == set()


async def test_another_document_is_not_in_sync_before_it_is_carried_out(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(5)
        world.kernel_takes_s = 0.5
        document = branch(version=9, site_address="10.255.101.9")
        world.publish(document)
        seen = []
        for _ in range(300):
            await trio.sleep(0.01)
            if agent.cells.document.value == document:
                report = await agent.status()
                held = document.site_address in str((await world.routes.read()).addresses)
                seen.append((held, all(target.in_sync for target in report.targets)))
        assert (False, False) in seen and seen[-1] == (True, True)
        assert (False, True) not in seen


async def test_nor_one_that_comes_while_something_else_is_carried_out(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(5)
        world.kernel_takes_s = 0.5
        # The loop of rules and routes is in the middle of a pass when the plan changes.
        agent.cells.own_uplink.set("lte")
        await trio.sleep(0.1)
        document = branch(version=9, site_address="10.255.101.9")
        world.publish(document)
        seen = []
        for _ in range(500):
            await trio.sleep(0.01)
            if agent.cells.document.value == document:
                report = await agent.status()
                held = document.site_address in str((await world.routes.read()).addresses)
                seen.append((held, all(target.in_sync for target in report.targets)))
        assert (False, False) in seen and seen[-1] == (True, True)
        assert (False, True) not in seen


async def test_an_uplink_that_is_gone_is_told_of_the_links(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(5)
        world.routes.set_link(Link("lte", False))
        await trio.sleep(5)
        assert "links" in await _out_of_sync(agent) and "links" in await _verified(agent)
        for link in LINKS:
            world.routes.set_link(link)
        await trio.sleep(60)
        assert await _out_of_sync(agent) == set()


async def test_that_a_look_is_not_put_off_by_news_of_something_else(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(5)
        # Nobody tells of it.
        world.routes.foreign_routes.add(Route(15500, "10.20.0.0/24", "wired", metric=100))
        for _ in range(3):
            await trio.sleep(4)
            world.firewall.change(world.firewall.table)
        assert await _out_of_sync(agent) == {"routes"} == await _verified(agent)


async def test_what_others_put_in_our_way_is_told_and_left_alone(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(5)
        stranger = Route(15500, "10.10.0.0/25", "wired", metric=5)
        world.routes.foreign_routes.add(stranger)
        world.routes.set_link(Link("other0", True))  # the kernel tells of something
        await trio.sleep(1)
        assert await _out_of_sync(agent) == {"routes"} == await _verified(agent)
        assert stranger in world.routes.foreign_routes
        world.routes.foreign_routes.clear()
        world.routes.remove_link("other0")
        await trio.sleep(1)
        assert await _out_of_sync(agent) == set()


@pytest.mark.parametrize("what", ["unloaded", "stray", "cleared"])
async def test_what_charon_tells_nobody_is_noticed_soon(autojump_clock: MockClock, what: str) -> None:
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(25)
        before, done = await world.charon.read(), len(world.charon.applied)
        name = sorted(before.connections)[0]
        if what == "unloaded":
            world.charon.unload(name)
        elif what == "stray":
            world.charon.load(STRAY)
        else:
            world.charon.forget_credentials()
        await trio.sleep(NOTICED_S)
        mended = {
            "unloaded": [LoadConnection],
            "stray": [UnloadConnection],
            "cleared": [LoadCredentials],
        }[what]
        assert [type(op) for op in world.charon.applied[done:]] == mended
        after = await world.charon.read()
        assert (after.connections, after.credentials_loaded) == (before.connections, True)
        assert await _drift(agent) == 1
        assert await _out_of_sync(agent) == set()
        assert {stem_of(sa.connection) for sa in after.ike_sas} == {stem_of(sa.connection) for sa in before.ike_sas}


def test_glancing_is_paced_by_what_there_is_to_look_at() -> None:
    assert [glance_pause_s(count) for count in (0, 4, 2000, 10_000)] == [1.0, 1.0, 1.0, 5.0]
