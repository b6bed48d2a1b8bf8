"""What does a restart find after a disk that was full while documents came and went, and had room again or not?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from cpe_agent.loops.confirm import SAVE_AGAIN_S
from cpe_agent.model.document import Document
from cpe_agent.ports import EdgeError
from tests.fakes.store import FakeStore
from tests.loops.documents import PAIRS, POST
from tests.loops.test_confirm import ASTRAY, CONFIRM_S, answering_again, cut_off, good, settled
from tests.loops.world import Agent, World


class FullStore(FakeStore):
    """Nothing new fits; what is there can be removed, as on a real disk."""

    def __init__(self) -> None:
        super().__init__()
        self.full = False

    def _refuse(self) -> None:
        if self.full:
            raise EdgeError("store", "save", "No space left on device")

    def save_pending(self, pending: Any) -> None:
        if pending is not None:
            self._refuse()
        self.pending = pending

    def save_previous(self, document: Any) -> None:
        if document is not None:
            self._refuse()
        self.previous = document


@pytest.fixture
def store() -> FullStore:
    return FullStore()


@pytest.fixture
def world(store: FullStore) -> World:
    world = World()
    world.store = store
    return world


ONE_HUB = tuple(msgspec.structs.replace(pair, peers=("centre",)) for pair in (PAIRS[0], PAIRS[2]))


def _without_cloud(version: int = 2) -> Document:
    """A good document that takes the cloud away."""
    peers = {"centre": good().peers["centre"]}
    return good(version, peers=peers, pairs=ONE_HUB, allow_mass_removal=True)


def _cut_off_without_cloud(world: World) -> Document:
    return cut_off(world, peers={"centre": ASTRAY.peer}, pairs=ONE_HUB, allow_mass_removal=True)


async def _peers(agent: Agent) -> set[str]:
    return {path.peer for path in (await agent.status()).paths}


def _pending(store: FullStore) -> bool:
    return store.pending is not None


async def _until_full(world: World, store: FullStore, document: Callable[[], Document]) -> None:
    """The document is on the disk, on trial; then the disk is full, and the trial ends."""
    world.publish(document())
    await trio.sleep(1)
    assert _pending(store)
    store.full = True
    await trio.sleep(CONFIRM_S + 5)


async def test_what_was_confirmed_is_not_forgotten(world: World, store: FullStore, autojump_clock: MockClock) -> None:
    async with world.agent() as agent:
        await settled(world, agent)
        await _until_full(world, store, _without_cloud)
        assert (await agent.status()).document_confirmed
        assert "No space left" in (await agent.conditions())["TargetFailed store"]
    # It is on trial once more. (Who cannot offer it again is out of reach.)
    world.controller.fault = "timed out"
    async with world.agent() as agent:
        await trio.sleep(CONFIRM_S / 2)
        assert (await agent.status()).document_version == 2 and await _peers(agent) == {"centre"}


async def test_a_revert_gives_no_access_back(world: World, store: FullStore, autojump_clock: MockClock) -> None:
    async with world.agent() as agent:
        await settled(world, agent)
        await _until_full(world, store, lambda: _cut_off_without_cloud(world))
        assert (await agent.status()).document_version == 1 and await _peers(agent) == {"centre"}
    world.controller.fault = "timed out"
    for _ in range(3):
        async with world.agent() as agent:
            await trio.sleep(CONFIRM_S + 5)
            assert await _peers(agent) == {"centre"}
    answering_again(world)


@pytest.mark.parametrize("reverts", [False, True])
async def test_all_is_written_once_there_is_room(
    reverts: bool, world: World, store: FullStore, autojump_clock: MockClock
) -> None:
    async with world.agent() as agent:
        await settled(world, agent)
        await _until_full(world, store, lambda: _cut_off_without_cloud(world) if reverts else _without_cloud())
        answering_again(world)
        assert _pending(store)
        await trio.sleep(3 * SAVE_AGAIN_S)
        assert len(world.story.events("store_failed")) < 5, "it is said once"
        store.full = False
        await trio.sleep(2 * SAVE_AGAIN_S)
        assert "TargetFailed store" not in await agent.conditions()
        assert not _pending(store)
        if reverts:
            assert [rejection.removed for rejection in store.rejections] == [("cloud",)]
        else:
            assert store.document == POST.send(_without_cloud()) and store.previous == POST.send(good())


async def test_a_confirmation_that_was_cut_short_leaves_no_double(autojump_clock: MockClock) -> None:
    world = World()
    async with world.agent() as agent:
        await settled(world, agent)
    # The power went after the one before was kept, and before the new one was.
    world.store.previous = world.store.document
    async with world.agent() as agent:
        await trio.sleep(10)
        with pytest.raises(EdgeError, match="no document before"):
            agent.in_force.roll_back()
