"""Who wants to be looked at? A bell that is rung with names and answered with all names rung since."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import trio

from cpe_agent.cell import Cell


class Bell:
    """Rings are never lost and never queue up: many rings of one name are one."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._event = trio.Event()

    @property
    def rung(self) -> frozenset[str]:
        """What the next answer has so far."""
        return frozenset(self._names)

    def ring(self, *names: str) -> None:
        self._names.update(names)
        self._event.set()

    async def wait(self, until: float = math.inf) -> set[str]:
        """The names rung since the last answer; empty if `until` (trio's clock) came first."""
        with trio.move_on_at(until):
            await self._event.wait()
        names, self._names = self._names, set()
        self._event = trio.Event()
        return names


async def ring_on_change(bell: Bell, name: str, cells: Iterable[Cell[Any]]) -> None:
    """Ring `bell` with `name` at every change of any of `cells`, for ever."""
    async with trio.open_nursery() as nursery:
        for cell in cells:
            nursery.start_soon(_forward, cell, lambda: bell.ring(name))


async def _forward(cell: Cell[Any], ring: Callable[[], None]) -> None:
    seen = cell.revision
    # It may have been set before this task had its first turn.
    ring()
    while True:
        seen = await cell.wait_changed(seen)
        ring()
