"""What becomes of a good document when something else fails while it is on trial?

The site goes back, as nobody can know better. But what is no better without the document was not its doing: it is
tried again by itself, when it can be judged.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from trio.testing import MockClock

from cpe_agent.core.confirm import DOUBT_S, TRIALS_MAX
from cpe_agent.core.rejections import PATIENCE_S
from cpe_agent.model.site_report import SiteReport
from tests.fakes.charon import Answer
from tests.loops.documents import PAIRS
from tests.loops.test_confirm import CONFIRM_S, good, settled
from tests.loops.test_hub_death import Dying
from tests.loops.world import RTT_S, Agent, World

# A dialler that was kept waiting, its probes, a heartbeat and the trial.
BACK_S = 45.0


class Flaky(Dying):
    """In which hubs can also come back."""

    def return_(self, hub: str) -> None:
        self.gone.discard(hub)
        for uplink in RTT_S:
            self.charon.answers.pop(f"{uplink}.{hub}.wan", None)

    def lose_all(self) -> None:
        for uplink in RTT_S:
            self.blackhole(uplink)
        self.controller.fault = "timed out"
        self.controller.cut()

    def find_all(self) -> None:
        for uplink in RTT_S:
            self.heal(uplink)
        self.controller.fault = None


@asynccontextmanager
async def heard(world: World) -> AsyncIterator[None]:
    """The controller's heartbeats, while its streams live."""

    async def beat() -> None:
        while True:
            await trio.sleep(10)
            if world.controller.fault is None:
                world.controller.beat()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(beat)
        yield
        nursery.cancel_scope.cancel()


async def given_up(world: World, agent: Agent) -> None:
    await trio.sleep(CONFIRM_S + 2)
    assert (await agent.status()).document_version == 1
    assert "was given up for good" in (await agent.conditions())["DocumentReverted"]


async def test_a_van_in_a_tunnel_takes_it_when_it_is_out_again(autojump_clock: MockClock) -> None:
    world = Flaky()
    async with world.agent() as agent, heard(world):
        await settled(world, agent)
        world.publish(good(2, pairs=PAIRS[:2]))
        await trio.sleep(1)
        world.lose_all()
        await given_up(world, agent)
        await trio.sleep(DOUBT_S)
        assert len(world.story.events("document_acquitted")) == 1
        assert "without it that is no better" in (await agent.conditions())["DocumentReverted"]
        await trio.sleep(600)
        assert len(world.story.events("document_accepted")) == 2, "it is not tried while nothing can be judged"
        world.find_all()
        await trio.sleep(BACK_S + 30)  # the controller is asked every half minute by now
        status = await agent.status()
        assert status.document_version == 2 and status.document_confirmed and await agent.conditions() == {}
        assert world.store.rejections == ()
        assert _report(world).rejected is None


async def test_a_hub_that_reboots_meanwhile_is_waited_for(autojump_clock: MockClock) -> None:
    world = Flaky()
    async with world.agent() as agent, heard(world):
        await settled(world, agent)
        world.publish(good(2, pairs=PAIRS[:2]))
        await trio.sleep(1)
        world.vanish("centre")
        await given_up(world, agent)
        assert _told(world) == (2, True)
        await trio.sleep(DOUBT_S + 5)
        # So that it is offered again: the controller is told no more that it was refused.
        assert _report(world).rejected is None
        await trio.sleep(100)
        assert (await agent.status()).document_version == 1, "the hub is waited for"
        world.return_("centre")
        await trio.sleep(BACK_S)
        assert (await agent.status()).document_version == 2 and await agent.conditions() == {}


async def test_a_hub_that_has_moved_to_where_only_the_new_document_looks_for_it(autojump_clock: MockClock) -> None:
    world = Flaky()
    async with world.agent() as agent, heard(world):
        await settled(world, agent)
        world.publish(good(2, pairs=PAIRS[:2]))
        await trio.sleep(1)
        world.vanish("centre")
        await given_up(world, agent)
        await trio.sleep(DOUBT_S + PATIENCE_S + 30)
        status = await agent.status()
        assert status.document_version == 2 and status.document_confirmed
        assert "DocumentReverted" not in await agent.conditions()


