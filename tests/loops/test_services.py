"""A server dies: what does the branch do, and what does it say?"""

from __future__ import annotations

import msgspec
import trio
from trio.testing import MockClock

from cpe_agent.model.document import Document, ServiceProbe
from tests.loops.documents import PAIRS, branch
from tests.loops.world import World

SERVER = "10.50.0.10"
NOTICED_S = 25.0


def _probed() -> Document:
    probes = {
        "shared": ServiceProbe("icmp", address=SERVER),
        "centre-http": ServiceProbe("tcp", 80, "10.10.0.10"),
    }
    return branch(pairs=tuple(msgspec.structs.replace(pair, probe=probes.get(pair.id)) for pair in PAIRS))


async def test_that_servers_that_answer_change_nothing(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(_probed())
    async with world.agent() as agent:
        await trio.sleep(60)
        report = await agent.status()
        assert {(s.server, s.state, s.peer) for s in report.services} == {
            ("10.50.0.10 (echo)", "answering", "centre"),
            ("10.10.0.10 (tcp 80)", "answering", "centre"),
        }
        assert world.carried()["centre+cloud"] == "wired.centre.wan" and await agent.conditions() == {}


async def test_that_a_bundle_moves_to_where_its_server_answers_and_back(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(_probed())
    async with world.agent() as agent:
        await trio.sleep(15)
        since = trio.current_time()
        world.dead_servers = {(SERVER, "centre")}
        await trio.sleep(NOTICED_S)
        assert world.carried()["centre+cloud"] == "wired.cloud.wan"
        assert world.carried()["centre"] == "wired.centre.wan"
        told = [str(line) for line in world.story.since(since, "tunnels")]
        assert sorted(told) == sorted(
            [
                "tunnels initiate wired.cloud.wan trial-centre+cloud",
                "tunnels initiate wired.cloud.wan traffic-centre+cloud",
                "tunnels end wired.cloud.wan trial-centre+cloud",
                "tunnels end wired.centre.wan traffic-centre+cloud",
            ]
        )
        world.dead_servers = set()
        await trio.sleep(120)
        assert world.carried()["centre+cloud"] == "wired.centre.wan"
        assert await agent.conditions() == {}


async def test_that_a_server_that_is_dead_everywhere_is_named_and_moves_nothing(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(_probed())
    async with world.agent() as agent:
        await trio.sleep(15)
        world.dead_servers = {(SERVER, "centre"), (SERVER, "cloud")}
        await trio.sleep(300)
        assert world.carried()["centre+cloud"] == "wired.centre.wan"
        reason = (await agent.conditions())["ServerSilent shared"]
        assert reason.startswith(
            "10.50.0.10 (echo) does not answer behind centre, whose path is up: look at that server"
        )


async def test_that_a_dead_path_is_no_dead_server(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(_probed())
    async with world.agent() as agent:
        await trio.sleep(15)
        world.blackhole("wired")
        world.blackhole("lte")
        await trio.sleep(60)
        names = {name.split()[0] for name in await agent.conditions()}
        assert "ServerSilent" not in names and "PathDown" in names
