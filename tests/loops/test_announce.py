"""What does the controller hear of a site, and how does the site hear of changes where streams are cut?"""

from __future__ import annotations

import gc
import sys

import msgspec
import trio
from trio.testing import MockClock

from cpe_agent.loops.announce import CHANGE_S, RETRY_FIRST_S
from cpe_agent.model.document import Document, Policy, Probing
from tests.fakes.charon import Answer
from tests.loops.documents import CLOUD, PAIRS, POST, branch
from tests.loops.test_confirm import ASTRAY
from tests.loops.world import BOX, Agent, World

DAY_S = 86_400
# In a day without the controller some 4,000 calls fail: a leak of one object each would show.
GROWTH_MAX_BLOCKS = 1000


async def test_that_a_healthy_site_reports_every_minute_and_at_changes(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent():
        await trio.sleep(10)
        first = world.controller.reports[-1]
        assert (first.instance, first.boot_id, first.schemas) == (BOX.instance, BOX.boot_id, (1,))
        assert first.applied is not None and (first.applied.epoch, first.applied.version) == (1, 1)
        assert first.confirmed and first.serving and first.rejected is None and first.conditions == ()
        assert {path.path: path.state for path in first.paths}["wired.centre.wan"] == "up"
        told = len(world.controller.reports)
        await trio.sleep(180)
        assert 2 <= len(world.controller.reports) - told <= 4
        told = len(world.controller.reports)
        world.blackhole("wired")
        await trio.sleep(3)
        last = world.controller.reports[-1]
        assert len(world.controller.reports) > told
        assert {"PathDown"} == {condition.type for condition in last.conditions}
        assert world.controller.reported_from[-1] == "100.64.1.10", "over the uplink that works"


async def test_that_what_happens_often_is_told_every_other_second_at_most(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent():
        await trio.sleep(10)
        told = len(world.controller.reports)
        for _ in range(60):
            world.blackhole("lte")
            await trio.sleep(0.5)
            world.heal("lte")
            await trio.sleep(0.5)
        assert len(world.controller.reports) - told <= 31


async def test_that_a_site_reports_at_once_when_it_is_asked(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(leisurely())
    async with world.agent():
        await trio.sleep(130)
        told = len(world.controller.reports)
        world.controller.ask()
        await trio.sleep(0.5)
        assert len(world.controller.reports) == told + 1, "although nothing has changed"
        # What it was asked a moment after it has said all is answered once.
        await trio.sleep(0.5)
        for _ in range(3):
            world.controller.ask()
        await trio.sleep(CHANGE_S)
        assert len(world.controller.reports) == told + 2
        # From then on a minute counts again.
        await trio.sleep(50)
        assert len(world.controller.reports) == told + 2


async def test_that_a_controller_that_asks_without_end_hears_every_other_second_at_most(
    autojump_clock: MockClock,
) -> None:
    world = World()
    world.publish(leisurely())
    async with world.agent():
        await trio.sleep(10)
        told = len(world.controller.reports)
        for _ in range(600):
            world.controller.ask()
            await trio.sleep(0.1)
        assert 25 <= len(world.controller.reports) - told <= 60 / CHANGE_S + 1


async def test_that_a_site_that_could_not_answer_says_it_later(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(leisurely())
    async with world.agent():
        await trio.sleep(10)
        told = len(world.controller.reports)
        world.controller.unheard = "503 Service Unavailable"
        world.controller.ask()
        await trio.sleep(1)
        world.controller.unheard = None
        await trio.sleep(RETRY_FIRST_S)
        assert len(world.controller.reports) == told + 1


async def test_that_a_site_that_polls_is_asked_as_well(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(leisurely())
    async with world.agent():
        for _ in range(6):
            await trio.sleep(2)
            world.controller.cut()
        await trio.sleep(90)
        assert world.controller.listened[-1] == "poll"
        told = len(world.controller.reports)
        world.controller.ask()
        await trio.sleep(0.5)
        assert len(world.controller.reports) == told + 1


async def test_that_a_refused_and_a_reverted_document_are_reported(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent():
        await trio.sleep(10)
        world.publish(branch(2, pairs=PAIRS[:1]))
        await trio.sleep(3)
        rejected = world.controller.reports[-1].rejected
        assert rejected is not None and (rejected.epoch, rejected.version, rejected.reverted) == (1, 2, False)
        assert "allow_mass_removal" in rejected.reason
        for uplink in ("wired", "lte"):
            world.charon.answers[f"{uplink}.centre.wan"] = Answer.SILENT
        policy = Policy(failback_s=10, confirm_s=5)
        world.publish(branch(3, peers={"centre": ASTRAY.peer, "cloud": CLOUD.peer}, policy=policy))
        await trio.sleep(2.5)
        report = world.controller.reports[-1]
        assert report.applied is not None and report.applied.version == 3 and not report.confirmed
        await trio.sleep(6)
        report = world.controller.reports[-1]
        assert report.applied is not None and report.applied.version == 1 and report.confirmed
        assert report.rejected is not None
        assert (report.rejected.version, report.rejected.reverted) == (3, True)
        assert "centre did not come back" in report.rejected.reason


async def test_that_a_controller_that_is_back_hears_the_newest_only(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(leisurely())
    async with world.agent():
        await trio.sleep(10)
        told = len(world.controller.reports)
        world.controller.fault = "timed out"
        world.controller.cut()
        tried = len(world.controller.reported_from)
        await trio.sleep(600)
        rounds = (len(world.controller.reported_from) - tried) / 3
        assert 600 / 60 <= rounds <= 600 / 30 + 5
        world.blackhole("lte")
        await trio.sleep(400)
        world.controller.fault = None
        await trio.sleep(65)
        reports = world.controller.reports[told:]
        assert len(reports) <= 3 and "PathDown" in {c.type for c in reports[0].conditions}


async def test_that_memory_stays_flat_through_a_day_without_the_controller(autojump_clock: MockClock) -> None:
    """Of the loops that talk to the controller; all others are not in it."""
    world = World()
    world.store.document = POST.send(branch())
    world.controller.fault = "timed out"
    agent = Agent(world)
    agent.in_force.load()
    async with trio.open_nursery() as nursery:
        with world._logged():
            nursery.start_soon(agent.follower.run)
            nursery.start_soon(agent.in_force.run, agent.follower.reach)
            nursery.start_soon(agent.announcer.run)
            await trio.sleep(7200)
            before = _blocks(world)
            await trio.sleep(DAY_S)
            assert len(world.controller.asked) > 2000 and len(world.controller.reported_from) > 1000
            after = _blocks(world)
            nursery.cancel_scope.cancel()
    assert after - before < GROWTH_MAX_BLOCKS, f"{after - before} blocks in a day"


def _blocks(world: World) -> int:
    """Blocks of memory in use, without what the fakes and the story have taken note of."""
    world.story.lines.clear()
    world.controller.asked.clear()
    world.controller.reported_from.clear()
    world.controller.listened.clear()
    gc.collect()
    return sys.getallocatedblocks()


def leisurely(version: int = 1) -> Document:
    """Probed so rarely that hours of simulated time cost little."""
    probe = Probing(60_000, 60_000, 3)
    uplinks = {name: msgspec.structs.replace(uplink, probe=probe) for name, uplink in branch().uplinks.items()}
    return branch(version, uplinks=uplinks)


async def test_that_changes_are_polled_for_where_streams_are_cut(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(leisurely())
    async with world.agent() as agent:
        for _ in range(6):
            await trio.sleep(2)
            world.controller.cut()  # as a proxy does that waits for an answer's end
        await trio.sleep(20)
        assert world.controller.listened[-1] == "poll"
        assert len(world.story.events("controller_polled")) == 1
        for version in (2, 3):
            world.publish(leisurely(version))
            await trio.sleep(0.5)
            assert (await agent.status()).document_version == version, "a poll is answered at the change"
        await trio.sleep(30)
        assert await agent.conditions() == {}
        # After half an hour a stream is tried again, and kept where it lives.
        await trio.sleep(1800)
        for _ in range(10):
            world.controller.beat()
            await trio.sleep(10)
        assert world.controller.listened[-1] == "stream"


async def test_that_a_stream_that_lives_is_kept(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(leisurely())
    async with world.agent():
        for _ in range(10):
            for _ in range(4):
                await trio.sleep(5)
                world.controller.beat()
            world.controller.cut()  # a minute's proxy, or a controller that is upgraded
        assert "poll" not in world.controller.listened


async def test_that_the_documents_own_controllers_are_asked(autojump_clock: MockClock) -> None:
    world = World()
    urls = ("https://one.example:8443", "https://two.example:8443")
    world.publish(branch(controllers=urls))
    async with world.agent():
        await trio.sleep(1)
        world.controller.cut()
        await trio.sleep(5)
        assert world.controller.base_urls == urls
