"""When did each loop that keeps kernel and charon as wanted last get somewhere?

Loops note it themselves; `loops.heartbeat` judges it. A loop that waits its turn for what another one is doing gets on
as that one does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import trio


class Progress:
    """By the name of a loop, on trio's clock; a loop that has not begun is not there."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._together: set[str] = set()

    @property
    def last(self) -> Mapping[str, float]:
        return self._last

    def made(self, loop: str) -> None:
        """`loop` got somewhere."""
        self._last[loop] = trio.current_time()

    @contextmanager
    def together(self, loop: str) -> Iterator[None]:
        """Inside: `loop` does something that only one can do at a time, or waits until it can."""
        self._together.add(loop)
        try:
            yield
        finally:
            self._together.discard(loop)

    def made_together(self) -> None:
        """Whoever did that something got a step further with it."""
        for loop in self._together:
            self.made(loop)
