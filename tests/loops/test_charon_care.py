"""Is root asked for a new charon when, and only when, that helps, and does the site say so?"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from trio.testing import MockClock

from cpe_agent.loops.charon_care import LOOK_S, care_for_charon
from cpe_agent.model.observed import CharonSigns
from tests.fakes.charon_care import FakeCharonCare
from tests.loops.documents import branch
from tests.loops.world import TUNNEL_DEVICE, Agent, World


@asynccontextmanager
async def _agent(world: World, port: FakeCharonCare) -> AsyncIterator[Agent]:
    world.publish(branch())
    async with world.agent() as agent, trio.open_nursery() as nursery:
        nursery.start_soon(care_for_charon, agent.cells, port)
        await trio.sleep(60)
        yield agent
        nursery.cancel_scope.cancel()


async def test_that_a_charon_that_is_well_is_left_alone(autojump_clock: MockClock) -> None:
    port = FakeCharonCare()
    async with _agent(World(), port) as agent:
        await trio.sleep(600)
        assert port.wishes == 0 and await agent.conditions() == {}


async def test_that_one_that_hangs_is_restarted_and_the_site_well_again(autojump_clock: MockClock) -> None:
    world, port = World(), FakeCharonCare()
    port.granting = True
    async with _agent(world, port) as agent:
        hung_at = trio.current_time()
        port.shown = CharonSigns(answers=False, listens=True)
        await trio.sleep(120)
        assert port.wishes == 1 and await agent.conditions() == {}
        told = [line.text for line in world.story.since(hung_at, "log")]
        assert any("charon_restart_asked" in text and "does not answer" in text for text in told), told


async def test_that_one_without_its_device_is_restarted(autojump_clock: MockClock) -> None:
    world, port = World(), FakeCharonCare()
    async with _agent(world, port) as agent:
        world.routes.remove_link(TUNNEL_DEVICE)
        await trio.sleep(40)
        assert port.wishes == 1
        assert {"CharonFailed", f"TunnelDeviceMissing {TUNNEL_DEVICE}"} <= set(await agent.conditions())


async def test_that_a_wish_that_cannot_be_put_down_is_no_end(autojump_clock: MockClock) -> None:
    port = FakeCharonCare(CharonSigns(answers=False, listens=False))
    port.full = True
    async with _agent(World(), port):
        assert port.wishes == 0
        port.full = False
        await trio.sleep(200)
        assert port.wishes == 2


async def test_that_a_stranger_is_a_condition(autojump_clock: MockClock) -> None:
    port = FakeCharonCare(CharonSigns(answers=True, listens=True, strangers=("UDP 500", "/run/charon.vici")))
    async with _agent(World(), port) as agent:
        found = await agent.conditions()
        assert "strongswan.service" in found["CharonConflict"] and port.wishes == 0
        port.shown = CharonSigns(answers=True, listens=True)
        await trio.sleep(LOOK_S)
        assert await agent.conditions() == {}
