"""A value that one task writes and any task can wait on.

`revision` grows with every change; `wait_changed(seen)` returns at once if the value has changed since `seen`, so no
change is ever missed and several changes in a row are seen as one.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class Cell(Generic[T]):
    """A watched value. Setting an equal value changes nothing and wakes nobody."""

    def __init__(self, value: T) -> None:
        self._value = value
        self._revision = 0
        self._changed = trio.Event()

    @property
    def value(self) -> T:
        return self._value

    @property
    def revision(self) -> int:
        return self._revision

    def set(self, value: T) -> bool:
        """Returns whether that was a change."""
        if value == self._value:
            return False
        self._value = value
        self._revision += 1
        self._changed.set()
        self._changed = trio.Event()
        return True

    async def wait_changed(self, seen: int) -> int:
        """Wait until the revision is not `seen`; returns the new revision."""
        while self._revision == seen:
            await self._changed.wait()
        return self._revision
