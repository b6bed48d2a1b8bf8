"""What does the controller ask now? Follows it over any uplink; loops.confirm judges what it offers.

A document that is refused changes nothing: it is reported, and not fetched again until the controller has another one.
Losing the controller changes nothing either. Every address of ours is tried, best uplink first: the router's own way
out follows path health (core.own_way), but without a document, or while no hub answers at all, nobody knows which link
works, and the kernel's own default route may lead into one that is up and dead.
"""

from __future__ import annotations

import math
import random
import time

import msgspec
import trio

from cpe_agent.core import bootstrap
from cpe_agent.core.backoff import backoff_s
from cpe_agent.core.uplinks import resolve
from cpe_agent.log import get_logger
from cpe_agent.loops.bell import Bell
from cpe_agent.loops.cells import Cells
from cpe_agent.loops.confirm import InForce
from cpe_agent.ports import Change, ControllerPort, EdgeError

log = get_logger()

RETRY_FIRST_S = 1.0
RETRY_MAX_S = 30.0
# A controller may ask for patience, but not for ever.
RETRY_AFTER_MAX_S = 600.0
# A held stream that has lived this long was a good one: the next failure starts from the shortest wait.
SETTLED_S = 30.0
# Heartbeats come every 10 s: a stream with so many lines came through.
GOOD_LINES = 4
# After so many that did not in a row, changes are polled for,
CUTS_MAX = 3
# for so long; then a stream is tried once more.
POLLING_S = 1800.0


class Follower:
    """Follows the controller; the one writer of the controller Cell."""

    def __init__(self, cells: Cells, port: ControllerPort, in_force: InForce) -> None:
        self._cells = cells
        self._port = port
        self._in_force = in_force
        # Rung when the controller wants to hear how this site fares.
        self.asked = Bell()
        self._etag: str | None = None
        self._announced: tuple[int, int] | None = None
        self._cuts = 0
        self._polls_until = -math.inf
        # The call or stream that is under way, and the uplink that it was begun by ("": the router's own way out).
        self._under_way = trio.CancelScope()
        self._by_uplink: str | None = None

    async def run(self) -> None:
        """For ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._leave_dead_uplinks)
            await self._keep_following()

    async def _leave_dead_uplinks(self) -> None:
        """A stream over a link that died silently would only be missed after several heartbeats."""
        seen, before = self._cells.own_uplink.revision, self._cells.own_uplink.value
        while True:
            seen = await self._cells.own_uplink.wait_changed(seen)
            now = self._cells.own_uplink.value
            if now and before and self._by_uplink != now:
                self._under_way.cancel()
            before = now or before

    async def _keep_following(self) -> None:
        failures = 0
        while True:
            asked_to_wait_s = 0.0
            for local_address in self._local_addresses():
                connected_at = trio.current_time()
                self._by_uplink = self._uplink_of(local_address)
                try:
                    with trio.CancelScope() as self._under_way:
                        await self._follow(local_address)
                    # Cancelled: there is a better way.
                    break
                except EdgeError as error:
                    if trio.current_time() - connected_at > SETTLED_S:
                        failures = 0
                    self._failed(error)
                    asked_to_wait_s = getattr(error, "retry_after_s", None) or 0.0
                    if asked_to_wait_s:
                        break
            if self._under_way.cancelled_caught:
                continue
            failures += 1
            wait = backoff_s(failures, RETRY_FIRST_S, RETRY_MAX_S, random.random())
            await trio.sleep(max(wait, min(asked_to_wait_s, RETRY_AFTER_MAX_S)))

    async def reach(self) -> bool:
        """Does the controller answer a connection that is made now, over any address of ours?"""
        for local_address in self.ways():
            try:
                await self._port.document(local_address, self._etag)
            except EdgeError as error:
                # One that answers with an error is reached all the same.
                if not getattr(error, "answered", False):
                    continue
            return True
        return False

    def ways(self) -> list[str]:
        """Our addresses to reach the controller from, best first; the kernel's own choice ("") last."""
        return self._local_addresses()

    async def _follow(self, local_address: str) -> None:
        """Fetch, then hold the stream of changes and fetch at each; returns only by `EdgeError`."""
        document = self._cells.document.value
        if document is not None and document.controllers:
            self._port.use(document.controllers)
        await self._fetch(local_address)
        if trio.current_time() < self._polls_until:
            while trio.current_time() < self._polls_until:
                await self._hear(local_address, await self._port.poll(local_address, self._announced))
            # The controller is asked for a stream again.
            self._cuts = CUTS_MAX - 1
        lines = 0
        try:
            async for change in self._port.changes(local_address):
                lines += 1
                await self._hear(local_address, change)
            raise EdgeError("controller", "changes", "the controller ended the stream")
        except EdgeError as error:
            if error.op == "changes":
                self._stream_ended(lines)
            raise

    async def _hear(self, local_address: str, change: Change) -> None:
        self._heard()
        if change.report:
            self.asked.ring("report")
        order = change.order
        if order is not None:
            self._announced = order
        if self._announced is not None and self._in_force.may_try_again(self._announced):
            self._etag = None
            await self._fetch(local_address)
            return
        if order is None or self._in_force.given_up(order):
            return
        if order != self._in_force.highest:
            await self._fetch(local_address)
        else:
            # The controller is back at what is in force here.
            self._in_force.offered_in_force()

    def _stream_ended(self, lines: int) -> None:
        """A stream whose lines do not come through, again and again, although documents do, is somebody's proxy."""
        self._cuts = 0 if lines >= GOOD_LINES else self._cuts + 1
        if self._cuts >= CUTS_MAX:
            self._polls_until = trio.current_time() + POLLING_S
            log.info("controller_polled", reason=f"its stream of changes was cut {self._cuts} times in a row")

    async def _fetch(self, local_address: str) -> None:
        answer = await self._port.document(local_address, self._etag)
        if not self._cells.controller.value.last_contact or self._cells.controller.value.error:
            log.info("controller_connected", local_address=local_address)
        self._heard()
        if answer is None:
            return
        signed, self._etag = answer
        self._in_force.consider(signed, self._announced)

    def _local_addresses(self) -> list[str]:
        document, links = self._cells.document.value, self._cells.links.value
        if links is None:
            return [""]
        if document is None:
            return ["", *bootstrap.addresses(links)]
        uplinks, _ = resolve(document, links)
        healthy = {path.uplink for path, track in self._cells.verdicts.value.tracks.items() if track.usable()}
        ranked = sorted(uplinks, key=lambda uplink: (uplink.name not in healthy, not uplink.up))
        return [*(a.address for uplink in ranked for _, a in sorted(uplink.addresses.items())), ""]

    def _uplink_of(self, local_address: str) -> str | None:
        """The uplink that has this address; for "" the one that the router's own packets leave by."""
        document, links = self._cells.document.value, self._cells.links.value
        if not local_address:
            return self._cells.own_uplink.value
        found = resolve(document, links)[0] if document and links else ()
        return next((u.name for u in found if local_address in {a.address for a in u.addresses.values()}), None)

    def _heard(self) -> None:
        self._update(last_contact=time.time(), error="")

    def _failed(self, error: EdgeError) -> None:
        if not self._cells.controller.value.error:
            log.warning("controller_lost", op=error.op, cause=error.cause)
        self._update(error=f"{error.op}: {error.cause}")

    def _update(self, **changes: object) -> None:
        self._cells.controller.set(msgspec.structs.replace(self._cells.controller.value, **changes))
