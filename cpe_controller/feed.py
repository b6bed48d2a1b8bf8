"""Which document is in force for each site now, and who is to be told when that changes?

One task watches the store; the held streams wait here, in memory, so that 2,000 of them cost the store one watch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from cpe_controller.publish import DOCUMENTS, Published
from cpe_controller.store import Entry, Store

# An agent holds one. The others are what it left behind when its uplink died; the oldest gives way.
MAX_STREAMS = 4

Order = tuple[int, int]


class Stream:
    """One held stream of a site; `ended` once a newer one has taken its place."""

    def __init__(self) -> None:
        self.ended = False


class Feed:
    """(epoch, version) per site, as the store has it."""

    def __init__(self, store: Store) -> None:
        self.closing = False
        self._store = store
        self._orders: dict[str, Order] = {}
        self._changed: dict[str, asyncio.Event] = {}
        self._streams: dict[str, list[Stream]] = {}
        listing = store.list(DOCUMENTS)
        self._revision = listing.revision
        for entry in listing.entries:
            self._note(entry)

    async def run(self) -> None:
        """Follow the store until cancelled. Raises StoreError if it can no longer be read."""
        async for entries in self._store.watch(DOCUMENTS, self._revision):
            for entry in entries:
                self._note(entry)

    def order(self, site: str) -> Order | None:
        """None: there is no document for this site."""
        return self._orders.get(site)

    async def wait_woken(self, site: str) -> None:
        """Until something happened that the site's streams should look at."""
        await self._changed.setdefault(site, asyncio.Event()).wait()

    @contextmanager
    def stream(self, site: str) -> Iterator[Stream]:
        held = self._streams.setdefault(site, [])
        stream = Stream()
        held.append(stream)
        if len(held) > MAX_STREAMS:
            held.pop(0).ended = True
            self._wake(site)
        try:
            yield stream
        finally:
            if stream in held:
                held.remove(stream)

    def close(self) -> None:
        """Every stream ends."""
        self.closing = True
        for site in list(self._changed):
            self._wake(site)

    def _note(self, entry: Entry) -> None:
        site = entry.key.removeprefix(DOCUMENTS)
        published = Published.read(entry.value) if entry.value is not None else None
        if published is not None and published.raw:
            self._orders[site] = (published.epoch, published.version)
        else:
            self._orders.pop(site, None)
        self._wake(site)

    def _wake(self, site: str) -> None:
        event = self._changed.pop(site, None)
        if event is not None:
            event.set()
