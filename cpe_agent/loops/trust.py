"""Who vouches for the controller and for peers? The authorities of the document in force, at each change of it.

In: the document Cell. Out: `believe` is called with the PEMs (none: those that came with the box are believed). Tunnels
that live are left alone: they meet another authority when they are replaced.
"""

from __future__ import annotations

from collections.abc import Callable

from cpe_agent.log import get_logger
from cpe_agent.loops.cells import Cells
from cpe_agent.ports import EdgeError

log = get_logger()


class Trust:
    """`believe` raises `EdgeError` for what cannot be used; then what was believed before goes on."""

    def __init__(self, cells: Cells, believe: Callable[[tuple[str, ...]], None]) -> None:
        self._cells = cells
        self._believe = believe
        self._cas: tuple[str, ...] = ()

    def load(self) -> None:
        """Before anything connects: those of the document that was loaded."""
        document = self._cells.document.value
        cas = document.trust.cas if document is not None else ()
        if cas == self._cas:
            return
        self._cas = cas
        try:
            self._believe(cas)
        except EdgeError as error:
            # The controller cannot be reached by it either: so the document is given up.
            log.error("authorities_refused", cause=error.cause)

    async def run(self) -> None:
        """For ever."""
        while True:
            seen = self._cells.document.revision
            self.load()
            await self._cells.document.wait_changed(seen)
