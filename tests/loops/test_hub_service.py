"""When does a simulated hub say that it is ready, what does it announce, and whom does it end?"""

from __future__ import annotations

import msgspec
import pytest
import trio
from trio.testing import MockClock

from cpe_agent.core.uplinks import resolve
from cpe_agent.core.wanted_ruleset import answers
from cpe_agent.core.wanted_tunnels import connections
from cpe_agent.model.condition import DrainAnswer
from cpe_agent.model.dataplane import MAIN, METRIC_RETURN, Backend
from cpe_agent.model.document import Document, Lan
from cpe_agent.model.observed import Link, LinkAddress, Links
from cpe_agent.model.ops import Initiate, LoadConnection, LoadCredentials, TerminateIke
from cpe_agent.ports import EdgeError
from tests.fakes.charon import FakeCharon
from tests.loops.documents import IDENTITY, branch, hub
from tests.loops.world import LINKS as BRANCH_LINKS
from tests.loops.world import Agent, World

LINKS = (
    Link("wan", True, (LinkAddress("198.51.100.10", 29),), ("198.51.100.9",)),
    Link("lan0", True, (LinkAddress("10.10.0.1", 24),)),
)
READY = "10.255.1.2"
PROBE = "10.255.1.1"
SERVER = ("10.10.0.1", "10.10.0.10")
RTT_S = 0.001
ROUNDS_S = 3.5


def _document(version: int = 1, **changes: object) -> Document:
    return hub(version, lans=(Lan("lan0", "10.10.0.0/24", "lan0", check=SERVER[1]),), **changes)


def _world(document: Document | None = None) -> World:
    world = World("centre", "centre.net.cpe", LINKS)
    world.lan_prober.addresses.add(SERVER[0])
    world.lan_prober.rtt_s[SERVER] = RTT_S
    world.publish(document or _document())
    return world


async def _ready(world: World) -> bool:
    # Neither address is ever taken away, and the probe address answers always: paths stay up.
    assert {f"{PROBE}/32", f"{READY}/32"} <= (await world.routes.read()).addresses
    assert _answers(world, PROBE)
    return _answers(world, READY)


def _answers(world: World, address: str) -> bool:
    table = world.firewall.table
    assert table is not None
    return answers(table, address)


def _interruptions(world: World, since: float) -> list[str]:
    """What has been done to the set of answering addresses, and to the addresses themselves."""
    rules = [line.text for line in world.story.since(since, "rules")]
    routes = [line.text for line in world.story.since(since, "routes")]
    return [
        *(text for text in rules if "answering" in text or "table" in text),
        *(text for text in routes if "address" in text),
    ]


async def _conditions(agent: Agent) -> set[str]:
    return {f"{c.type} {c.subject}" for c in (await agent.status()).conditions}


async def test_without_a_document_it_is_not_ready(autojump_clock: MockClock) -> None:
    world = World("centre", "centre.net.cpe", LINKS)
    async with world.agent() as agent:
        await trio.sleep(10)
        assert not _answers(world, READY)
        assert agent.cells.readiness.value is None


async def test_it_is_ready_once_its_lan_has_answered(autojump_clock: MockClock) -> None:
    world = _world()
    del world.lan_prober.rtt_s[SERVER]
    async with world.agent() as agent:
        await trio.sleep(10)
        assert not await _ready(world)
        assert await _conditions(agent) == {"LanCheckFailed lan0"}
        world.lan_prober.rtt_s[SERVER] = RTT_S
        await trio.sleep(ROUNDS_S + 1)
        assert await _ready(world)
        assert await _conditions(agent) == set()


async def test_a_silent_lan_silences_the_ready_address(autojump_clock: MockClock) -> None:
    world = _world()
    async with world.agent() as agent:
        await trio.sleep(10)
        assert await _ready(world)
        del world.lan_prober.rtt_s[SERVER]
        await trio.sleep(1.5)
        assert await _ready(world)
        await trio.sleep(ROUNDS_S)
        assert not await _ready(world)
        assert await _conditions(agent) == {"LanCheckFailed lan0"}


async def test_a_lan_without_carrier_does_at_once(autojump_clock: MockClock) -> None:
    world = _world()
    async with world.agent():
        await trio.sleep(10)
        world.routes.set_carrier("lan0", False)
        await trio.sleep(0.05)
        assert not await _ready(world)
        world.routes.set_carrier("lan0", True)
        await trio.sleep(1)
        assert not await _ready(world)
        await trio.sleep(ROUNDS_S)
        assert await _ready(world)


async def test_drain_is_obeyed_at_once_and_outlives_the_agent(autojump_clock: MockClock) -> None:
    world = _world()
    async with world.agent() as agent:
        await trio.sleep(10)
        assert agent.readiness.set_drained(True) == DrainAnswer(True, True, False)
        assert agent.readiness.set_drained(True) == DrainAnswer(True, False, False)
        await trio.sleep(0.05)
        assert not await _ready(world)
    async with world.agent() as agent:
        await trio.sleep(10)
        assert not await _ready(world)
        assert await _conditions(agent) == {"Draining hub"}
        assert agent.readiness.set_drained(False) == DrainAnswer(False, True, True)
        await trio.sleep(0.05)
        assert await _ready(world)
        assert agent.readiness.set_drained(False) == DrainAnswer(False, False, True)


async def test_undrain_says_what_else_is_in_the_way(autojump_clock: MockClock) -> None:
    world = _world(_document(drain=True))
    async with world.agent() as agent:
        await trio.sleep(10)
        answer = agent.readiness.set_drained(False)
        assert not answer.serving and "the document drains this hub" in answer.in_the_way[0]


