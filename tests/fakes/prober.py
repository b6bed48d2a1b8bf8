"""A `ProbePort` in memory: a table of who answers whom, and how fast, that a test edits while it runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import trio

from cpe_agent.model.observed import Reply


class FakeProber:
    """`rtt_s[(source, target)]` is how long an answer takes by trio's clock; who is not in it is silent. A source that
    is not in `addresses` cannot send at all. `sent` is every (source, target, sequence) that was taken. A packet larger
    than `carries[(source, target)]` is lost on the way, one larger than `mtu` is not taken."""

    def __init__(self) -> None:
        self.addresses: set[str] = set()
        self.rtt_s: dict[tuple[str, str], float] = {}
        self.carries: dict[tuple[str, str], int] = {}
        self.mtu = 65535
        self.sent: list[tuple[str, str, int]] = []
        self._coming: list[tuple[float, Reply]] = []
        self._added = trio.Event()

    def send(self, source: str, target: str, sequence: int, size: int = 0) -> bool:
        if source not in self.addresses or size > self.mtu:
            return False
        self.sent.append((source, target, sequence))
        rtt_s = self.rtt_s.get((source, target))
        if rtt_s is not None and size <= self.carries.get((source, target), size):
            reply = Reply(target=target, source=source, sequence=sequence, rtt_s=rtt_s)
            self._coming.append((trio.current_time() + rtt_s, reply))
            self._coming.sort(key=lambda coming: coming[0])
            self._added.set()
        return True

    async def replies(self) -> Sequence[Reply]:
        await trio.lowlevel.checkpoint()
        while True:
            now = trio.current_time()
            come = [reply for due, reply in self._coming if due <= now]
            if come:
                self._coming = [coming for coming in self._coming if coming[0] > now]
                return come
            self._added = trio.Event()
            with trio.move_on_at(self._coming[0][0] if self._coming else math.inf):
                await self._added.wait()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
