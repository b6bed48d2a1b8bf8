"""Is no change missed, and does nobody wake for nothing?"""

from __future__ import annotations

import trio
import trio.testing

from cpe_agent.cell import Cell


def test_an_equal_value_is_no_change() -> None:
    cell = Cell([1, 2])
    assert not cell.set([1, 2]) and cell.revision == 0
    assert cell.set([3]) and cell.revision == 1 and cell.value == [3]


async def test_a_change_before_the_wait_is_not_missed() -> None:
    cell = Cell(0)
    seen = cell.revision
    cell.set(1)
    with trio.fail_after(0):
        assert await cell.wait_changed(seen) == 1


async def test_every_waiter_wakes_and_several_changes_are_one(autojump_clock: trio.testing.MockClock) -> None:
    cell = Cell(0)
    woken: list[tuple[int, int]] = []

    async def watch() -> None:
        seen = cell.revision
        while cell.value < 3:
            seen = await cell.wait_changed(seen)
            woken.append((seen, cell.value))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            nursery.start_soon(watch)
            await trio.testing.wait_all_tasks_blocked()
            cell.set(0)
            await trio.testing.wait_all_tasks_blocked()
            assert woken == []
            cell.set(1)
            cell.set(2)
            await trio.testing.wait_all_tasks_blocked()
            assert woken == [(2, 2), (2, 2)]
            cell.set(3)
    assert woken[2:] == [(3, 3), (3, 3)]
