"""What time is it, at least?

A router without a battery wakes up with the wrong time, and whoever can fake a time server can give it any. So wall
time is never taken below a floor: when this agent was built, and every moment that has certainly passed since (a
verified document was issued, the controller gave us a certificate). A clock below the floor is not trusted, and
expires nothing. A clock that runs ahead cannot be told from a right one, but it raises no floor: only a time within
the lifetime of the document in force does, so that the floor is never beyond what the controller has said.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import trio

from cpe_agent import BUILT_AT
from cpe_agent.core.obey import Clock
from cpe_agent.log import get_logger
from cpe_agent.loops.cells import Cells
from cpe_agent.ports import EdgeError, StorePort

log = get_logger()

# How often the floor is raised while all goes well: flash is not written for nothing.
SAVE_S = 3600.0
LOOK_S = 10.0


class FlooredClock:
    """The one writer of the clock floor in the store. `wall`: the system's clock."""

    def __init__(self, store: StorePort, wall: Callable[[], float] = time.time) -> None:
        self._store = store
        self._wall = wall
        self._floor = BUILT_AT
        self._saved = BUILT_AT

    def load(self) -> None:
        """Take up the floor that was saved; without it, the agent's age has to do."""
        try:
            self._floor = self._saved = max(BUILT_AT, self._store.load_clock_floor())
        except EdgeError as error:
            log.error("store_failed", op=error.op, cause=error.cause)

    def now(self) -> Clock:
        """Wall time, never below the floor, and whether the system's clock may be believed."""
        now = self._wall()
        return Clock(max(now, self._floor), trusted=now >= self._floor)

    def now_s(self) -> float:
        return self.now().now

    def lift(self, wall_s: float) -> None:
        """This moment has certainly passed. Raises `EdgeError` if that cannot be saved; it holds all the same."""
        self._floor = max(wall_s, self._floor)
        if self._floor > self._saved:
            self._store.save_clock_floor(self._floor)
            self._saved = self._floor

    async def run(self, cells: Cells) -> None:
        """For ever: say whether the clock may be believed, and raise the floor with time, as long as that is a time in
        which the document in force is valid."""
        saved_at = trio.current_time()
        while True:
            cells.clock_floor.set(None if self.now().trusted else self._floor)
            await trio.sleep(LOOK_S)
            document, now = cells.document.value, self._wall()
            if trio.current_time() < saved_at + SAVE_S or document is None:
                continue
            if document.issued_at.timestamp() <= now < document.expires_at.timestamp():
                saved_at = trio.current_time()
                try:
                    self.lift(now)
                except EdgeError as error:
                    log.error("store_failed", op=error.op, cause=error.cause)
