"""What routing of ours does the kernel hold?

Out: `Routes`, holding only what carries our protocol number: addresses on `lo`, rules, routes in any table; the dummy
device `cpe0` while it is up; and which IP versions forward. Implements `RoutePort`; how the kernel is changed is in
routechange.py, what others hold in our way in strangers.py. Synchronous, in a worker thread, on a netlink socket per
call. What was read is kept while the kernel tells of nothing that may concern it (routenews.py).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec
import trio

from cpe_agent.edge import linkwatch, ourroutes, routechange, strangers
from cpe_agent.edge.routenews import RouteNews
from cpe_agent.edge.rtnetlink import IPRoute, NetlinkDumpInterrupted, NetlinkError
from cpe_agent.model.dataplane import Routes
from cpe_agent.model.observed import LinkCounters, Links
from cpe_agent.model.ops import RouteOp
from cpe_agent.model.words import describe
from cpe_agent.ports import EdgeError

# A list that changed while it was read is read again.
_ATTEMPTS = 5

# That what is kept is what is there is looked at so often all the same: 16,000 routes cost 0.3 s of processor time.
LIST_AGAIN_S = 300.0

T = TypeVar("T")


class Netlink:
    """`RoutePort` on the network namespace of this process."""

    def __init__(self) -> None:
        self._news = RouteNews()
        # What was read, and when; None once it may be so no longer.
        self._kept: Routes | None = None
        self._listed_s = 0.0
        self._strangers: tuple[str, ...] | None = None
        self._strangers_listed_s = 0.0
        self._one_at_a_time = trio.CapacityLimiter(1)

    async def read(self) -> Routes:
        """What carries our protocol number."""
        return await trio.to_thread.run_sync(self._read, trio.current_time(), limiter=self._one_at_a_time)

    async def strangers(self) -> tuple[str, ...]:
        """What is not ours and stands in our way, in words."""
        return await trio.to_thread.run_sync(self._read_strangers, trio.current_time(), limiter=self._one_at_a_time)

    async def apply(self, ops: Sequence[RouteOp]) -> None:
        """In order; each is tried. `EdgeError` names the first that was refused, and how many more were.

        What another program holds in the same place (same address; same table, destination and metric) is left to it,
        and our operation is refused. A cancelled `apply` may have done a part of `ops`.
        """
        if not ops:
            return
        refused = await trio.to_thread.run_sync(_blocking, "apply", partial(routechange.apply, ops=ops))
        if refused:
            op, error = refused[0]
            more = f" (and {len(refused) - 1} more of {len(ops)} refused)" if len(refused) > 1 else ""
            raise EdgeError("netlink", describe(op), f"{_words(error)}{more}") from error

    async def links(self) -> Links:
        """Interfaces, their addresses, carriers and default gateways."""
        return await trio.to_thread.run_sync(_blocking, "links", linkwatch.read_links)

    async def counters(self) -> LinkCounters:
        """Bytes that every interface has received and sent (64 bits, also where the machine has 32)."""
        return await trio.to_thread.run_sync(_blocking, "counters", linkwatch.read_counters)

    def changes(self) -> AsyncGenerator[frozenset[str], None]:
        """Yields once when it has subscribed, then after each burst of changes, ours included; the links just lost."""
        return linkwatch.changes()

    def _read(self, now_s: float) -> Routes:
        self._listen()
        kept, self._kept = self._kept, None
        if kept is None or now_s >= self._listed_s + LIST_AGAIN_S:
            # Whatever happens from here on is heard at the next reading.
            kept, self._listed_s = _blocking("read", ourroutes.read), now_s
        # Of a setting not every change is told.
        forwarding, lenient = ourroutes.forwarding(), ourroutes.lenient()
        if (kept.forwarding, kept.lenient) != (forwarding, lenient):
            kept = msgspec.structs.replace(kept, forwarding=forwarding, lenient=lenient)
        self._kept = kept
        return kept

    def _read_strangers(self, now_s: float) -> tuple[str, ...]:
        self._listen()
        if self._strangers is None or now_s >= self._strangers_listed_s + LIST_AGAIN_S:
            self._strangers = None
            self._strangers, self._strangers_listed_s = _blocking("read", strangers.read), now_s
        return self._strangers

    def _listen(self) -> None:
        """Forget what may have changed."""
        try:
            news = self._news.heard()
        except OSError as error:
            raise EdgeError("netlink", "read", _words(error)) from error
        if news.ours:
            self._kept = None
        if news.others:
            self._strangers = None


def _blocking(op: str, work: Callable[[Any], T]) -> T:
    for _ in range(_ATTEMPTS):
        try:
            with IPRoute() as kernel:
                return work(kernel)
        except NetlinkDumpInterrupted:
            continue
        except (NetlinkError, OSError) as error:
            raise EdgeError("netlink", op, _words(error)) from error
    raise EdgeError("netlink", op, "the kernel's lists change while they are read")


def _words(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error.args[-1])
