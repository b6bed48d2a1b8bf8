"""What does the controller ask now? Loads the last good document, then follows the controller over any uplink.

A document that is refused changes nothing: it is reported, and not fetched again until the controller has another one.
Losing the controller changes nothing either. Every address of ours is tried, best uplink first: the router's own way
out follows path health (core.own_way), but without a document, or while no hub answers at all, nobody knows which link
works, and the kernel's own default route may lead into one that is up and dead.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec
import trio

from cpe_agent.core import bootstrap, obey
from cpe_agent.core.obey import Clock
from cpe_agent.core.uplinks import resolve
from cpe_agent.core.wanted_tunnels import selectors
from cpe_agent.log import get_logger
from cpe_agent.loops.cells import Cells
from cpe_agent.model.document import Document, DocumentError
from cpe_agent.ports import ControllerPort, EdgeError, SignedDocument, StorePort

log = get_logger()

T = TypeVar("T")

RETRY_FIRST_S = 0.5
RETRY_MAX_S = 30.0
# A controller may ask for patience, but not for ever.
RETRY_AFTER_MAX_S = 600.0
# A held stream that has lived this long was a good one: the next failure starts from the shortest wait.
SETTLED_S = 30.0


class Follower:
    """Follows the controller; the one writer of the document and controller Cells."""

    def __init__(
        self, cells: Cells, port: ControllerPort, store: StorePort, site: str, bootstrap_keys: Mapping[str, str]
    ) -> None:
        self._cells = cells
        self._port = port
        self._store = store
        self._site = site
        self._bootstrap_keys = bootstrap_keys
        self._etag: str | None = None
        self._highest: tuple[int, int] | None = None
        self._clock_floor = 0.0
        self._in_force = b""
        # The call or stream that is under way, and the uplink that it was begun by ("": the router's own way out).
        self._under_way = trio.CancelScope()
        self._by_uplink: str | None = None

    def load(self) -> None:
        """Put the last good document into force, if there is one and it still verifies."""
        self._highest = self._stored(self._store.load_order)
        self._clock_floor = self._stored(self._store.load_clock_floor) or 0.0
        signed = self._stored(self._store.load_document)
        if signed is None:
            return
        try:
            keys = obey.signing_keys(None, self._bootstrap_keys)
            obey.verify(signed.raw, signed.signature, signed.key_id, keys)
            document = obey.obey(signed.raw, self._site, None, None, self._clock(), stored=True)
        except DocumentError as error:
            log.error("document_rejected", field=error.path, reason=f"stored: {error.reason}")
            return
        self._highest = max(self._highest or document.order, document.order)
        self._in_force = signed.raw
        self._cells.document.set(document)
        log.info("document_loaded", epoch=document.epoch, version=document.version)

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
            wait = min(RETRY_MAX_S, RETRY_FIRST_S * 2 ** min(failures, 10)) * random.uniform(0.5, 1.0)
            await trio.sleep(max(wait, min(asked_to_wait_s, RETRY_AFTER_MAX_S)))

    async def _follow(self, local_address: str) -> None:
        """Fetch, then hold the stream of changes and fetch at each; returns only by `EdgeError`."""
        await self._fetch(local_address)
        async for order in self._port.changes(local_address):
            self._heard()
            if order is not None and order != self._highest:
                await self._fetch(local_address)
            elif order is not None:
                # The controller is back at what is in force here.
                self._report_rejected("")
        raise EdgeError("controller", "changes", "the controller ended the stream")

    async def _fetch(self, local_address: str) -> None:
        answer = await self._port.document(local_address, self._etag)
        if not self._cells.controller.value.last_contact or self._cells.controller.value.error:
            log.info("controller_connected", local_address=local_address)
        self._heard()
        if answer is None:
            return
        signed, self._etag = answer
        self._consider(signed)

    def _consider(self, signed: SignedDocument) -> None:
        current = self._cells.document.value
        try:
            keys = obey.signing_keys(current, self._bootstrap_keys)
            obey.verify(signed.raw, signed.signature, signed.key_id, keys)
            if current is not None and self._in_force == signed.raw:
                self._report_rejected("")
                return
            document = obey.obey(signed.raw, self._site, self._highest, current, self._clock())
            # Bundles that contradict each other show only when they are compiled.
            selectors(document)
        except DocumentError as error:
            self._report_rejected(str(error))
            log.error("document_rejected", field=error.path, reason=error.reason)
            return
        self._accept(signed, document)

    def _accept(self, signed: SignedDocument, document: Document) -> None:
        self._clock_floor = max(self._clock_floor, document.issued_at.timestamp())
        self._highest = document.order
        self._in_force = signed.raw
        try:
            # After a crash in between, the stored document's own order counts as well (see `load`).
            self._store.save_document(signed)
            self._store.save_order(document.order)
            self._store.save_clock_floor(self._clock_floor)
        except EdgeError as error:
            # A full disk is no reason to leave a removed pair open: obey now, and say that a restart would forget it.
            log.error("store_failed", op=error.op, cause=error.cause)
            self._update(store_error=error.cause)
        else:
            self._update(store_error="")
        self._cells.document.set(document)
        self._report_rejected("")
        log.info("document_accepted", epoch=document.epoch, version=document.version)

    def _stored(self, load: Callable[[], T]) -> T | None:
        """What `load` finds; a damaged file is as good as none, and is written anew by the next save."""
        try:
            return load()
        except EdgeError as error:
            log.error("store_failed", op=error.op, cause=error.cause)
            return None

    def _clock(self) -> Clock:
        now = time.time()
        return Clock(max(now, self._clock_floor), trusted=now >= self._clock_floor)

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

    def _report_rejected(self, reason: str) -> None:
        self._update(rejected=reason)

    def _update(self, **changes: object) -> None:
        self._cells.controller.set(msgspec.structs.replace(self._cells.controller.value, **changes))
