"""What does the controller ask now? Follows it over any uplink; loops.confirm judges what it offers.

A document that is refused changes nothing: it is reported, and not fetched again until the controller has another one.
Losing the controller changes nothing either. Every address of ours is tried, best uplink first, because the kernel's
own default route may lead into a link that is up and dead.
"""

from __future__ import annotations

import random
import time
from contextlib import suppress

import msgspec
import trio

from cpe_agent.core.uplinks import resolve
from cpe_agent.log import get_logger
from cpe_agent.loops.cells import Cells
from cpe_agent.loops.confirm import InForce
from cpe_agent.ports import ControllerPort, EdgeError

log = get_logger()

RETRY_FIRST_S = 0.5
RETRY_MAX_S = 30.0
# A controller may ask for patience, but not for ever.
RETRY_AFTER_MAX_S = 600.0
# A held stream that has lived this long was a good one: the next failure starts from the shortest wait.
SETTLED_S = 30.0


class Follower:
    """Follows the controller; the one writer of the controller Cell."""

    def __init__(self, cells: Cells, port: ControllerPort, in_force: InForce) -> None:
        self._cells = cells
        self._port = port
        self._in_force = in_force
        self._etag: str | None = None
        self._announced: tuple[int, int] | None = None

    async def run(self) -> None:
        """For ever."""
        failures = 0
        while True:
            asked_to_wait_s = 0.0
            for local_address in self._local_addresses():
                connected_at = trio.current_time()
                try:
                    await self._follow(local_address)
                except EdgeError as error:
                    if trio.current_time() - connected_at > SETTLED_S:
                        failures = 0
                    self._failed(error)
                    asked_to_wait_s = getattr(error, "retry_after_s", None) or 0.0
                    if asked_to_wait_s:
                        break
            failures += 1
            wait = min(RETRY_MAX_S, RETRY_FIRST_S * 2 ** min(failures, 10)) * random.uniform(0.5, 1.0)
            await trio.sleep(max(wait, min(asked_to_wait_s, RETRY_AFTER_MAX_S)))

    async def reach(self) -> bool:
        """Does the controller answer a connection that is made now, over any address of ours?"""
        for local_address in self._local_addresses():
            with suppress(EdgeError):
                await self._port.document(local_address, self._etag)
                return True
        return False

    async def _follow(self, local_address: str) -> None:
        """Fetch, then hold the stream of changes and fetch at each; returns only by `EdgeError`."""
        await self._fetch(local_address)
        async for order in self._port.changes(local_address):
            self._heard()
            if order is None or self._in_force.given_up(order):
                continue
            self._announced = order
            if order != self._in_force.highest:
                await self._fetch(local_address)
            else:
                # The controller is back at what is in force here.
                self._in_force.offered_in_force()
        raise EdgeError("controller", "changes", "the controller ended the stream")

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
        if document is None or links is None:
            return [""]
        uplinks, _ = resolve(document, links)
        healthy = {path.uplink for path, track in self._cells.verdicts.value.tracks.items() if track.usable()}
        ranked = sorted(uplinks, key=lambda uplink: (uplink.name not in healthy, not uplink.up))
        return [*(a.address for uplink in ranked for _, a in sorted(uplink.addresses.items())), ""]

    def _heard(self) -> None:
        self._update(last_contact=time.time(), error="")

    def _failed(self, error: EdgeError) -> None:
        if not self._cells.controller.value.error:
            log.warning("controller_lost", op=error.op, cause=error.cause)
        self._update(error=f"{error.op}: {error.cause}")

    def _update(self, **changes: object) -> None:
        self._cells.controller.set(msgspec.structs.replace(self._cells.controller.value, **changes))
