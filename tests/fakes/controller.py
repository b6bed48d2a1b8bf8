"""A `ControllerPort` in memory: a document that a test puts and replaces, and a fault that it sets and clears."""

from __future__ import annotations

from collections.abc import AsyncIterator

import trio

from cpe_agent.ports import EdgeError, SignedDocument


class FakeController:
    """Serves what was last `put`. `fault`, if set, is the cause with which every call raises, open streams too once
    `put`, `beat` or `cut` wakes them. `asked` is the local address of every call, in order."""

    def __init__(self) -> None:
        self.fault: str | None = None
        self.asked: list[str] = []
        self._document: SignedDocument | None = None
        self._order = (0, 0)
        self._streams: set[trio.MemorySendChannel[tuple[int, int] | None]] = set()

    def put(self, document: SignedDocument, order: tuple[int, int]) -> None:
        self._document, self._order = document, order
        self._tell(order)

    def beat(self) -> None:
        """One heartbeat to whoever listens."""
        self._tell(None)

    def cut(self) -> None:
        """End the streams that are open."""
        for stream in self._streams:
            stream.close()
        self._streams.clear()

    async def document(self, local_address: str, etag: str | None) -> tuple[SignedDocument, str] | None:
        await trio.lowlevel.checkpoint()
        self.asked.append(local_address)
        self._refuse("document")
        if self._document is None:
            raise EdgeError("controller", "document", "answered 404 Not Found")
        current = '"{}-{}"'.format(*self._order)
        return None if etag == current else (self._document, current)

    async def changes(self, local_address: str) -> AsyncIterator[tuple[int, int] | None]:
        await trio.lowlevel.checkpoint()
        self.asked.append(local_address)
        self._refuse("changes")
        send, receive = trio.open_memory_channel[tuple[int, int] | None](100)
        self._streams.add(send)
        try:
            yield self._order
            async for change in receive:
                self._refuse("changes")
                yield change
            raise EdgeError("controller", "changes", "ended the stream")
        finally:
            self._streams.discard(send)
            send.close()
            receive.close()

    async def aclose(self) -> None:
        self.cut()
        await trio.lowlevel.checkpoint()

    def _tell(self, change: tuple[int, int] | None) -> None:
        for stream in self._streams:
            stream.send_nowait(change)

    def _refuse(self, op: str) -> None:
        if self.fault is not None:
            raise EdgeError("controller", op, self.fault)
