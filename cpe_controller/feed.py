"""Which document is in force for each site now, who may have it, and who is to be told when that changes?

Two tasks watch the store; the held streams wait here, in memory, so that 2,000 of them cost the store two watches.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from cpe_controller import standing
from cpe_controller.change import DOCUMENTS, Published
from cpe_controller.pki import Holder
from cpe_controller.standing import SITES, Standing
from cpe_controller.store import Entry, Store

# An agent holds one. The others are what it left behind when its uplink died; the oldest gives way.
MAX_STREAMS = 4

# What a branch has, so that 2,000 that are woken together are not 2,000 reads. A hub's is read when it is asked for.
KEPT_MAX_BYTES = 16 * 1024

# A site is asked for its report at most so often: whoever does not answer is not pressed,
ASK_EACH_S = 5.0
# and no more sites at once: each comes by a connection of its own, which costs the controller 1.5 ms.
ASK_MAX = 200

Order = tuple[int, int]


class Stream:
    """One held stream of a site; `ended` once a newer one has taken its place, `asked` until it has been told that a
    report is wanted."""

    def __init__(self) -> None:
        self.ended = False
        self.asked = False


class Feed:
    """(epoch, version) per site, and which boxes are let in, as the store has it."""

    def __init__(self, store: Store) -> None:
        self.closing = False
        self._store = store
        self._orders: dict[str, Order] = {}
        self._documents: dict[str, Published] = {}
        self._standings: dict[str, Standing] = {}
        self._changed: dict[str, asyncio.Event] = {}
        self._streams: dict[str, list[Stream]] = {}
        self._asked_at: dict[str, float] = {}
        self._after = {
            DOCUMENTS: self._read(DOCUMENTS, self._note_document),
            SITES: self._read(SITES, self._note_standing),
        }

    async def run(self) -> None:
        """Follow the store until cancelled. Raises StoreError if it can no longer be read."""
        await asyncio.gather(self._follow(DOCUMENTS, self._note_document), self._follow(SITES, self._note_standing))

    def order(self, site: str) -> Order | None:
        """None: there is no document for this site."""
        return self._orders.get(site)

    def document(self, site: str) -> Published | None:
        """The document that `order` names, if it is a small one."""
        return self._documents.get(site)

    def orders(self) -> dict[str, Order]:
        return dict(self._orders)

    def standing(self, site: str) -> Standing:
        return self._standings.get(site, Standing())

    def standings(self) -> dict[str, Standing]:
        return dict(self._standings)

    def streams(self) -> int:
        """How many are held now."""
        return sum(map(len, self._streams.values()))

    def admits(self, holder: Holder) -> bool:
        return self.standing(holder.site).admits(holder.generation)

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

    def ask(self, sites: Iterable[str], now: float) -> None:
        """Those of the sites that hold a stream are to report at once. Say it again until they have: it is passed on
        no oftener than they can bear. `now`: seconds, of a clock that nobody sets."""
        left = ASK_MAX
        for site in sites:
            held = self._streams.get(site)
            if not held or now - self._asked_at.get(site, -math.inf) < ASK_EACH_S:
                continue
            if not left:
                break
            left -= 1
            self._asked_at[site] = now
            for stream in held:
                stream.asked = True
            self._wake(site)

    def close(self) -> None:
        """Every stream ends."""
        self.closing = True
        for site in list(self._changed):
            self._wake(site)

    def _read(self, prefix: str, note: Callable[[Entry], None]) -> int:
        listing = self._store.list(prefix)
        for entry in listing.entries:
            note(entry)
        return listing.revision

    async def _follow(self, prefix: str, note: Callable[[Entry], None]) -> None:
        async for entries in self._store.watch(prefix, self._after[prefix]):
            for entry in entries:
                note(entry)

    def _note_document(self, entry: Entry) -> None:
        site = entry.key.removeprefix(DOCUMENTS)
        published = Published.read(entry.value) if entry.value is not None else None
        if published is not None and published.raw:
            self._orders[site] = (published.epoch, published.version)
        else:
            self._orders.pop(site, None)
        if published is not None and 0 < len(published.raw) <= KEPT_MAX_BYTES:
            self._documents[site] = published
        else:
            self._documents.pop(site, None)
        self._wake(site)

    def _note_standing(self, entry: Entry) -> None:
        site = entry.key.removeprefix(SITES)
        self._standings[site] = standing.read(entry if entry.value is not None else None)
        self._wake(site)

    def _wake(self, site: str) -> None:
        event = self._changed.pop(site, None)
        if event is not None:
            event.set()
