"""One contract for the fake controller and for HTTPS."""

from __future__ import annotations

import urllib.parse
from contextlib import suppress
from typing import Any, Protocol

import msgspec
import pytest
import trio
import trio.testing

from cpe_agent.core.site_report import Facts, site_report
from cpe_agent.model.site_report import Box, SiteReport
from cpe_agent.ports import Change, ControllerPort, EdgeError, SignedDocument
from tests.edge.controllers import HANGS_S, NDJSON, OTHER, SIGNED, Tls, headers_of
from tests.edge.tls_server import Stream, TlsServer, response
from tests.fakes.controller import FakeController


class Served(Protocol):
    """What a test does to the controller behind the port."""

    reports: list[SiteReport]

    def put(self, document: SignedDocument, order: tuple[int, int]) -> None: ...

    def beat(self) -> None: ...

    def ask(self) -> None: ...

    def cut(self) -> None: ...


def line_of(change: Change) -> bytes:
    """As the controller writes it."""
    said: dict[str, Any] = {"heartbeat": True}
    if change.order is not None:
        said = {"epoch": change.order[0], "version": change.order[1]}
    return msgspec.json.encode(said | ({"report": True} if change.report else {})) + b"\n"


class ServedOverTls:
    """`FakeController`, told over HTTPS."""

    def __init__(self) -> None:
        self.state = FakeController()
        self.put, self.beat, self.cut = self.state.put, self.state.beat, self.state.cut
        self.ask = self.state.ask
        self.reports = self.state.reports

    async def answer(self, server: TlsServer, stream: Stream) -> None:
        request = server.requests[-1]
        if request.path == "/v1/status":
            self.state.reports.append(msgspec.json.decode(request.body, type=SiteReport))
            await stream.send_all(response("204 No Content", {}))
            return
        if request.path.startswith("/v1/changes?"):
            query = urllib.parse.parse_qs(request.path.partition("?")[2])
            after: tuple[int, int] | None = None
            if "after" in query:
                epoch, version = query["after"][0].split(".")
                after = (int(epoch), int(version))
            with suppress(EdgeError):
                change = await self.state.poll("", after)
                line = line_of(change)
                await stream.send_all(response("200 OK", NDJSON | {"content-length": str(len(line))}, line))
            return
        if request.path == "/v1/changes":
            await stream.send_all(response("200 OK", NDJSON))
            with suppress(EdgeError):
                async for change in self.state.changes(""):
                    await stream.send_all(line_of(change))
            return
        try:
            current = await self.state.document("", request.headers.get("if-none-match"))
        except EdgeError:
            await stream.send_all(response("404 Not Found", {"content-length": "0"}))
            return
        if current is None:
            await stream.send_all(response("304 Not Modified", {}))
            return
        await stream.send_all(response("200 OK", headers_of(*current), current[0].raw))


@pytest.fixture(params=["fake", "real"])
async def pair(request: pytest.FixtureRequest, tls: Tls) -> tuple[ControllerPort, Served]:
    if request.param == "fake":
        fake = FakeController()
        return fake, fake
    served = ServedOverTls()

    async def answer(stream: Stream) -> None:
        await served.answer(server, stream)

    server = await tls.serve(answer)
    return tls.client(server.url), served


class TestContract:
    async def test_a_document_and_its_etag(self, pair: tuple[ControllerPort, Served]) -> None:
        port, served = pair
        with pytest.raises(EdgeError, match="404 Not Found"):
            await port.document("", None)
        served.put(SIGNED, (0, 1))
        first = await port.document("", None)
        assert first is not None
        assert first[0] == SIGNED
        assert await port.document("", first[1]) is None
        served.put(OTHER, (0, 2))
        second = await port.document("", first[1])
        assert second is not None
        assert second[0] == OTHER
        assert second[1] != first[1]

    async def test_changes_begin_with_what_is_served(self, pair: tuple[ControllerPort, Served]) -> None:
        port, served = pair
        served.put(SIGNED, (0, 1))
        changes = port.changes("")
        with trio.fail_after(HANGS_S):
            assert await anext(changes) == Change((0, 1))
            served.beat()
            assert await anext(changes) == Change()
            served.ask()
            assert await anext(changes) == Change(report=True)
            served.put(OTHER, (3, 2))
            assert await anext(changes) == Change((3, 2))
            served.cut()
            with pytest.raises(EdgeError, match="ended the stream") as caught:
                await anext(changes)
        assert (caught.value.target, caught.value.op) == ("controller", "changes")
        again = port.changes("")
        with trio.fail_after(HANGS_S):
            assert await anext(again) == Change((3, 2))
        served.cut()
        with pytest.raises(EdgeError):
            await anext(again)

    async def test_a_poll_is_answered_at_the_change(self, pair: tuple[ControllerPort, Served]) -> None:
        port, served = pair
        served.put(SIGNED, (0, 1))
        with trio.fail_after(HANGS_S):
            assert await port.poll("", None) == Change((0, 1))
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def change() -> None:
                    await trio.sleep(0.3)
                    served.put(OTHER, (3, 2))

                assert await port.poll("", (0, 1)) == Change((3, 2))
            assert await port.poll("", (0, 1)) == Change((3, 2))

    async def test_a_poll_is_answered_when_a_report_is_wanted(self, pair: tuple[ControllerPort, Served]) -> None:
        port, served = pair
        served.put(SIGNED, (0, 1))
        with trio.fail_after(HANGS_S):
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def ask() -> None:
                    await trio.sleep(0.3)
                    served.ask()

                assert await port.poll("", (0, 1)) == Change(report=True)

    async def test_a_report_arrives_whole(self, pair: tuple[ControllerPort, Served]) -> None:
        port, served = pair
        report = site_report(Facts("1", (1, 7), 60.0, False, None, (), {"a.b.c": "up"}, True), Box("one", "two"))
        await port.report("", report)
        assert served.reports == [report]
