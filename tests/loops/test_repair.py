"""What does the agent do when the kernel refuses, or when somebody else changes what is ours?"""

from __future__ import annotations

from itertools import pairwise

import msgspec
import trio
from trio.testing import MockClock

from cpe_agent.model.dataplane import Route, Ruleset
from cpe_agent.model.ops import AddRoute, DeleteRoute
from tests.loops.documents import branch
from tests.loops.story import expect
from tests.loops.world import Agent, World

HOME = {"centre": "wired.centre.wan", "cloud": "wired.cloud.wan", "centre+cloud": "wired.centre.wan"}
TUNNEL_ROUTE = Route(15500, "10.10.0.0/24", "ipsec0", metric=100)


async def _drift(agent: Agent) -> dict[str, int]:
    return {target.name: target.drift_total for target in (await agent.status()).targets}


async def test_that_a_flushed_table_comes_back_and_counts_as_drift(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(5)
        wanted = world.firewall.table
        flushed_at = trio.current_time()
        world.firewall.change(None)
        await trio.sleep(0.1)
        expect(
            world.story.since(flushed_at),
            ["rules replace table", "log target_repaired ops=1 target=rules"],
        )
        assert world.firewall.table == wanted
        assert await _drift(agent) == {"links": 0, "rules": 1, "routes": 0, "tunnels": 0}


async def test_that_a_foreign_element_is_removed(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(5)
        wanted = world.firewall.table
        assert isinstance(wanted, Ruleset)
        intruder = "10.101.0.0/24 . 10.99.0.0/24 . 0-255 . 0-65535"
        sets = tuple(
            msgspec.structs.replace(s, elements=s.elements | {intruder}) if s.name == "local_pairs4" else s
            for s in wanted.sets
        )
        changed_at = trio.current_time()
        world.firewall.change(msgspec.structs.replace(wanted, sets=sets))
        await trio.sleep(0.1)
        expect(world.story.since(changed_at, "rules"), [f"rules delete local_pairs4 {intruder}"])
        assert world.firewall.table == wanted
        assert (await _drift(agent))["rules"] == 1


async def test_that_a_deleted_route_comes_back_and_counts_as_drift(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(5)
        assert TUNNEL_ROUTE in (await world.routes.read()).routes
        await world.routes.apply([DeleteRoute(TUNNEL_ROUTE)])
        await trio.sleep(0.1)
        assert TUNNEL_ROUTE in (await world.routes.read()).routes
        assert await _drift(agent) == {"links": 0, "rules": 0, "routes": 1, "tunnels": 0}


async def test_that_a_route_under_our_number_that_is_not_wanted_goes(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(5)
        stray = Route(15500, "192.0.2.0/24", "wired", metric=100)
        await world.routes.apply([AddRoute(stray)])
        await trio.sleep(0.1)
        assert stray not in (await world.routes.read()).routes
        assert (await _drift(agent))["routes"] == 1


async def test_that_forwarding_waits_for_the_rules(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    world.firewall.refusal = "Operation not permitted"
    async with world.agent() as agent:
        await trio.sleep(5)
        assert (await world.routes.read()).forwarding == frozenset()
        assert not [line for line in world.story.lines if "forwarding" in line.text]
        assert "Operation not permitted" in (await agent.conditions())["TargetFailed rules"]
        # Routes and tunnels do not wait: when the rules come, everything else is there.
        assert (await world.routes.read()).routes
        assert world.carried() == HOME
        world.firewall.refusal = None
        await trio.sleep(30)
        assert (await world.routes.read()).forwarding == {4}
        assert await agent.conditions() == {}
        rules_at = min(line.at_s for line in world.story.since(0, "rules"))
        forwarding_at = min(line.at_s for line in world.story.lines if line.text == "forwarding 4 on")
        assert rules_at <= forwarding_at <= rules_at + 1


async def test_that_a_refusal_stops_nobody_else_and_is_tried_again_ever_more_slowly(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(5)
        tried_at: list[float] = []
        read = world.firewall.read

        async def noted_read() -> Ruleset | None:
            tried_at.append(trio.current_time())
            return await read()

        world.firewall.read = noted_read  # type: ignore[method-assign]
        world.firewall.refusal = "No buffer space available"
        refused_at = trio.current_time()
        world.firewall.change(None)
        await trio.sleep(60)
        waits = [later - earlier for earlier, later in pairwise(tried_at)]
        assert len(waits) >= 5, f"it gave up: {tried_at}"
        assert waits[0] <= 1 and max(waits) <= 20, waits
        assert sum(waits[:3]) < sum(waits[-3:]), f"it hammers: {waits}"
        expect(world.story.events("target_failed", refused_at), ["log target_failed *target=rules"])
        # Others go on: a failover works.
        world.blackhole("wired")
        await trio.sleep(1)
        assert world.carried()["centre"] == "lte.centre.wan"
        world.heal("wired")
        world.firewall.refusal = None
        await trio.sleep(60)
        assert world.firewall.table is not None
        assert (await world.routes.read()).forwarding == {4}
        assert await agent.conditions() == {}
        expect(world.story.events("target_recovered", refused_at), ["log target_recovered target=rules"])


async def test_that_a_refused_route_stops_neither_rules_nor_tunnels(autojump_clock: MockClock) -> None:
    world = World()
    world.routes.foreign_routes.add(Route(15500, "10.20.0.0/24", "wired", metric=100))
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(5)
        conditions = await agent.conditions()
        assert "another program has a route" in conditions["TargetFailed routes"]
        assert world.carried() == HOME
        assert TUNNEL_ROUTE in (await world.routes.read()).routes
        world.routes.foreign_routes.clear()
        await trio.sleep(30)
        assert await agent.conditions() == {}


async def test_that_without_a_document_there_is_a_closed_table_and_nothing_else(autojump_clock: MockClock) -> None:
    world = World()
    async with world.agent() as agent:
        await trio.sleep(60)
        # But for ways to ask the controller by, for its own packets.
        told = [line for line in world.story.since(0, "rules", "routes", "tunnels") if "table 156" not in line.text]
        expect(told, ["rules replace table"])
        assert not (await world.routes.read()).forwarding
        table = world.firewall.table
        assert isinstance(table, Ruleset)
        assert not any(nft_set.elements for nft_set in table.sets)
        forward = next(chain for chain in table.chains if chain.name == "forward")
        assert "policy drop" in forward.hook and "drop" in forward.rules[-1]
        assert (await world.routes.read()).forwarding == frozenset()
        assert "NoDocument" in await agent.conditions()
        assert (await agent.status()).severity.value == "down"


async def test_that_without_a_document_a_missing_charon_is_waited_for(autojump_clock: MockClock) -> None:
    world = World()
    world.kill_charon()
    async with world.agent() as agent:
        await trio.sleep(30)
        assert "TargetFailed tunnels" in await agent.conditions()
        world.start_charon()
        world.publish(branch())
        await trio.sleep(30)
        assert world.carried() == HOME
        assert await agent.conditions() == {}
