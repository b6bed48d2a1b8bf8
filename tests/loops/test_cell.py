"""Does a Cell wake whoever waits, once per change and never for nothing?"""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cpe_agent.cell import Cell


async def test_that_a_change_before_the_wait_is_not_missed(autojump_clock: MockClock) -> None:
    cell = Cell(1)
    seen = cell.revision
    assert cell.set(2)
    with trio.fail_after(1):
        assert await cell.wait_changed(seen) == seen + 1


async def test_that_an_equal_value_is_no_change(autojump_clock: MockClock) -> None:
    cell = Cell("a")
    assert not cell.set("a")
    assert cell.revision == 0
    with pytest.raises(trio.TooSlowError), trio.fail_after(1):
        await cell.wait_changed(0)


async def test_that_several_changes_are_seen_as_the_last(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    cell = Cell(0)
    values: list[int] = []

    async def watch() -> None:
        seen = cell.revision
        while True:
            seen = await cell.wait_changed(seen)
            values.append(cell.value)

    nursery.start_soon(watch)
    await wait_all_tasks_blocked()
    for value in (1, 2, 3):
        cell.set(value)
    await wait_all_tasks_blocked()
    cell.set(4)
    await wait_all_tasks_blocked()
    assert values == [3, 4]


async def test_that_all_who_wait_are_woken(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    cell = Cell(0)
    woken: list[int] = []

    async def wait(number: int) -> None:
        await cell.wait_changed(0)
        woken.append(number)

    for number in range(3):
        nursery.start_soon(wait, number)
    await wait_all_tasks_blocked()
    cell.set(1)
    await wait_all_tasks_blocked()
    assert sorted(woken) == [0, 1, 2]
