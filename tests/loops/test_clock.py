"""What becomes of documents when their time runs out, and when the clock is wrong?"""

from __future__ import annotations

import datetime as dt

import pytest
import trio
from trio.testing import MockClock

from cpe_agent import BUILT_AT
from cpe_agent.loops.cells import Cells
from cpe_agent.loops.clock import FlooredClock
from tests.fakes.store import FakeStore
from tests.loops.documents import branch
from tests.loops.story import expect
from tests.loops.world import World

ISSUED = dt.datetime(2027, 3, 1, tzinfo=dt.UTC)
EXPIRES = ISSUED + dt.timedelta(days=90)
MOMENT = ISSUED + dt.timedelta(days=89, hours=23, minutes=59)
KERNEL = ("rules", "routes", "tunnels")


class Wall:
    """A system clock that runs from `at`, and can be set."""

    def __init__(self, at: dt.datetime) -> None:
        self.set(at)

    def set(self, at: dt.datetime) -> None:
        self._offset_s = at.timestamp() - trio.current_time()

    def __call__(self) -> float:
        return self._offset_s + trio.current_time()


def pairs_in(world: World) -> frozenset[str]:
    assert world.firewall.table is not None
    return next(nft_set.elements for nft_set in world.firewall.table.sets if nft_set.name == "local_pairs4")


async def test_block_closes_all_pairs_until_a_newer_one_comes(autojump_clock: MockClock) -> None:
    world = World()
    world.wall = Wall(MOMENT)
    world.publish(branch(issued_at=ISSUED, expires_at=EXPIRES, on_expiry="block"))
    async with world.agent() as agent:
        await trio.sleep(50)
        assert len(pairs_in(world)) == 3
        await trio.sleep(20)
        assert pairs_in(world) == frozenset() and world.carried() == {}
        assert len(world.story.events("document_expired")) == 1
        assert {path.state for path in (await agent.status()).paths} == {"up"}, "ready for a newer one"
        newer = branch(2, issued_at=EXPIRES, expires_at=EXPIRES + dt.timedelta(days=90), on_expiry="block")
        world.publish(newer)
        await trio.sleep(2)
        assert len(pairs_in(world)) == 3
    # Nor does a restart open what has expired.
    world.wall = Wall(EXPIRES + dt.timedelta(days=91))
    world.controller.fault = "timed out"
    async with world.agent():
        await trio.sleep(10)
        assert pairs_in(world) == frozenset()


async def test_keep_keeps(autojump_clock: MockClock) -> None:
    world = World()
    world.wall = Wall(MOMENT)
    world.publish(branch(issued_at=ISSUED, expires_at=EXPIRES))
    async with world.agent():
        await trio.sleep(30)
        at = trio.current_time()
        await trio.sleep(120)
        expect(world.story.since(at, *KERNEL), [])


@pytest.mark.parametrize("wrong", [dt.datetime(1970, 1, 1, tzinfo=dt.UTC), dt.datetime(2027, 2, 1, tzinfo=dt.UTC)])
async def test_a_clock_that_is_not_trusted_expires_nothing(autojump_clock: MockClock, wrong: dt.datetime) -> None:
    world = World()
    world.wall = Wall(MOMENT)
    world.publish(branch(issued_at=ISSUED, expires_at=EXPIRES, on_expiry="block"))
    async with world.agent():
        await trio.sleep(10)
    world.wall = Wall(wrong)
    assert world.store.clock_floor_s == ISSUED.timestamp()
    async with world.agent() as agent:
        await trio.sleep(30)
        assert len(pairs_in(world)) == 3
        assert "2027-03-01 has passed" in (await agent.conditions())["ClockUntrusted"]
        assert not (await agent.status()).clock_trusted
        # A newer one is taken up all the same.
        newer = branch(2, issued_at=EXPIRES, expires_at=EXPIRES + dt.timedelta(days=90))
        world.publish(newer)
        await trio.sleep(5)
        assert (await agent.status()).document_version == 2
        assert world.store.clock_floor_s == EXPIRES.timestamp()


class TestFloor:
    async def test_it_rises_with_time_within_the_documents_lifetime(self, autojump_clock: MockClock) -> None:
        store, cells, wall = FakeStore(), Cells(), Wall(ISSUED)
        clock = FlooredClock(store, wall)
        clock.load()
        cells.document.set(branch(issued_at=ISSUED, expires_at=EXPIRES))
        with trio.move_on_after(10 * 3600 + 1):
            await clock.run(cells)
        assert store.clock_floor_s == pytest.approx(ISSUED.timestamp() + 10 * 3600)
        wall.set(EXPIRES + dt.timedelta(days=10_000))
        with trio.move_on_after(10 * 3600):
            await clock.run(cells)
        assert store.clock_floor_s < EXPIRES.timestamp(), "nobody has said that it is that late"

    async def test_it_never_falls(self) -> None:
        store = FakeStore()
        clock = FlooredClock(store, lambda: 0.0)
        assert clock.now().now == BUILT_AT and not clock.now().trusted
        clock.lift(BUILT_AT + 100)
        clock.lift(BUILT_AT + 50)
        assert clock.now_s() == BUILT_AT + 100 == store.clock_floor_s
        again = FlooredClock(store, lambda: BUILT_AT + 200)
        again.load()
        assert again.now().trusted and again.now_s() == BUILT_AT + 200
