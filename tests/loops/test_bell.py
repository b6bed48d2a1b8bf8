"""Is every ring of a Bell answered, and only once?"""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cpe_agent.cell import Cell
from cpe_agent.loops.bell import Bell, ring_on_change


async def test_that_rings_before_the_wait_are_answered_together(autojump_clock: MockClock) -> None:
    bell = Bell()
    bell.ring("rules")
    bell.ring("routes", "rules")
    with trio.fail_after(1):
        assert await bell.wait() == {"rules", "routes"}
    assert await bell.wait(trio.current_time() + 1) == set()


async def test_that_what_was_rung_can_be_looked_at_before_the_answer(autojump_clock: MockClock) -> None:
    bell = Bell()
    bell.ring("a")
    bell.ring("b", "a")
    assert bell.rung == {"a", "b"} == await bell.wait()
    assert bell.rung == frozenset()


async def test_that_a_wait_ends_at_its_time(autojump_clock: MockClock) -> None:
    bell = Bell()
    start = trio.current_time()
    assert await bell.wait(start + 7) == set()
    assert trio.current_time() == start + 7


async def test_that_a_ring_during_the_wait_ends_it(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    bell = Bell()

    async def ring_later() -> None:
        await trio.sleep(3)
        bell.ring("plan")

    nursery.start_soon(ring_later)
    assert await bell.wait(trio.current_time() + 10) == {"plan"}
    assert trio.current_time() == 3


async def test_that_a_bell_rings_at_each_change_of_any_cell(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    bell, first, second = Bell(), Cell(0), Cell("a")
    nursery.start_soon(ring_on_change, bell, "changed", (first, second))
    await wait_all_tasks_blocked()
    # Whether a watch begins with a ring does not matter.
    await bell.wait(trio.current_time() + 1)
    first.set(1)
    with trio.fail_after(1):
        assert await bell.wait() == {"changed"}
    second.set("b")
    with trio.fail_after(1):
        assert await bell.wait() == {"changed"}
    first.set(2)
    with trio.fail_after(1):
        assert await bell.wait() == {"changed"}
    first.set(2)
    assert await bell.wait(trio.current_time() + 1) == set()


async def test_that_a_change_while_the_watch_begins_is_not_missed(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """At start all loops begin at once: a Cell may be set before those who watch it had their first turn."""
    bell, cell = Bell(), Cell(0)
    nursery.start_soon(ring_on_change, bell, "changed", (cell,))
    cell.set(1)
    with trio.fail_after(1):
        assert await bell.wait() == {"changed"}
