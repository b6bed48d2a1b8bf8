"""A `ControllerPort` in memory: a document that a test puts and replaces, and a fault that it sets and clears."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from cpe_agent.model.enrolment import Renewed
from cpe_agent.model.site_report import SiteReport
from cpe_agent.ports import Change, EdgeError, SignedDocument

POLL_S = 25.0


class FakeController:
    """Serves what was last `put`. `fault`, if set, is the cause with which every call raises, open streams too once
    `put`, `beat` or `cut` wakes them. `asked` is the local address of every call, in order."""

    def __init__(self) -> None:
        self.fault: str | None = None
        self.unheard: str | None = None  # likewise, of reports only
        self.asked: list[str] = []
        self.listened: list[str] = []  # "stream" or "poll", in order
        self.reports: list[SiteReport] = []
        self.reported_from: list[str] = []  # local addresses, also of those that failed
        self.renewals: list[str] = []  # requests, in order
        self.base_urls: tuple[str, ...] = ()
        self.cas: tuple[str, ...] = ()
        self._document: SignedDocument | None = None
        self._order = (0, 0)
        self._streams: set[trio.MemorySendChannel[Change]] = set()

    def put(self, document: SignedDocument, order: tuple[int, int]) -> None:
        self._document, self._order = document, order
        self._tell(Change(order))

    def beat(self) -> None:
        """One heartbeat to whoever listens."""
        self._tell(Change())

    def ask(self) -> None:
        """Whoever listens is to report now."""
        self._tell(Change(report=True))

    def cut(self) -> None:
        """End the streams that are open."""
        for stream in self._streams:
            stream.close()
        self._streams.clear()

    async def document(self, local_address: str, etag: str | None) -> tuple[SignedDocument, str] | None:
        await trio.lowlevel.checkpoint()
        self.asked.append(local_address)
        self.refuse("document")
        if self._document is None:
            raise EdgeError("controller", "document", "answered 404 Not Found")
        current = '"{}-{}"'.format(*self._order)
        return None if etag == current else (self._document, current)

    def changes(self, local_address: str) -> FakeStream:
        return FakeStream(self, local_address)

    async def poll(self, local_address: str, after: tuple[int, int] | None) -> Change:
        await trio.lowlevel.checkpoint()
        receive = self._listen(local_address, "poll")
        try:
            if after != self._order:
                return Change(self._order)
            with trio.move_on_after(POLL_S):
                await receive.receive()  # what is served already
                return await receive.receive()
            return Change()
        except trio.EndOfChannel:
            raise EdgeError("controller", "changes", "ended the poll") from None
        finally:
            receive.close()

    async def report(self, local_address: str, report: SiteReport) -> None:
        await trio.lowlevel.checkpoint()
        self.reported_from.append(local_address)
        self.refuse("status")
        if self.unheard is not None:
            raise EdgeError("controller", "status", self.unheard)
        self.reports.append(report)

    async def renew(self, local_address: str, csr_pem: str) -> Renewed:
        await trio.lowlevel.checkpoint()
        self.refuse("certificate")
        self.renewals.append(csr_pem)
        return Renewed(f"certificate {len(self.renewals)} for {csr_pem}", ("root",))

    def use(self, base_urls: Sequence[str]) -> None:
        self.base_urls = tuple(base_urls)

    def trust(self, cas: Sequence[str]) -> None:
        self.cas = tuple(cas)

    async def aclose(self) -> None:
        self.cut()
        await trio.lowlevel.checkpoint()

    def open_stream(self, local_address: str) -> trio.MemoryReceiveChannel[Change]:
        return self._listen(local_address, "stream")

    def _listen(self, local_address: str, how: str) -> trio.MemoryReceiveChannel[Change]:
        self.asked.append(local_address)
        self.listened.append(how)
        self.refuse("changes")
        send, receive = trio.open_memory_channel[Change](100)
        self._streams.add(send)
        send.send_nowait(Change(self._order))
        return receive

    def refuse(self, op: str) -> None:
        if self.fault is not None:
            raise EdgeError("controller", op, self.fault)

    def _tell(self, change: Change) -> None:
        for stream in list(self._streams):
            try:
                stream.send_nowait(change)
            except trio.BrokenResourceError:
                self._streams.discard(stream)


class FakeStream:
    """Begins with the order that is served, as the real one does; an error ends it."""

    def __init__(self, controller: FakeController, local_address: str) -> None:
        self._controller = controller
        self._local_address = local_address
        self._receive: trio.MemoryReceiveChannel[Change] | None = None

    def __aiter__(self) -> FakeStream:
        return self

    async def __anext__(self) -> Change:
        await trio.lowlevel.checkpoint()
        if self._receive is None:
            self._receive = self._controller.open_stream(self._local_address)
        try:
            change = await self._receive.receive()
            self._controller.refuse("changes")
            return change
        except trio.EndOfChannel:
            raise EdgeError("controller", "changes", "ended the stream") from None

    async def aclose(self) -> None:
        if self._receive is not None:
            self._receive.close()
        await trio.lowlevel.checkpoint()
