"""How does a site hear that there is something new?

A held stream of lines, or, where something on the way keeps streams back until they end, one line per request that
waits (`Poll`). A line names the document in force; a client that asks for it gets the document itself with it, signed
as ever, which saves it a connection. A line may also ask for the site's report before its time.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

import msgspec

from cpe_controller.answers import Refused
from cpe_controller.change import Published
from cpe_controller.feed import Feed, Order
from cpe_controller.pki import Holder

# Proxies give up after a minute.
WAIT_MAX_S = 55.0
# What is longer is fetched.
INLINE_MAX_BYTES = 256 * 1024

HEARTBEAT = {"heartbeat": True}
ASKING = {"heartbeat": True, "report": True}

_ORDER = re.compile(r"(\d{1,15})\.(\d{1,15})\Z", re.ASCII)
_NUMBER = re.compile(r"\d{1,9}(\.\d{1,9})?\Z", re.ASCII)


@dataclass(frozen=True)
class Poll:
    """What a request says: a stream is wanted; or else one line, which is not the order `after` that the client has
    (None: it has none), within `wait_s`. Documents of up to `inline` bytes come with their lines."""

    stream: bool
    after: Order | None
    wait_s: float
    inline: int


def read(query: Mapping[str, str]) -> Poll:
    """Raises Refused."""
    inline = int(_number(query, "documents", 0))
    if "after" not in query and "wait" not in query:
        return Poll(True, None, 0.0, min(inline, INLINE_MAX_BYTES))
    after = query.get("after", "")
    match = _ORDER.match(after)
    if after and not match:
        raise Refused("bad_request", f"after={after[:40]!r} is no EPOCH.VERSION, as in after=1.7")
    order = (int(match[1]), int(match[2])) if match else None
    wait_s = min(_number(query, "wait", 30.0), WAIT_MAX_S)
    return Poll(False, order, wait_s, min(inline, INLINE_MAX_BYTES))


class Changes:
    """`published` gives a site's document in force, `refused` the one that the site has rejected or taken back: that is
    no news to it. `alive` is told whenever a client is still there."""

    def __init__(
        self,
        feed: Feed,
        heartbeat_s: float,
        published: Callable[[str], Published | None],
        refused: Callable[[str], Order | None],
        alive: Callable[[Holder], None],
    ) -> None:
        self._feed = feed
        self._heartbeat_s = heartbeat_s
        self._published = published
        self._refused = refused
        self._alive = alive

    async def lines(self, holder: Holder, inline: int) -> AsyncIterator[bytes]:
        """What is in force, at once and whenever it changes; heartbeats when there is nothing to say."""
        with self._feed.stream(holder.site) as stream:
            said: Order | None = None
            due = 0.0  # of the next heartbeat; the first line is sent at once in any case
            clock = asyncio.get_running_loop().time
            while not (stream.ended or self._feed.closing) and self._feed.admits(holder):
                order = self._feed.order(holder.site)
                if order is not None and order not in (said, self._refused(holder.site)):
                    said = order
                    yield self._news(holder.site, order, inline)
                elif stream.asked:
                    stream.asked = False
                    yield _line(ASKING)
                elif clock() >= due:
                    yield _line(HEARTBEAT)
                else:
                    await self._woken(holder.site, due)
                    continue
                self._alive(holder)
                due = clock() + self._heartbeat_s

    async def next_line(self, holder: Holder, poll: Poll) -> bytes:
        """The first that is not `after`, or a heartbeat when the wait is over or a report is wanted."""
        with self._feed.stream(holder.site) as stream:
            clock = asyncio.get_running_loop().time
            until = clock() + poll.wait_s
            while not (stream.ended or self._feed.closing) and self._feed.admits(holder):
                order = self._feed.order(holder.site)
                if order is not None and order not in (poll.after, self._refused(holder.site)):
                    return self._news(holder.site, order, poll.inline)
                if stream.asked:
                    return _line(ASKING)
                if clock() >= until:
                    break
                await self._woken(holder.site, until)
        return _line(HEARTBEAT)

    def _news(self, site: str, order: Order, inline: int) -> bytes:
        line: dict[str, object] = {"epoch": order[0], "version": order[1]}
        published = (self._feed.document(site) or self._published(site)) if inline else None
        if published is not None and len(published.raw) <= inline:
            line = {
                "epoch": published.epoch,
                "version": published.version,
                "document": published.raw.decode(),
                "signature": published.signature,
                "key_id": published.key_id,
            }
        return _line(line)

    async def _woken(self, site: str, until: float) -> None:
        try:
            async with asyncio.timeout_at(until):
                await self._feed.wait_woken(site)
        except TimeoutError:
            pass


def _number(query: Mapping[str, str], name: str, default: float) -> float:
    text = query.get(name)
    if text is None:
        return default
    if not _NUMBER.match(text):
        raise Refused("bad_request", f"{name}={text[:40]!r} is no number")
    return float(text)


def _line(value: Mapping[str, object]) -> bytes:
    return msgspec.json.encode(value) + b"\n"
