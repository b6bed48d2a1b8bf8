"""How large a packet does each path carry? Runs core.pathmtu's search over the paths that are up, one after another."""

from __future__ import annotations

import math

import trio

from cpe_agent.core import pathmtu
from cpe_agent.core.pathmtu import Search, Target
from cpe_agent.log import get_logger
from cpe_agent.loops.bell import Bell, ring_on_change
from cpe_agent.loops.cells import Cells
from cpe_agent.model.dataplane import PROBE_CHILD
from cpe_agent.model.observed import Charon
from cpe_agent.ports import ProbePort

log = get_logger()

# Paths change under us without a sign (a carrier's tunnel, another modem); a search costs a few kilobytes.
AGAIN_S = 900.0
# After a search in which nothing came back.
RETRY_S = 30.0
PATIENCE_S = 1.0
AT_ONCE = 8


class PathMtus:
    """Measures; the one writer of the path_mtus Cell."""

    def __init__(self, cells: Cells, port: ProbePort) -> None:
        self._cells = cells
        self._port = port
        self._sequence = 0
        self._waiting: dict[tuple[str, str, int], trio.Event] = {}
        # Which probe child each target was last measured in, and when it is due again.
        self._due: dict[Target, tuple[int, float]] = {}

    async def run(self) -> None:
        """For ever."""
        bell = Bell()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive)
            nursery.start_soon(ring_on_change, bell, "paths", (self._cells.plan, self._cells.charon))
            while True:
                await bell.wait(min((due for _, due in self._due.values()), default=math.inf))
                await self._measure_what_is_due()

    async def _measure_what_is_due(self) -> None:
        plan, charon = self._cells.plan.value, self._cells.charon.value
        if plan is None or charon is None:
            return
        wanted = pathmtu.targets(plan.document)
        children = probe_children(charon)
        now = trio.current_time()
        due: dict[Target, int] = {}
        for target in wanted:
            child = children.get((target.source, target.address))
            known_child, due_at = self._due.get(target, (0, now))
            if child is not None and (child != known_child or due_at <= now):
                due[target] = child
        self._due = {target: known for target, known in self._due.items() if target in wanted and target not in due}
        measured = {t: size for t, size in self._cells.path_mtus.value.items() if t in wanted}
        self._cells.path_mtus.set(measured)
        limit = trio.CapacityLimiter(AT_ONCE)
        async with trio.open_nursery() as nursery:
            for target, child in due.items():
                nursery.start_soon(self._measure, target, child, limit)

    async def _measure(self, target: Target, child: int, limit: trio.CapacityLimiter) -> None:
        async with limit:
            search = Search()
            while (size := pathmtu.next_size(search)) is not None:
                came = await self._try(target, size)
                search = pathmtu.answered(search) if came else pathmtu.missed(search, refused=came is None)
        size = pathmtu.result(search)
        self._due[target] = (child, trio.current_time() + (RETRY_S if size is None else AGAIN_S))
        if size is not None and self._cells.path_mtus.value.get(target) != size:
            log.info("path_measured", peer=target.peer, local_address=target.source, address=target.address, mtu=size)
            self._cells.path_mtus.set({**self._cells.path_mtus.value, target: size})

    async def _try(self, target: Target, size: int) -> bool | None:
        """Did a packet of `size` come back? None: our own kernel would not send it."""
        self._sequence += 1
        key = (target.source, target.address, self._sequence)
        self._waiting[key] = trio.Event()
        try:
            if not self._port.send(target.source, target.address, self._sequence, size):
                return None
            with trio.move_on_after(PATIENCE_S):
                await self._waiting[key].wait()
                return True
            return False
        finally:
            del self._waiting[key]

    async def _receive(self) -> None:
        while True:
            for reply in await self._port.replies():
                event = self._waiting.get((reply.source, reply.target, reply.sequence))
                if event is not None:
                    event.set()


def probe_children(charon: Charon) -> dict[tuple[str, str], int]:
    """(our address, the peer's) -> unique id of the newest probe child that joins the two."""
    found: dict[tuple[str, str], int] = {}
    for sa in charon.ike_sas:
        for child in sa.children:
            if child.name == PROBE_CHILD and child.installed:
                for ours in child.local_ts:
                    for theirs in child.remote_ts:
                        key = (ours.partition("/")[0], theirs.partition("/")[0])
                        found[key] = max(child.unique_id, found.get(key, 0))
    return found
