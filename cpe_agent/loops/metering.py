"""How many bytes has each uplink carried, and what is left of its budget? Reads the kernel's counters every so often,
steps core.metering and core.overhead, keeps what was counted on the disk; the one writer of the usages, budgets and
overhead Cells.

**What a power cut loses.** What was counted is saved when `SAVE_BYTES` have been added on all uplinks together or an
hour has passed with any, but not more often than every `SAVE_APART_S`, for the sake of the flash. So a power cut
forgives at most 10 MB, or what 30 s bring if that is more, and a standby uplink costs one small write an hour. An agent
that ends or crashes loses nothing: the kernel's counters go on, and the next agent adds the difference.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Protocol

import trio

from cpe_agent.core import metering, overhead
from cpe_agent.core.budget import Budget
from cpe_agent.log import get_logger
from cpe_agent.loops.bell import Bell, ring_on_change
from cpe_agent.loops.cells import Cells
from cpe_agent.model.document import Document
from cpe_agent.model.observed import LinkCounters, Links
from cpe_agent.model.usage import Usage
from cpe_agent.ports import EdgeError, RoutePort, StorePort

log = get_logger()

# A modem that is pulled out takes what it has counted since the last look with it.
LOOK_S = 10.0
SAVE_BYTES = 10_000_000
SAVE_S = 3600.0
SAVE_APART_S = 30.0


class WallClock(Protocol):
    def __call__(self) -> float:
        """Seconds since 1970."""


class Metering:
    """Counts, and remembers what was counted."""

    def __init__(self, cells: Cells, port: RoutePort, store: StorePort, wall_clock: WallClock = time.time) -> None:
        self._cells = cells
        self._port = port
        self._store = store
        self._wall_clock = wall_clock
        self._usages: dict[str, Usage] = {}
        self._probes = overhead.Overhead()
        # As the disk has them, and when that was written.
        self._saved: dict[str, Usage] = {}
        self._saved_at = -math.inf
        self._refused = ""

    def load(self) -> None:
        """Take up what was counted. A damaged file is as good as none: then this month begins with what comes now."""
        try:
            self._usages = self._saved = self._store.load_usages()
        except EdgeError as error:
            log.error("store_failed", op=error.op, cause=error.cause)
        # Before the first look: traffic must not start on an uplink that was spent before the restart.
        self._publish(self._cells.document.value)

    async def run(self) -> None:
        """For ever; what was counted is saved at the end."""
        bell = Bell()
        # An uplink that is new is saved at the first look: from then on no crash can lose it.
        self._saved_at = trio.current_time() - SAVE_APART_S
        async with trio.open_nursery() as nursery:
            # An interface that comes or goes begins or ends a count.
            nursery.start_soon(ring_on_change, bell, "facts", (self._cells.document, self._cells.links))
            try:
                while True:
                    await bell.wait(trio.current_time() + LOOK_S)
                    await self._look()
            finally:
                if self._usages != self._saved:
                    self._save(trio.current_time())

    async def _look(self) -> None:
        document, links = self._cells.document.value, self._cells.links.value
        if document is None or links is None:
            return
        charon = self._cells.charon.value
        if charon is not None:
            self._probes = overhead.step(self._probes, overhead.of_probes(charon, document.uplinks))
            self._cells.overhead.set(self._probes.by_uplink)
        try:
            counters = await self._port.counters()
        except EdgeError as error:
            # The counters go on without us.
            log.warning("task_retried", target=error.target, op=error.op, cause=error.cause)
            return
        self._count(document, links, counters)
        self._publish(document)
        now = trio.current_time()
        if self._is_due(now):
            self._save(now)

    def _count(self, document: Document, links: Links, counters: LinkCounters) -> None:
        before = self._usages
        # The document may be three months old: what has passed since then is known better elsewhere.
        now_s = self._wall_clock() if self._cells.clock_floor.value is None else 0.0
        self._usages = metering.counted(before, document, links, counters, now_s)
        for name, usage in self._usages.items():
            if name in before and usage.month != before[name].month:
                log.info("budget_month_began", uplink=name, month=usage.month)

    def _publish(self, document: Document | None) -> None:
        self._cells.usages.set(self._usages)
        if document is None:
            return
        before = self._cells.budgets.value
        levels = metering.budgets(self._usages, document)
        for name, level in levels.items():
            if level is not before.get(name, Budget.FREE):
                log.info("budget_changed", uplink=name, state=level.value)
        self._cells.budgets.set(levels)

    def _is_due(self, now: float) -> bool:
        if self._usages == self._saved or now < self._saved_at + SAVE_APART_S:
            return False
        # A month that began or an uplink that is new is worth a write of its own.
        if _months(self._usages) != _months(self._saved):
            return True
        added = _total(self._usages) - _total(self._saved)
        return added >= SAVE_BYTES or now >= self._saved_at + SAVE_S

    def _save(self, now: float) -> None:
        self._saved_at = now
        try:
            self._store.save_usages(self._usages)
        except EdgeError as error:
            # Counting goes on; what a restart would forget is reported with the other store errors.
            if self._refused != error.cause:
                log.error("store_failed", op=error.op, cause=error.cause)
            self._refused = error.cause
        else:
            self._saved = self._usages
            self._refused = ""


def _months(usages: Mapping[str, Usage]) -> dict[str, str]:
    return {name: usage.month for name, usage in usages.items()}


def _total(usages: Mapping[str, Usage]) -> int:
    return sum(usage.total_bytes for usage in usages.values())
