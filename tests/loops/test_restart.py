"""What does an agent do that finds a running data plane, or one that changed while nobody looked?"""

from __future__ import annotations

import msgspec
import trio
from trio.testing import MockClock

from cpe_agent.model.dataplane import PRIORITY_FOUND_FROM
from cpe_agent.model.document import Pair
from cpe_agent.model.observed import Charon
from tests.loops.documents import branch
from tests.loops.story import expect
from tests.loops.world import Agent, World

HOME = {"centre": "wired.centre.wan", "cloud": "wired.cloud.wan", "centre+cloud": "wired.centre.wan"}
KERNEL = ("rules", "routes", "tunnels")


async def _run_once(world: World) -> None:
    """An agent brings everything up and ends."""
    async with world.agent():
        await trio.sleep(5)
        assert world.carried() == HOME


async def test_that_a_restart_does_nothing_at_all(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    await _run_once(world)
    before = await world.dataplane()
    restarted_at = trio.current_time()
    async with world.agent() as agent:
        await trio.sleep(60)
        expect(world.story.since(restarted_at, *KERNEL), [])
        assert await world.dataplane() == before
        adopted = [line.text for line in world.story.events("bundle_moved", restarted_at)]
        assert len(adopted) == 3 and all("reason=adopted" in text for text in adopted)
        assert await agent.conditions() == {}


async def test_that_a_restart_without_the_controller_does_nothing_either(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    await _run_once(world)
    world.controller.fault = "timed out"
    restarted_at = trio.current_time()
    async with world.agent() as agent:
        await trio.sleep(40)
        expect(world.story.since(restarted_at, *KERNEL), [])
        assert world.carried() == HOME
        assert set(await agent.conditions()) == {"ControllerUnreachable"}


async def test_that_a_restart_on_the_second_best_path_stays_until_failback_is_earned(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent():
        await trio.sleep(30)
        world.blackhole("wired")
        await trio.sleep(30)
    restarted_at = trio.current_time()
    async with world.agent():
        await trio.sleep(20)
        assert set(world.carried().values()) == {"lte.centre.wan", "lte.cloud.wan"}
        assert not [line for line in world.story.since(restarted_at, "tunnels") if "lte" in line.text]
        world.heal("wired")
        await trio.sleep(60)
        assert world.carried() == HOME


async def test_a_blackhole_while_nobody_looked(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    await _run_once(world)
    world.blackhole("wired")
    started_at = trio.current_time()
    async with world.agent():
        await trio.sleep(4)
        first = world.story.since(started_at, "tunnels")[:3]
        # Paths are independent: only within one is there an order.
        expect(
            sorted(first, key=lambda line: line.text.split()[1]),
            [
                "tunnels initiate lte.centre.wan traffic-centre",
                "tunnels initiate lte.centre.wan traffic-centre+cloud",
                "tunnels initiate lte.cloud.wan traffic-cloud",
            ],
        )
        # Nothing is known of the path's patience yet: it gets a second.
        assert first[0].at_s - started_at <= 1.5
        assert set(world.carried().values()) == {"lte.centre.wan", "lte.cloud.wan"}


async def test_a_document_that_came_while_nobody_looked(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    await _run_once(world)
    kept = branch().pairs[:2]
    added = Pair("centre-site", "10.101.0.0/24", "10.255.1.3/32", "local", ("centre",))
    world.publish(branch(2, pairs=(*kept, added)))
    started_at = trio.current_time()
    async with world.agent() as agent:
        await trio.sleep(5)
        rules = [line.text for line in world.story.since(started_at, "rules")]
        assert len(rules) <= 2 and not any("replace" in text for text in rules), rules
        assert "delete" in rules[0] and "10.50.0.0/24" in rules[0]
        assert any("add" in text and "10.255.1.3" in text for text in rules)
        assert world.carried() == {"centre": HOME["centre"], "cloud": HOME["cloud"]}
        assert (await agent.status()).document_version == 2
        assert await agent.conditions() == {}


async def test_charon_killed_and_started(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(5)
        killed_at = trio.current_time()
        world.kill_charon()
        await trio.sleep(5)
        assert "TargetFailed tunnels" in await agent.conditions()
        expect(world.story.events("charon_lost", killed_at), ["log charon_lost cause=*"])
        active = agent.cells.active.value["centre"]
        started_at = trio.current_time()
        world.start_charon()
        await trio.sleep(3)
        lines = [str(line) for line in world.story.since(started_at, "tunnels")]
        assert lines[0] == "tunnels load credentials"
        assert lines[1:5] == [
            "tunnels load lte.centre.wan",
            "tunnels load lte.cloud.wan",
            "tunnels load wired.centre.wan",
            "tunnels load wired.cloud.wan",
        ]
        # On the path that is to carry the traffic the traffic comes first and the probe second.
        dialled = [line for line in lines if line.startswith(f"tunnels initiate {active} ")]
        assert dialled.index(f"tunnels initiate {active} traffic-centre") < dialled.index(
            f"tunnels initiate {active} probe"
        )
        added = [line.text for line in world.story.since(started_at, "routes")]
        assert "add route 10.10.0.0/24 ipsec0 table 15500" in added
        await trio.sleep(30)
        assert world.carried() == HOME
        assert await agent.conditions() == {}


async def test_charon_killed_and_started_while_nobody_looked(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    await _run_once(world)
    world.kill_charon()
    world.start_charon()
    async with world.agent() as agent:
        await trio.sleep(5)
        assert world.carried() == HOME
        assert await agent.conditions() == {}


async def test_charon_hung(autojump_clock: MockClock) -> None:
    """Every call to charon has a bound, and what does not need it goes on meanwhile."""
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(5)
        world.charon.hung = True
        world.firewall.change(None)
        await trio.sleep(1)
        assert world.firewall.table is not None
        await trio.sleep(60)
        assert "TargetFailed tunnels" in await agent.conditions()
        world.charon.hung = False
        await trio.sleep(60)
        assert await agent.conditions() == {}
        assert world.carried() == HOME


async def test_an_answer_that_was_adopted_is_not_a_copy(autojump_clock: MockClock) -> None:
    """The status of an adopted path is measured anew, not remembered."""
    world = World()
    world.publish(branch())
    await _run_once(world)
    async with world.agent() as agent:
        await trio.sleep(10)
        paths = (await agent.status()).paths
        assert len(paths) == 4
        assert {(path.state, path.ike, path.ready) for path in paths} == {("up", "established", True)}
        assert {path.rtt_ms for path in paths if path.uplink == "wired"} == {20.0}
        assert {path.rtt_ms for path in paths if path.uplink == "lte"} == {50.0}


async def test_that_surplus_tunnels_are_pruned_only_when_there_is_a_document(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    await _run_once(world)
    held = await world.charon.read()
    table, routes, _ = await world.dataplane()
    # An empty disk and no controller: it does not know what it should be, so it must not tear down what it is.
    world.store.document = world.store.order = None
    world.controller.fault = "timed out"
    agent: Agent
    async with world.agent() as agent:
        await trio.sleep(60)
        assert "NoDocument" in await agent.conditions()
    after = await world.dataplane()
    # What it adds are ways to ask its controller by, behind all that lives.
    added = after[1].rules - routes.rules, after[1].routes - routes.routes
    assert {rule.priority for rule in added[0]} == {PRIORITY_FOUND_FROM} and {r.table // 100 for r in added[1]} == {156}
    kept = msgspec.structs.replace(after[1], rules=after[1].rules - added[0], routes=after[1].routes - added[1])
    assert (after[0], kept, after[2]) == (table, routes, held.ike_sas)
    assert _without_sas(await world.charon.read()) == _without_sas(held)


def _without_sas(charon: Charon) -> Charon:
    return msgspec.structs.replace(charon, ike_sas=())