async def test_a_full_disk_does_not_stop_a_drain(autojump_clock: MockClock) -> None:
    world = _world()
    async with world.agent() as agent:
        await trio.sleep(10)
        world.store.refusal = "no space left on device"
        assert "no space left on device" in agent.readiness.set_drained(True).warning
        await trio.sleep(0.05)
        assert not await _ready(world)


async def test_a_branch_is_not_drained(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(3)
        with pytest.raises(EdgeError, match="is a branch"):
            agent.readiness.set_drained(True)
        assert not world.store.drained


async def test_a_restarted_agent_goes_on_serving(autojump_clock: MockClock) -> None:
    """Also while nothing has answered it yet."""
    world = _world()
    async with world.agent():
        await trio.sleep(10)
    world.lan_prober.rtt_s[SERVER] = 0.9
    since = trio.current_time()
    async with world.agent():
        await trio.sleep(20)
        assert await _ready(world)
    assert not _interruptions(world, since)


async def test_a_lan_more_does_not_interrupt_service(autojump_clock: MockClock) -> None:
    world = _world()
    world.routes.set_link(Link("lan1", True, (LinkAddress("10.50.0.1", 24),)))
    world.lan_prober.addresses.add("10.50.0.1")
    world.lan_prober.rtt_s["10.50.0.1", "10.50.0.10"] = RTT_S
    async with world.agent():
        await trio.sleep(10)
        since = trio.current_time()
        lans = (*_document().lans, Lan("lan1", "10.50.0.0/24", "lan1", check="10.50.0.10"))
        world.publish(msgspec.structs.replace(_document(2), lans=lans))
        await trio.sleep(10)
        assert not _interruptions(world, since)
        del world.lan_prober.rtt_s["10.50.0.1", "10.50.0.10"]
        await trio.sleep(10)
        assert not await _ready(world)


async def _dial(world: World) -> FakeCharon:
    """The hospital's charon, with a probe and its traffic for the centre up."""
    hospital = FakeCharon(world.charon)
    links = Links({link.name: link for link in BRANCH_LINKS})
    uplinks, _ = resolve(branch(), links)
    (wired,) = (c for c in connections(branch(), uplinks, IDENTITY, Backend.USERLAND) if c.stem == "wired.centre.wan")
    await hospital.apply(LoadCredentials())
    await hospital.apply(LoadConnection(wired))
    for child in ("probe", "traffic-centre"):
        await hospital.apply(Initiate(wired.name, child))
    return hospital


async def _announced(world: World) -> set[tuple[str, str, int]]:
    routes = (await world.routes.read()).routes
    return {(route.destination, route.device, route.metric) for route in routes if route.table == MAIN}


CARRIED = {(subnet, "ipsec0", METRIC_RETURN) for subnet in ("10.101.0.0/24", "10.255.101.1/32")}


async def test_return_routes_come_and_go_with_the_branch(autojump_clock: MockClock) -> None:
    world = _world()
    async with world.agent():
        await trio.sleep(10)
        assert await _announced(world) == set()
        rules = len(world.story.since(0, "rules"))
        await _dial(world)
        await trio.sleep(0.05)
        assert await _announced(world) == CARRIED
        world.charon.drop(world.charon.ike_sas()[0].unique_id)
        await trio.sleep(0.05)
        assert await _announced(world) == set()
        # An event of a branch recompiles nothing.
        assert len(world.story.since(0, "rules")) == rules


async def test_what_is_announced_stays_until_charon_has_been_asked(autojump_clock: MockClock) -> None:
    """charon does not answer while the agent restarts: what it carries is unknown, not nothing."""
    world = _world()
    async with world.agent():
        await trio.sleep(10)
        await _dial(world)
        await trio.sleep(1)
    world.charon.hung = True
    since = trio.current_time()
    async with world.agent():
        await trio.sleep(60)
        assert await _announced(world) == CARRIED
        world.charon.hung = False
        await trio.sleep(60)
        assert await _announced(world) == CARRIED
    assert not [line for line in world.story.since(since, "routes") if "10.101.0.0/24" in line.text]


async def test_a_leftover_is_ended_and_the_newest_is_not(autojump_clock: MockClock) -> None:
    world = _world()
    async with world.agent():
        await trio.sleep(10)
        await _dial(world)
        await _dial(world)  # the hospital lost power, and the hub was not told
        old, new = world.charon.ike_sas()
        probe = next(child for child in new.children if child.name == "probe")
        for second in range(120):
            world.charon.count_bytes(probe.unique_id, 84 * second, 84 * second)
            await trio.sleep(1)
        assert [sa.unique_id for sa in world.charon.ike_sas()] == [new.unique_id]
        assert [op for op in world.charon.applied if isinstance(op, TerminateIke)] == [
            TerminateIke(old.unique_id, False)
        ]
        assert await _announced(world) == CARRIED


async def test_a_cloned_key_is_reported_and_neither_box_is_ended(autojump_clock: MockClock) -> None:
    world = _world()
    async with world.agent() as agent:
        await trio.sleep(10)
        await _dial(world)
        await _dial(world)
        probes = [child for sa in world.charon.ike_sas() for child in sa.children if child.name == "probe"]
        for second in range(120):
            for probe in probes:
                world.charon.count_bytes(probe.unique_id, 84 * second, 84 * second)
            await trio.sleep(1)
        assert await _conditions(agent) == {"IdentityDuplicated hospital-1"}
        assert len(world.charon.ike_sas()) == 2
        world.charon.drop(world.charon.ike_sas()[0].unique_id)
        await trio.sleep(90)
        assert await _conditions(agent) == set()
