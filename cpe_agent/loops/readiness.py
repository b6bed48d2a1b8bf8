"""Is this hub willing to serve now? Asks its LANs once a second, and obeys `drain` and `undrain`.

Echoes go out by the prober, which is this loop's own, from the LAN side. The Cell stays None until document and links
are there to judge by; what the kernel holds then says whether this hub was serving before the agent started.
"""

from __future__ import annotations

import trio

from cpe_agent.core import readiness
from cpe_agent.core.readiness import Check, Standing, Watch
from cpe_agent.core.wanted_ruleset import answers
from cpe_agent.log import get_logger
from cpe_agent.loops.bell import Bell, ring_on_change
from cpe_agent.loops.cells import Cells, Readiness
from cpe_agent.model.condition import Condition, DrainAnswer
from cpe_agent.model.document import Document
from cpe_agent.ports import EdgeError, FirewallPort, ProbePort, StorePort

log = get_logger()


class ReadinessKeeper:
    """The one writer of the readiness Cell, and of the drained state in the store."""

    def __init__(self, cells: Cells, port: ProbePort, firewall: FirewallPort, store: StorePort) -> None:
        self._cells = cells
        self._port = port
        self._firewall = firewall
        self._store = store
        self._drained = False
        self._watches: dict[str, Watch] = {}
        self._checks: tuple[Check, ...] = ()
        self._checked_for: tuple[object, object] = (None, None)
        self._sequence = 0
        self._answered: set[tuple[str, str]] = set()
        self._asked_at = 0.0

    def load(self) -> None:
        """Take up the drained state. One that cannot be read counts as drained: once somebody drained this hub."""
        try:
            self._drained = self._store.load_drained()
        except EdgeError as error:
            log.error("store_failed", op=error.op, cause=error.cause)
            self._drained = True

    async def run(self) -> None:
        """For ever."""
        bell = Bell()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ring_on_change, bell, "facts", (self._cells.document, self._cells.links))
            nursery.start_soon(self._receive)
            bell.ring("facts")
            while self._cells.document.value is None or self._cells.links.value is None:
                await bell.wait(trio.current_time() + readiness.ROUND_S)
            await self._take_up(self._cells.document.value)
            self._follow()
            self._ask()
            while True:
                if await bell.wait(self._asked_at + readiness.ROUND_S):
                    self._follow()
                else:
                    self._end_round()
                    self._ask()

    def set_drained(self, drained: bool) -> DrainAnswer:
        """Drained: not willing to serve, from now on and after restarts. Raises `EdgeError` on a branch."""
        document = self._cells.document.value
        if document is not None and document.role != "hub":
            raise EdgeError("control", "drain", f"{document.site} is a branch: only hubs are drained")
        changed = drained is not self._drained
        self._drained = drained
        warning = ""
        try:
            self._store.save_drained(drained)
        except EdgeError as error:
            log.error("store_failed", op=error.op, cause=error.cause)
            warning = f"a restart of the agent would forget it: {error.cause}"
        if changed:
            log.info("hub_drained", state="drained" if drained else "undrained")
        self._publish()
        serving = self._cells.readiness.value is not None and self._cells.readiness.value.ready
        in_the_way = tuple(c.reason for c in self._conditions() if c.subject != "hub")
        return DrainAnswer(drained, changed, serving, in_the_way, warning)

    async def _take_up(self, document: Document) -> None:
        """An agent that restarts on a hub that serves takes nothing away before it knows better."""
        serving = False
        try:
            table = await self._firewall.read()
        except EdgeError as error:
            log.warning("target_failed", target="nftables", op=error.op, cause=error.cause)
        else:
            serving = table is not None and any(answers(table, e.ready_address) for e in document.endpoints)
        wanted = self._wanted_checks(document)
        self._watches = readiness.follow({}, wanted, serving)

    def _wanted_checks(self, document: Document) -> tuple[Check, ...]:
        links = self._cells.links.value
        if document.role != "hub" or links is None:
            self._checks = ()
        elif document is not self._checked_for[0] or links is not self._checked_for[1]:
            # Parsing the pairs of ten thousand branches is for once.
            self._checks = readiness.checks(document, links)
            self._checked_for = (document, links)
        return self._checks

    def _follow(self) -> None:
        """Document or links have changed."""
        document = self._cells.document.value
        if document is not None:
            serving = all(watch.standing is Standing.SERVING for watch in self._watches.values())
            was_serving = self._cells.readiness.value is not None and serving
            self._watches = readiness.follow(self._watches, self._wanted_checks(document), was_serving)
            self._publish()

    def _ask(self) -> None:
        self._asked_at = trio.current_time()
        self._sequence += 1
        self._answered.clear()
        for source, target in {(c.source, c.target) for c in self._checks if c.target and not c.fault}:
            self._port.send(source, target, self._sequence)

    async def _receive(self) -> None:
        while True:
            for reply in await self._port.replies():
                if reply.sequence == self._sequence:
                    self._answered.add((reply.source, reply.target))

    def _end_round(self) -> None:
        for check in self._checks:
            answered = not check.target or (check.source, check.target) in self._answered
            before = self._watches[check.lan]
            self._watches[check.lan] = readiness.round_ended(before, check, answered)
        self._publish()

    def _conditions(self) -> tuple[Condition, ...]:
        document = self._cells.document.value
        return () if document is None else readiness.conditions(document, self._drained, self._watches)

    def _publish(self) -> None:
        document = self._cells.document.value
        if document is None or self._cells.links.value is None:
            return
        ready = readiness.ready(document, self._drained, self._watches)
        before = self._cells.readiness.value
        if document.role == "hub" and (before is None or before.ready is not ready):
            log.info("readiness_changed", state="ready" if ready else "not ready")
        self._cells.readiness.set(Readiness(ready, self._conditions()))