async def test_what_comes_back_without_it_was_its_doing(autojump_clock: MockClock) -> None:
    world = Flaky()
    async with world.agent() as agent, heard(world):
        await settled(world, agent)
        world.publish(good(2, pairs=PAIRS[:2]))
        await trio.sleep(1)
        world.vanish("centre")
        await given_up(world, agent)
        world.return_("centre")
        await trio.sleep(DOUBT_S + PATIENCE_S + 60)
        assert (await agent.status()).document_version == 1
        assert not world.story.events("document_acquitted")
        assert _told(world) == (2, True)


async def test_harm_that_outlives_the_document_is_done_so_often_and_no_more(autojump_clock: MockClock) -> None:
    """A modem that the document upsets for two minutes looks like an outage each time."""
    world = Flaky()
    async with world.agent() as agent, heard(world):
        await settled(world, agent)
        world.publish(good(2, pairs=PAIRS[:2]))
        for trial in range(1, TRIALS_MAX + 1):
            while (await agent.status()).document_version != 2:  # noqa: ASYNC110 - no event is rung for tests
                await trio.sleep(1)
            world.vanish("centre")
            await trio.sleep(CONFIRM_S + DOUBT_S + 5)
            assert len(world.story.events("document_reverted")) == trial
            world.return_("centre")
        await trio.sleep(2 * PATIENCE_S)
        assert len(world.story.events("document_reverted")) == TRIALS_MAX
        assert (await agent.status()).document_version == 1
        assert "given up for good" in (await agent.conditions())["DocumentReverted"]
        # Nor does a restart forget it.
    async with world.agent() as agent, heard(world):
        await trio.sleep(2 * PATIENCE_S)
        assert (await agent.status()).document_version == 1
        world.publish(good(3))
        await trio.sleep(10)
        assert (await agent.status()).document_version == 3 and await agent.conditions() == {}


async def test_a_power_cut_while_it_waits_and_while_it_is_tried_again(autojump_clock: MockClock) -> None:
    world = Flaky()
    async with world.agent() as agent, heard(world):
        await settled(world, agent)
        world.publish(good(2, pairs=PAIRS[:2]))
        await trio.sleep(1)
        world.lose_all()
        await given_up(world, agent)
        await trio.sleep(DOUBT_S)
    async with world.agent() as agent, heard(world):
        await trio.sleep(20)
        assert (await agent.status()).document_version == 1
        world.find_all()
        # Nobody remembers by whom it was missed: so the site is watched for a while first.
        await trio.sleep(BACK_S)
        assert (await agent.status()).document_version == 1
        while (await agent.status()).document_version == 1:  # noqa: ASYNC110 - as above
            await trio.sleep(0.5)
        assert not (await agent.status()).document_confirmed
    async with world.agent() as agent, heard(world):
        await trio.sleep(20)
        status = await agent.status()
        assert status.document_version == 2 and status.document_confirmed and await agent.conditions() == {}


async def test_a_peer_that_it_removed_stays_away_while_it_waits(autojump_clock: MockClock) -> None:
    world = Flaky()
    async with world.agent() as agent, heard(world):
        await settled(world, agent)
        only = tuple(pair for pair in PAIRS if pair.peers == ("cloud",))
        peers = {"cloud": good().peers["cloud"]}
        world.publish(good(2, peers=peers, pairs=only, allow_mass_removal=True))
        await trio.sleep(1)
        world.lose_all()
        await given_up(world, agent)
        await trio.sleep(DOUBT_S + 60)
        assert len(world.story.events("document_acquitted")) == 1
        assert {path.peer for path in (await agent.status()).paths} == {"cloud"}


def _report(world: World) -> SiteReport:
    return world.controller.reports[-1]


def _told(world: World) -> tuple[int, bool]:
    rejected = _report(world).rejected
    assert rejected is not None
    return rejected.version, rejected.reverted


def test_that_silence_is_what_a_vanished_hub_gives() -> None:
    world = Flaky()
    world.vanish("centre")
    assert set(world.charon.answers.values()) == {Answer.SILENT}
    world.return_("centre")
    assert world.charon.answers == {}
