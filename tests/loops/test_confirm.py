"""Does the agent keep a new document, or go back by itself? Also when it is killed or the power is cut in between."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from cpe_agent.model.confirmation import Before
from cpe_agent.model.document import Document, Policy
from cpe_agent.ports import EdgeError, Pending
from tests.fakes.charon import Answer
from tests.fakes.controller import FakeController
from tests.fakes.store import FakeStore
from tests.loops.documents import CENTRE, CLOUD, PAIRS, POST, SECOND, SECOND_KEY, Hub, branch
from tests.loops.story import expect
from tests.loops.world import Agent, World

CONFIRM_S = 10
KERNEL = ("rules", "routes", "tunnels")
ASTRAY = Hub("centre", "198.51.100.99", 1, CENTRE.lans)


def good(version: int = 1, **changes: Any) -> Document:
    return branch(version, policy=Policy(failback_s=10, confirm_s=CONFIRM_S), **changes)


def cut_off(world: World, version: int = 2, **changes: Any) -> Document:
    """A document with a wrong address for the centre, at which nobody answers."""
    for uplink in ("wired", "lte"):
        world.charon.answers[f"{uplink}.centre.wan"] = Answer.SILENT
    peers = {"centre": ASTRAY.peer, "cloud": CLOUD.peer}
    return good(version, **{"peers": peers, **changes})


def answering_again(world: World) -> None:
    world.charon.answers.clear()


async def settled(world: World, agent: Agent) -> None:
    world.publish(good())
    await trio.sleep(10)
    assert await agent.conditions() == {}


def _pending(world: World) -> Pending | None:
    return world.store.pending


def stored_version(store: FakeStore) -> int | None:
    return None if store.document is None else int(msgspec.json.decode(store.document.raw)["version"])


async def test_that_a_good_document_is_confirmed_in_seconds(autojump_clock: MockClock) -> None:
    world = World()
    async with world.agent() as agent:
        await settled(world, agent)
        world.publish(good(2, pairs=PAIRS[:2]))
        await trio.sleep(0.2)
        status = await agent.status()
        assert status.document_version == 2 and not status.document_confirmed
        assert "DocumentPending" in await agent.conditions()
        assert stored_version(world.store) == 1, "the last good one is kept until the new one is confirmed"
        before = Before(frozenset({"centre", "cloud"}), frozenset({"rules", "routes"}), controller=True)
        assert world.store.pending == Pending(POST.send(good(2, pairs=PAIRS[:2])), 1, before)
        await trio.sleep(5)
        assert (await agent.status()).document_confirmed and await agent.conditions() == {}
        assert stored_version(world.store) == 2 and world.store.previous == POST.send(good())
        assert _pending(world) is None
        [line] = world.story.events("document_confirmed")[1:]
        assert "version=2" in line.text


async def test_that_a_document_that_cuts_off_a_hub_is_given_up(autojump_clock: MockClock) -> None:
    world = World()
    async with world.agent() as agent:
        await settled(world, agent)
        before = await world.dataplane()
        at = trio.current_time()
        world.publish(cut_off(world))
        await trio.sleep(CONFIRM_S - 1)
        assert (await agent.status()).document_version == 2
        assert "centre did not come back" in (await agent.conditions())["DocumentPending"]
        await trio.sleep(2)
        assert (await agent.status()).document_version == 1
        [line] = world.story.events("document_reverted", at)
        assert line.at_s == pytest.approx(at + CONFIRM_S, abs=0.5)
        reason = (await agent.conditions())["DocumentReverted"]
        assert "version 1.2" in reason and "centre did not come back within 10 s" in reason
        answering_again(world)
        await trio.sleep(20)
        rules, routes, sas = await world.dataplane()
        assert (rules, routes) == before[:2]
        assert {(sa.connection, sa.established) for sa in sas} == {(sa.connection, True) for sa in before[2]}
        assert set(await agent.conditions()) == {"DocumentReverted"}
        # What the controller still offers stays given up; a newer one is taken up.
        world.controller.beat()
        world.controller.cut()
        await trio.sleep(35)
        assert (await agent.status()).document_version == 1
        world.publish(good(3))
        await trio.sleep(5)
        assert (await agent.status()).document_version == 3 and await agent.conditions() == {}
        assert world.store.rejections == ()


async def test_that_a_document_after_which_the_controller_is_silent_is_given_up(autojump_clock: MockClock) -> None:
    world = World()
    async with world.agent() as agent:
        await settled(world, agent)
        world.publish(good(2))
        await trio.sleep(0.1)
        world.controller.fault = "timed out"
        await trio.sleep(CONFIRM_S + 1)
        assert (await agent.status()).document_version == 1
        assert "the controller did not answer any more" in (await agent.conditions())["DocumentReverted"]


async def test_that_a_kernel_that_refuses_a_document_makes_it_be_given_up(autojump_clock: MockClock) -> None:
    world = World()
    async with world.agent() as agent:
        await settled(world, agent)
        world.firewall.refusal = "Numerical result out of range"
        world.publish(good(2, pairs=PAIRS[:2]))
        await trio.sleep(CONFIRM_S + 1)
        assert (await agent.status()).document_version == 1
        assert "rules could not be brought in sync" in (await agent.conditions())["DocumentReverted"]
        world.firewall.refusal = None
        await trio.sleep(20)
        assert set(await agent.conditions()) == {"DocumentReverted"}


async def test_that_a_revert_gives_a_removed_peer_no_access(autojump_clock: MockClock) -> None:
    """The cloud is revoked by a document that also cuts off the centre."""
    world = World()
    async with world.agent() as agent:
        await settled(world, agent)
        pairs = tuple(msgspec.structs.replace(pair, peers=("centre",)) for pair in (PAIRS[0], PAIRS[2]))
        world.publish(cut_off(world, peers={"centre": ASTRAY.peer}, pairs=pairs))
        await trio.sleep(CONFIRM_S + 2)
        answering_again(world)
        await trio.sleep(20)
        assert (await agent.status()).document_version == 1
        await _without_cloud(world, agent)
    # Nor does a restart.
    async with world.agent() as agent:
        await trio.sleep(10)
        assert (await agent.status()).document_version == 1
        await _without_cloud(world, agent)
        assert "DocumentReverted" in await agent.conditions()
        world.publish(good(3))
        await trio.sleep(10)
        assert {path.peer for path in (await agent.status()).paths} == {"centre", "cloud"}


async def _without_cloud(world: World, agent: Agent) -> None:
    assert {path.peer for path in (await agent.status()).paths} == {"centre"}
    assert not any("cloud" in sa.connection for sa in world.charon.ike_sas())
    assert world.firewall.table is not None
    assert not any("10.20.0.0" in element for s in world.firewall.table.sets for element in s.elements)


class TestPowerCuts:
    """The agent is gone from one moment to the next; what it finds is the store as it was at that moment."""

    async def test_on_trial_it_is_tried_again_and_then_given_up_in_time(self, autojump_clock: MockClock) -> None:
        world = World()
        async with world.agent() as agent:
            await settled(world, agent)
            world.publish(cut_off(world))
            await trio.sleep(2)
        assert world.store.pending is not None and world.store.pending.attempts == 1
        world.controller.fault = "timed out"
        at = trio.current_time()
        async with world.agent() as agent:
            await trio.sleep(1)
            assert (await agent.status()).document_version == 2
            assert world.store.pending.attempts == 2
            await trio.sleep(CONFIRM_S)
            assert (await agent.status()).document_version == 1
            [line] = world.story.events("document_reverted", at)
            assert "centre did not come back" in line.text
        async with world.agent() as agent:
            await trio.sleep(1)
            assert (await agent.status()).document_version == 1

    async def test_what_ends_the_agent_twice_is_given_up_for_good(self, autojump_clock: MockClock) -> None:
        world = World()
        async with world.agent() as agent:
            await settled(world, agent)
            world.publish(good(2))
            await trio.sleep(1)
        async with world.agent() as agent:
            await trio.sleep(1)
            assert (await agent.status()).document_version == 2
        for _ in range(3):
            async with world.agent() as agent:
                await trio.sleep(10)
                assert (await agent.status()).document_version == 1
                assert "the agent ended 2 times" in (await agent.conditions())["DocumentReverted"]

    async def test_a_first_document_that_ends_the_agent_twice_opens_nothing(self, autojump_clock: MockClock) -> None:
        world = World()
        world.publish(good())
        for _ in range(2):
            async with world.agent() as agent:
                await trio.sleep(1)
                assert (await agent.status()).document_version == 1
        async with world.agent() as agent:
            await trio.sleep(30)
            assert {"NoDocument", "DocumentReverted"} <= set(await agent.conditions())

    async def test_an_agent_that_is_told_to_stop_has_not_crashed(self, autojump_clock: MockClock) -> None:
        world = World()
        async with world.agent() as agent:
            await settled(world, agent)
            world.publish(good(2))
            await trio.sleep(1)
        for _ in range(4):
            async with world.agent() as agent:
                await trio.sleep(1)
                agent.in_force.stopped()
            assert world.store.pending is not None and world.store.pending.attempts == 1
        async with world.agent() as agent:
            await trio.sleep(5)
            assert (await agent.status()).document_confirmed

    @pytest.mark.parametrize("outcome", ["confirmed", "given up", "rolled back"])
    async def test_at_every_write_there_is_the_old_one_or_the_new_one(
        self, autojump_clock: MockClock, outcome: str
    ) -> None:
        world = World()
        async with world.agent() as agent:
            await settled(world, agent)
            snapshots = _Snapshots(world.store)
            world.store = snapshots.store
            agent.in_force._store = snapshots.store
            world.publish(good(2) if outcome != "given up" else cut_off(world))
            await trio.sleep(CONFIRM_S + 5)
            if outcome == "rolled back":
                agent.in_force.roll_back()
            final = (await agent.status()).document_version
        assert final == (2 if outcome == "confirmed" else 1)
        answering_again(world)
        world.controller.fault = "timed out"
        assert len(snapshots.taken) >= 5
        gave_up = False
        for number, store in enumerate(snapshots.taken):
            world.store = copy.deepcopy(store)
            async with world.agent() as agent:
                await trio.sleep(0.5)
                version = (await agent.status()).document_version
                assert version in (1, 2), f"after write {number} neither is in force"
                gave_up |= any(rejection.version == 2 for rejection in store.rejections)
                assert not (gave_up and version == 2), f"after write {number} what was given up is in force again"

    async def test_at_every_write_of_a_change_of_keys_the_next_document_is_believed(
        self, autojump_clock: MockClock
    ) -> None:
        """Twice over: the first by a key of the settings, the second by one that is only known from a document."""
        world = World()
        first = msgspec.structs.replace(good().trust, signing_keys=(SECOND_KEY,))
        second = good().trust
        async with world.agent() as agent:
            await settled(world, agent)
            snapshots = _Snapshots(world.store)
            world.store = snapshots.store
            agent.in_force._store = snapshots.store
            world.publish(good(2, trust=first))
            await trio.sleep(5)
            world.controller.put(SECOND.send(good(3, trust=second)), (1, 3))
            await trio.sleep(5)
            assert (await agent.status()).document_version == 3
        assert len(snapshots.taken) >= 8
        for number, store in enumerate(snapshots.taken):
            world.store = copy.deepcopy(store)
            world.controller = FakeController()
            world.publish(good(2, trust=first))
            async with world.agent() as agent:
                await trio.sleep(1)
                world.controller.put(SECOND.send(good(3, trust=second)), (1, 3))
                await trio.sleep(1)
                world.publish(good(4))
                await trio.sleep(1)
                assert (await agent.status()).document_version == 4, f"after write {number} nobody is believed"


class _Snapshots:
    """A store that is copied after each write: what a power cut would leave."""

    def __init__(self, store: FakeStore) -> None:
        self.taken: list[FakeStore] = []
        taken = self.taken

        class Recording(FakeStore):
            def __setattr__(self, name: str, value: object) -> None:
                super().__setattr__(name, value)
                copied = FakeStore()
                copied.__dict__.update(self.__dict__)
                taken.append(copied)

        self.store = Recording()
        self.store.__dict__.update(store.__dict__)
        self.taken.clear()


async def test_a_rollback_lasts_until_something_newer_comes(autojump_clock: MockClock) -> None:
    world = World()
    async with world.agent() as agent:
        await settled(world, agent)
        with pytest.raises(EdgeError, match="no document before"):
            agent.in_force.roll_back()
        world.publish(good(2, pairs=PAIRS[:2]))
        await trio.sleep(10)
        answer = agent.in_force.roll_back()
        assert (answer.left, answer.in_force, answer.warning) == ((1, 2), (1, 1), "")
        await trio.sleep(5)
        assert (await agent.status()).document_version == 1
        assert "rolled it back" in (await agent.conditions())["DocumentReverted"]
    async with world.agent() as agent:
        await trio.sleep(40)
        assert (await agent.status()).document_version == 1
        world.publish(good(3))
        await trio.sleep(5)
        assert (await agent.status()).document_version == 3
        assert await agent.conditions() == {}


async def test_a_rollback_on_trial_ends_it(autojump_clock: MockClock) -> None:
    world = World()
    async with world.agent() as agent:
        await settled(world, agent)
        world.publish(good(2))
        await trio.sleep(1)
        agent.in_force.roll_back()
        await trio.sleep(5)
        assert (await agent.status()).document_version == 1 and world.store.pending is None


async def test_a_document_that_was_lost_with_its_file_may_come_again(autojump_clock: MockClock) -> None:
    world = World()
    async with world.agent() as agent:
        await settled(world, agent)
        world.publish(good(2))
        await trio.sleep(1)
    world.store.pending = None
    async with world.agent() as agent:
        await trio.sleep(10)
        assert (await agent.status()).document_version == 2


async def test_that_a_restart_verifies_with_the_keys_that_came_in_documents(autojump_clock: MockClock) -> None:
    """The signing key is changed by document: the first names both, the next is signed by the new one alone."""
    world = World()
    new = msgspec.structs.replace(good().trust, signing_keys=(SECOND_KEY,))
    async with world.agent() as agent:
        await settled(world, agent)
        both = msgspec.structs.replace(new, signing_keys=(*good().trust.signing_keys, SECOND_KEY))
        world.publish(good(2, trust=both))
        await trio.sleep(5)
        for version in (3, 4):
            world.controller.put(SECOND.send(good(version, trust=new)), (1, version))
            await trio.sleep(5)
    world.controller.fault = "timed out"
    async with world.agent() as agent:
        await trio.sleep(1)
        assert (await agent.status()).document_version == 4
    world.controller.fault = None
    # The old key counts no more.
    async with world.agent() as agent:
        world.publish(good(5))
        await trio.sleep(5)
        assert (await agent.status()).document_version == 4
        assert "key-1" in (await agent.conditions())["DocumentRejected"]


async def test_that_a_revert_trusts_the_keys_of_the_newest_all_the_same(autojump_clock: MockClock) -> None:
    world = World()
    async with world.agent() as agent:
        await settled(world, agent)
        new = msgspec.structs.replace(good().trust, signing_keys=(SECOND_KEY,))
        world.publish(cut_off(world, trust=new))
        await trio.sleep(CONFIRM_S + 2)
        answering_again(world)
        assert (await agent.status()).document_version == 1
    async with world.agent() as agent:
        world.publish(good(3))
        await trio.sleep(5)
        assert (await agent.status()).document_version == 1, "its key was taken away"
        world.controller.put(SECOND.send(good(4, trust=new)), (1, 4))
        await trio.sleep(5)
        assert (await agent.status()).document_version == 4
    expect(world.story.events("store_failed"), [])
