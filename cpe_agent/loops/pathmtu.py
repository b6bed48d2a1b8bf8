"""How large a packet does each path carry? Runs core.pathmtu's search over every path that is up, a few at a time.

| a path               | is measured                                                                                 |
|----------------------|---------------------------------------------------------------------------------------------|
| has just come up     | at once                                                                                     |
| carries traffic      | when its probe child is another than last time, and every `AGAIN_S`                         |
| stands by            | when it is between other addresses, and every `STANDBY_AGAIN_S`: on a metered uplink the    |
|                      | searches would cost more than its probes                                                    |

One that does not answer holds up no other. What was measured stays until it is measured anew. While our own kernel
sends not even the smallest (a path may be up before its address, its route or its rules are there) nothing is judged:
it would be taken for a path that carries little or nothing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import trio

from cpe_agent.core import pathmtu
from cpe_agent.core.pathmtu import LADDER, Search, Target
from cpe_agent.log import get_logger
from cpe_agent.loops.bell import Bell, ring_on_change
from cpe_agent.loops.cells import Cells
from cpe_agent.model.dataplane import PROBE_CHILD
from cpe_agent.model.observed import Charon
from cpe_agent.ports import ProbePort

log = get_logger()

# Paths change under us without a sign (a carrier's tunnel, another modem); a search costs a few kilobytes.
AGAIN_S = 900.0
STANDBY_AGAIN_S = 86400.0
# After a search in which nothing came back.
RETRY_S = 30.0
# After our own kernel would not send.
UNSENT_S = 1.0
# After each try; an answer to an earlier one of the same size still counts, so that half a second and three tries make
# one and a half for a slow modem, and a size that is silently dropped costs no more than that.
PATIENCE_S = 0.5
# Answers that come together make one pass over the routes.
GATHER_S = 0.1
# Of a hub with thousands: their echoes of 1,400 bytes are not to be a burst.
AT_ONCE = 16


class Found(NamedTuple):
    """A path's probe child. `way`: the connection, and the address at the other end; `carries`: bundles travel here."""

    child: int
    way: tuple[str, str]
    carries: bool


class Known(NamedTuple):
    """What a target was last measured in, and when that ended (None: it goes on). `failed`: nothing came back.
    `unsent`: our own kernel would not send."""

    found: Found
    measured_at: float | None = None
    failed: bool = False
    unsent: bool = False

    def due_at(self, now: Found) -> float:
        """When to measure again, seeing what is there now."""
        if self.found.child != now.child if now.carries else self.found.way != now.way:
            return -math.inf
        if self.measured_at is None:
            return math.inf
        if self.unsent:
            return self.measured_at + UNSENT_S
        if now.carries:
            return self.measured_at + (RETRY_S if self.failed else AGAIN_S)
        return self.measured_at + (AGAIN_S if self.failed else STANDBY_AGAIN_S)


class PathMtus:
    """Measures; the one writer of the path_mtus Cell."""

    def __init__(self, cells: Cells, port: ProbePort) -> None:
        self._cells = cells
        self._port = port
        self._bell = Bell()
        self._limit = trio.CapacityLimiter(AT_ONCE)
        self._sequence = 0
        # Who waits for an answer, by (source, address, sequence).
        self._waiting: dict[tuple[str, str, int], trio.Event] = {}
        self._known: dict[Target, Known] = {}
        self._wake_at = math.inf
        self._sizes: dict[Target, int] = {}

    async def run(self) -> None:
        """For ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive)
            nursery.start_soon(ring_on_change, self._bell, "paths", (self._cells.plan, self._cells.charon))
            while True:
                self._start_what_is_due(nursery)
                await self._bell.wait(self._wake_at)
                await trio.sleep(GATHER_S)

    def _start_what_is_due(self, nursery: trio.Nursery) -> None:
        plan, charon = self._cells.plan.value, self._cells.charon.value
        if plan is None or charon is None:
            return
        wanted = frozenset(pathmtu.targets(plan.document))
        children = probe_children(charon)
        now = trio.current_time()
        self._known = {target: known for target, known in self._known.items() if target in wanted}
        self._wake_at = math.inf
        for target in wanted:
            found = children.get((target.source, target.address))
            known = self._known.get(target)
            if found is None:
                # It has to come up again.
                self._known.pop(target, None)
            elif known is None or known.due_at(found) <= now:
                self._known[target] = Known(found)
                nursery.start_soon(self._measure, target, found)
            else:
                self._wake_at = min(self._wake_at, known.due_at(found))
        self._sizes = {target: size for target, size in self._sizes.items() if target in wanted}
        self._cells.path_mtus.set(dict(self._sizes))

    async def _measure(self, target: Target, within: Found) -> None:
        async with self._limit:
            search, unsent = Search(), False
            while (size := pathmtu.next_size(search)) is not None and self._is_current(target, within):
                search = await self._try(target, size, search)
                # A size that our own kernel refuses is judged by whether it takes the smallest.
                if unsent := search.refused and not self._send(target, LADDER[-1]):
                    break
        if not self._is_current(target, within):
            return
        if unsent:
            self._known[target] = Known(within, trio.current_time(), unsent=True)
            self._bell.ring("unsent")
            return
        found = pathmtu.result(search)
        self._known[target] = Known(within, trio.current_time(), found is None)
        if found is not None and self._sizes.get(target) != found:
            log.info("path_measured", peer=target.peer, local_address=target.source, address=target.address, mtu=found)
            self._sizes[target] = found
        self._bell.ring("measured")

    def _is_current(self, target: Target, within: Found) -> bool:
        """Another child of the path has a search of its own, and a path that has gone needs none."""
        known = self._known.get(target)
        return known is not None and known.found is within

    async def _try(self, target: Target, size: int, search: Search) -> Search:
        """The search after this size was tried, as often as it takes."""
        came = trio.Event()
        asked: list[tuple[str, str, int]] = []
        try:
            while pathmtu.next_size(search) == size:
                asked.append((target.source, target.address, self._sequence + 1))
                self._waiting[asked[-1]] = came
                if not self._send(target, size):
                    return pathmtu.missed(search, refused=True)
                with trio.move_on_after(PATIENCE_S):
                    await came.wait()
                search = pathmtu.answered(search) if came.is_set() else pathmtu.missed(search)
            return search
        finally:
            for key in asked:
                del self._waiting[key]

    def _send(self, target: Target, size: int) -> bool:
        self._sequence += 1
        return self._port.send(target.source, target.address, self._sequence, size)

    async def _receive(self) -> None:
        while True:
            for reply in await self._port.replies():
                event = self._waiting.get((reply.source, reply.target, reply.sequence))
                if event is not None:
                    event.set()


def probe_children(charon: Charon) -> dict[tuple[str, str], Found]:
    """(our address, the peer's) -> the newest probe child that joins the two."""
    found: dict[tuple[str, str], Found] = {}
    for sa in charon.ike_sas:
        carries = any(child.name != PROBE_CHILD and child.installed for child in sa.children)
        for child in sa.children:
            if child.name == PROBE_CHILD and child.installed:
                for ours in child.local_ts:
                    for theirs in child.remote_ts:
                        key = (ours.partition("/")[0], theirs.partition("/")[0])
                        this = Found(child.unique_id, (sa.connection, sa.remote_host), carries)
                        found[key] = max(this, found.get(key, this))
    return found
