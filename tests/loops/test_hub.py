"""What does a hub do, which dials nobody and is asked by branches?"""

from __future__ import annotations

import trio
from trio.testing import MockClock

from cpe_agent.core.wanted_ruleset import answers
from cpe_agent.model.document import Lan
from cpe_agent.model.observed import Link, LinkAddress
from tests.loops.documents import hub
from tests.loops.story import expect
from tests.loops.world import World

LINKS = (
    Link("wan", True, (LinkAddress("198.51.100.10", 29),), ("198.51.100.9",)),
    Link("lan0", True, (LinkAddress("10.10.0.1", 24),)),
)


def _world() -> World:
    world = World("centre", "centre.net.cpe", LINKS)
    world.publish(hub())
    return world


def _answering(world: World) -> tuple[bool, bool]:
    """Does its probe address answer, and its ready address?"""
    table = world.firewall.table
    assert table is not None
    return answers(table, "10.255.1.1"), answers(table, "10.255.1.2")


async def test_start_of_a_hub(autojump_clock: MockClock) -> None:
    world = _world()
    async with world.agent() as agent:
        await trio.sleep(10)
        expect(
            world.story.since(0, "tunnels"),
            ["tunnels load credentials", "tunnels load hospital-1"],
        )
        assert await agent.conditions() == {}
        routes = await world.routes.read()
        assert {"10.255.1.1/32", "10.255.1.2/32", "10.255.1.3/32"} <= routes.addresses
        assert _answering(world) == (True, True)
        assert routes.forwarding == {4}
        peers = (await agent.status()).peers
        assert [(peer.name, peer.ike_sas) for peer in peers] == [("hospital-1", 0)]


async def test_that_a_drained_hub_stops_saying_that_it_is_ready(autojump_clock: MockClock) -> None:
    world = _world()
    async with world.agent():
        await trio.sleep(10)
        world.publish(hub(2, drain=True))
        await trio.sleep(1)
        assert _answering(world) == (True, False)
        # charon would refuse a probe child with an address that is not on the router.
        assert {"10.255.1.1/32", "10.255.1.2/32"} <= (await world.routes.read()).addresses
        world.publish(hub(3))
        await trio.sleep(1)
        assert _answering(world) == (True, True)


async def test_that_a_lan_that_comes_and_goes_is_reported(autojump_clock: MockClock) -> None:
    world = _world()
    async with world.agent() as agent:
        await trio.sleep(10)
        world.routes.remove_link("lan0")
        await trio.sleep(1)
        assert "LanMissing lan0" in await agent.conditions()
        world.routes.set_link(LINKS[1])
        await trio.sleep(5)
        assert await agent.conditions() == {}


async def test_that_a_lan_more_reloads_the_connection_and_ends_nothing(autojump_clock: MockClock) -> None:
    world = _world()
    world.routes.set_link(Link("lan1", True, (LinkAddress("10.50.0.1", 24),)))
    async with world.agent():
        await trio.sleep(10)
        changed_at = trio.current_time()
        lans = (Lan("lan0", "10.10.0.0/24", "lan0"), Lan("lan1", "10.50.0.0/24", "lan1"))
        world.publish(hub(2, lans=lans))
        await trio.sleep(5)
        expect(world.story.since(changed_at, "tunnels"), ["tunnels load hospital-1"])
