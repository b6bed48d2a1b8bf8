"""A drill from the asking to the record: what moves, what is measured, and what if it goes wrong?"""

from __future__ import annotations

import msgspec
import pytest
import trio
from trio.testing import MockClock

from cpe_agent.core import drill
from cpe_agent.loops.drill import HOLD_S, RATE
from cpe_agent.model.document import Document, ServiceProbe
from cpe_agent.model.drill import DrillRecord
from cpe_agent.ports import EdgeError
from tests.loops.documents import FAILBACK_S, PAIRS, branch
from tests.loops.test_failover import HOME, ON_LTE
from tests.loops.world import Agent, World

LONG_S = HOLD_S + FAILBACK_S + 30


def _probed() -> Document:
    probes = {"shared": ServiceProbe("icmp", address="10.50.0.10")}
    return branch(pairs=tuple(msgspec.structs.replace(pair, probe=probes.get(pair.id)) for pair in PAIRS))


def _records(world: World) -> list[DrillRecord]:
    assert drill.check(world.records.written) == ""
    return list(drill.records(world.records.written))


async def _over(agent: Agent) -> None:
    await trio.sleep(LONG_S)
    assert not agent.drills.progress().running


async def test_that_an_uplink_is_left_and_taken_again_and_written_down(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(_probed())
    async with world.agent() as agent:
        await trio.sleep(20)
        agent.drills.start("uplink", "wired")
        await trio.sleep(3)
        assert world.carried() == ON_LTE and agent.cells.taken_out.value
        with pytest.raises(EdgeError, match="one at a time"):
            agent.drills.start("uplink", "wired")
        await _over(agent)
        assert world.carried() == HOME and not agent.cells.taken_out.value
        began, done = _records(world)
        assert (began.outcome, done.outcome, done.words) == ("began", "done", "")
        assert {(m.bundle, m.from_path, m.to_path) for m in done.moves} == {
            (bundle, HOME[bundle], ON_LTE[bundle]) for bundle in HOME
        }
        assert all(move.left_s is not None and move.left_s < 1 and move.back_s is not None for move in done.moves)
        assert [(s.bundle, s.lost) for s in done.streams] == [("centre+cloud", 0)]
        assert done.streams[0].sent >= RATE * HOLD_S and done.unmeasured == ("centre", "cloud")
        assert await agent.conditions() == {}


async def test_that_losses_of_the_stream_are_told(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(_probed())
    async with world.agent() as agent:
        await trio.sleep(20)
        agent.drills.start("uplink", "wired")
        await trio.sleep(3)
        world.dead_servers = {("10.50.0.10", "centre")}
        await trio.sleep(0.5)
        world.dead_servers = set()
        await _over(agent)
        stream = _records(world)[-1].streams[0]
        assert 20 <= stream.lost <= 30 and 400 <= stream.outage_ms <= 600


async def test_that_it_is_put_back_early_when_the_alternative_fails(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(_probed())
    async with world.agent() as agent:
        await trio.sleep(20)
        agent.drills.start("uplink", "wired")
        await trio.sleep(3)
        world.blackhole("lte")
        await _over(agent)
        ended = _records(world)[-1]
        assert ended.outcome == "aborted" and "came back by itself" in ended.words
        assert world.carried() == HOME


async def test_that_an_agent_that_is_stopped_puts_back_and_says_so(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(_probed())
    async with world.agent() as agent:
        await trio.sleep(20)
        agent.drills.start("uplink", "wired")
        await trio.sleep(3)
    assert _records(world)[-1].outcome == "interrupted"
    async with world.agent() as agent:
        await trio.sleep(FAILBACK_S + 10)
        assert world.carried() == HOME and not agent.cells.taken_out.value
        assert len(_records(world)) == 2, "it is written down once"


async def test_that_an_agent_that_was_killed_says_so_when_it_is_back(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(_probed())
    async with world.agent() as agent:
        await trio.sleep(20)
        agent.drills.start("uplink", "wired")
        await trio.sleep(3)
        world.records.full = True  # as if nothing more could be written
    world.records.full = False
    assert [record.outcome for record in _records(world)] == ["began"]
    async with world.agent():
        await trio.sleep(1)
        assert [record.outcome for record in _records(world)] == ["began", "interrupted"]


async def test_that_a_document_that_takes_its_bundles_away_ends_it(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(_probed())
    async with world.agent() as agent:
        await trio.sleep(20)
        agent.drills.start("uplink", "wired")
        world.publish(branch(2, pairs=(), allow_mass_removal=True))
        await trio.sleep(5)
        assert not agent.drills.progress().running and not agent.cells.taken_out.value
        ended = _records(world)[-1]
        assert ended.outcome == "aborted" and "carried by no path" in ended.words


async def test_that_nothing_is_taken_out_that_cannot_be_written_down(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(_probed())
    async with world.agent() as agent:
        await trio.sleep(20)
        world.records.full = True
        agent.drills.start("uplink", "wired")
        await trio.sleep(3)
        assert world.carried() == HOME and not agent.drills.progress().running
        assert "No space left" in agent.drills.progress().said[-1]


async def test_that_who_has_no_document_is_refused(autojump_clock: MockClock) -> None:
    world = World()
    async with world.agent() as agent:
        await trio.sleep(1)
        with pytest.raises(EdgeError, match="no document"):
            agent.drills.start("uplink", "wired")
