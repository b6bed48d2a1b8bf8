"""The controller's clients: one contract for the fake and for HTTPS, then all that a network and a server can do to a
client, over real TLS."""

from __future__ import annotations

import base64
import ipaddress
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pytest
import trio
import trio.testing
from cryptography import x509

from cpe_agent.core.site_report import Facts, site_report
from cpe_agent.edge import controller as module
from cpe_agent.edge.controller import ControllerError, HttpsController
from cpe_agent.model.document import KEY_ID_HEADER, MAX_BYTES, SIGNATURE_HEADER
from cpe_agent.model.site_report import Box, SiteReport
from cpe_agent.ports import Change, ControllerPort, EdgeError, SignedDocument
from tests.edge.authority import Authority
from tests.edge.tls_server import Answer, Stream, TlsServer, response, says, serve
from tests.fakes.controller import FakeController

SIGNED = SignedDocument(raw=b'{"schema":1}', signature=bytes(range(64)), key_id="2026-a")
OTHER = SignedDocument(raw=b'{"schema":1,"version":2}', signature=bytes(64), key_id="2026-b")
NDJSON = {"content-type": "application/x-ndjson"}


def headers_of(document: SignedDocument, etag: str = '"0-1"') -> dict[str, str]:
    return {
        "content-type": "application/json",
        "content-length": str(len(document.raw)),
        "etag": etag,
        SIGNATURE_HEADER: base64.b64encode(document.signature).decode(),
        KEY_ID_HEADER: document.key_id,
    }


GOOD = response("200 OK", headers_of(SIGNED), SIGNED.raw)


class Tls:
    """An authority, a server's and a client's certificate, and servers and clients made with them."""

    def __init__(self, directory: Path, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.authority = Authority(directory)
        self.certificate, self.key = self.authority.issue("van-1", x509.DNSName("van-1"))
        self.server = self.authority.issue("controller", x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        self.clients: list[HttpsController] = []

    async def serve(self, answer: Answer) -> TlsServer:
        return await serve(self._nursery, self.authority.ca_path, *self.server, answer)

    def client(self, *urls: str, **options: Any) -> HttpsController:
        client = HttpsController(urls, self.authority.ca_path, self.certificate, self.key, **options)
        self.clients.append(client)
        return client


@pytest.fixture
async def tls(tmp_path: Path) -> AsyncIterator[Tls]:
    async with trio.open_nursery() as nursery:
        tls = Tls(tmp_path, nursery)
        yield tls
        for client in tls.clients:
            await client.aclose()
        nursery.cancel_scope.cancel()


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
        with trio.fail_after(5):
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
        with trio.fail_after(5):
            assert await anext(again) == Change((3, 2))
        served.cut()
        with pytest.raises(EdgeError):
            await anext(again)

    async def test_a_poll_is_answered_at_the_change(self, pair: tuple[ControllerPort, Served]) -> None:
        port, served = pair
        served.put(SIGNED, (0, 1))
        with trio.fail_after(5):
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
        with trio.fail_after(5):
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


async def refusal(call: Awaitable[object]) -> ControllerError:
    with trio.fail_after(5), pytest.raises(ControllerError) as caught:
        await call
    assert caught.value.target == "controller"
    return caught.value


async def test_what_is_asked(tls: Tls) -> None:
    server = await tls.serve(says(GOOD))
    assert await tls.client(server.url + "/").document("127.0.0.7", '"0-0"') == (SIGNED, '"0-1"')
    (request,) = server.requests
    assert (request.path, request.peer) == ("/v1/document", "127.0.0.7")
    assert request.headers["if-none-match"] == '"0-0"'
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["cpe-schemas"] == "1"


def without(name: str) -> bytes:
    return response("200 OK", {k: v for k, v in headers_of(SIGNED).items() if k != name}, SIGNED.raw)


def instead(**changes: str) -> bytes:
    headers = {name.lower(): value for name, value in headers_of(SIGNED).items()}
    changed = {name.replace("_", "-"): value for name, value in changes.items()}
    return response("200 OK", headers | changed, SIGNED.raw)


HTML = b"<html><title>Welcome to the hotel network</title></html>"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            response("500 Internal Server Error", {"content-length": "4"}, b"oops"),
            r"500 Internal Server Error .*b'oops'",
        ),
        (response("404 Not Found", {"content-length": "0"}), "404 Not Found with an empty body"),
        (response("302 Found", {"content-length": "0", "location": "http://x/"}), "302 Found"),
        (response("304 Not Modified", {}), "304 Not Modified"),
        (response("204 No Content", {}), "204 No Content"),
        (response("200 OK", {"content-type": "text/html"}, HTML), "200 OK with text/html, b'<html><title>Welcome"),
        (response("200 OK", {}, SIGNED.raw), "200 OK with no content type"),
        (response("200 OK", headers_of(SIGNED) | {"content-length": "0"}), "empty body"),
        (instead(content_length=str(MAX_BYTES + 1)), f"more than the {MAX_BYTES} bytes"),
        (instead(content_encoding="gzip"), "as 'gzip', unasked"),
        (without(SIGNATURE_HEADER), f"without the header {SIGNATURE_HEADER}"),
        (without(KEY_ID_HEADER), f"without the header {KEY_ID_HEADER}"),
        (without("etag"), "without the header ETag"),
        (instead(cpe_signature="###"), "'###' is not 64 bytes in base64"),
        (instead(cpe_signature="AAAA"), "'AAAA' is not 64 bytes in base64"),
        (instead(cpe_key_id="k" * 257), "longer than 256 characters"),
        (instead(content_length="400"), "the connection broke"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "the connection broke"),
        (b"", "the connection broke"),
    ],
)
async def test_no_document(tls: Tls, said: bytes, words: str) -> None:
    server = await tls.serve(says(said))
    error = await refusal(tls.client(server.url).document("", None))
    assert error.op == "document"
    with pytest.raises(ControllerError, match=words):
        raise error
    assert error.cause.startswith(server.url)


REVOKED = b'{"error":"van-1 is revoked:\\n this lets nobody in","code":"revoked"}'


async def test_a_refusal_is_in_the_controllers_own_words(tls: Tls) -> None:
    headers = {"content-type": "application/json", "content-length": str(len(REVOKED)), "retry-after": "7"}
    server = await tls.serve(says(response("403 Forbidden", headers, REVOKED)))
    error = await refusal(tls.client(server.url).document("", None))
    assert error.cause == f"{server.url}: van-1 is revoked: this lets nobody in"
    assert (error.code, error.answered, error.retry_after_s) == ("revoked", True, 7.0)


async def test_addresses_that_documents_bring_come_first_and_the_first_ones_stay(tls: Tls) -> None:
    server = await tls.serve(says(GOOD))
    client = tls.client("https://127.0.0.1:9")
    assert "cannot connect" in (await refusal(client.document("", None))).cause
    client.use([server.url + "/"])
    assert await client.document("", None) is not None
    client.use(["https://127.0.0.1:9", "https://127.0.0.1:10"])
    assert "127.0.0.1:10" in (await refusal(client.document("", None))).cause


async def test_an_endless_document_is_given_up(tls: Tls) -> None:
    sent = 0

    async def flood(stream: Stream) -> None:
        nonlocal sent
        headers = {k: v for k, v in headers_of(SIGNED).items() if k != "content-length"}
        await stream.send_all(response("200 OK", headers))
        while True:
            await stream.send_all(bytes(1 << 20))
            sent += 1

    server = await tls.serve(flood)
    error = await refusal(tls.client(server.url).document("", None))
    assert "more than the" in error.cause
    assert sent <= 4 * MAX_BYTES >> 20  # more than one MAX_BYTES only because sockets buffer


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "17"}, 17.0),
        ({"retry-after": "99999999"}, 3600.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "Fri, 01 Jan 2027 00:01:30 GMT", "date": "Fri, 01 Jan 2027 00:00:00 GMT"}, 90.0),
        ({"retry-after": "Fri, 01 Jan 2027 00:00:00 GMT", "date": "Fri, 01 Jan 2027 00:01:30 GMT"}, 0.0),
        ({"retry-after": "Fri, 01 Jan 2027 00:01:30 GMT"}, None),
    ],
)
async def test_retry_after(tls: Tls, headers: dict[str, str], seconds: float | None) -> None:
    server = await tls.serve(says(response("503 Service Unavailable", headers | {"content-length": "0"})))
    for call in (tls.client(server.url).document("", None), anext(tls.client(server.url).changes(""))):
        assert (await refusal(call)).retry_after_s == seconds


async def hang(_: Stream) -> None:
    await trio.sleep_forever()


async def test_a_server_that_never_answers(tls: Tls) -> None:
    server = await tls.serve(hang)
    error = await refusal(tls.client(server.url, timeout_s=0.1).document("", None))
    assert error.cause == f"{server.url}: connected, but it does not answer"


async def test_a_document_that_drips(tls: Tls) -> None:
    async def drip(stream: Stream) -> None:
        await stream.send_all(response("200 OK", headers_of(SIGNED) | {"content-length": "100000"}))
        while True:
            await stream.send_all(b" ")
            await trio.sleep(0.01)

    server = await tls.serve(drip)
    error = await refusal(tls.client(server.url, document_timeout_s=0.2).document("", None))
    assert error.cause == f"{server.url}: not finished after 0.2 s"


async def test_another_authority_is_not_believed(tls: Tls, tmp_path: Path) -> None:
    server = await tls.serve(says(GOOD))
    other = Authority(tmp_path, "other")
    client = HttpsController([server.url], other.ca_path, tls.certificate, tls.key)
    assert "CERTIFICATE_VERIFY_FAILED" in (await refusal(client.document("", None))).cause
    assert server.requests == []


async def test_the_documents_authorities_take_the_place_of_the_first_ones(tls: Tls, tmp_path: Path) -> None:
    server = await tls.serve(says(GOOD))
    other = Authority(tmp_path, "other")
    client = HttpsController([server.url], other.ca_path, tls.certificate, tls.key)
    right = tls.authority.ca_path.read_text()
    client.trust([other.ca_path.read_text(), right])
    assert await client.document("", None) is not None
    client.trust([other.ca_path.read_text()])
    assert "CERTIFICATE_VERIFY_FAILED" in (await refusal(client.document("", None))).cause
    client.trust(["no certificate"])
    assert "the document's trust.cas cannot be used" in (await refusal(client.document("", None))).cause
    # None are named: those of the settings, which are not the server's here.
    client.trust([])
    assert "CERTIFICATE_VERIFY_FAILED" in (await refusal(client.document("", None))).cause
    assert len(server.requests) == 1


async def test_a_server_with_another_name_is_not_believed(tls: Tls) -> None:
    tls.server = tls.authority.issue("elsewhere", x509.DNSName("elsewhere"))
    server = await tls.serve(says(GOOD))
    assert "IP address mismatch" in (await refusal(tls.client(server.url).document("", None))).cause


async def test_a_client_that_is_not_believed_is_told_where_to_look(tls: Tls, tmp_path: Path) -> None:
    tls.certificate, tls.key = Authority(tmp_path, "other").issue("stranger", x509.DNSName("van-1"))
    server = await tls.serve(says(GOOD))
    error = await refusal(tls.client(server.url).document("", None))
    assert "the connection broke: " in error.cause
    assert server.requests == []


async def test_nobody_there(tls: Tls) -> None:
    try:
        raise FileNotFoundError(2, "No such file or directory")
    except FileNotFoundError:
        # What is being handled meanwhile is not the reason.
        error = await refusal(tls.client("https://127.0.0.1:9").document("", None))
    assert error.cause == "https://127.0.0.1:9: cannot connect: Connection refused"


async def test_an_address_that_is_not_ours(tls: Tls) -> None:
    server = await tls.serve(says(GOOD))
    assert "cannot connect" in (await refusal(tls.client(server.url).document("192.0.2.1", None))).cause
    assert "cannot connect" in (await refusal(tls.client(server.url).document("::1", None))).cause


@pytest.mark.parametrize("broken", ["ca", "certificate"])
async def test_files_that_are_no_good_are_named(tls: Tls, tmp_path: Path, broken: str) -> None:
    absent = tmp_path / "absent.pem"
    server = await tls.serve(says(GOOD))
    ca, certificate = tls.authority.ca_path, tls.certificate
    paths = (absent, certificate) if broken == "ca" else (ca, absent)
    error = await refusal(HttpsController([server.url], *paths, tls.key).document("", None))
    assert str(absent) in error.cause


async def test_a_renewed_certificate_is_used_at_once(tls: Tls) -> None:
    server = await tls.serve(says(GOOD))
    client = tls.client(server.url)
    good = tls.certificate.read_bytes()
    tls.certificate.write_bytes(b"")
    await refusal(client.document("", None))
    tls.certificate.write_bytes(good)
    assert await client.document("", None) is not None


async def test_the_next_url_is_tried_and_remembered(tls: Tls) -> None:
    down = await tls.serve(says(response("503 Down", {"content-length": "0", "retry-after": "7"})))
    up = await tls.serve(says(GOOD))
    client = tls.client(down.url, up.url)
    assert await client.document("", None) is not None
    assert await client.document("", None) is not None
    assert (len(down.requests), len(up.requests)) == (1, 2)
    up.answer = says(response("500 Worse", {"content-length": "0"}))
    error = await refusal(client.document("", None))
    assert error.cause.startswith(f"{up.url}: answered 500 Worse")
    assert f"; {down.url}: answered 503 Down" in error.cause
    assert error.retry_after_s == 7.0


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ([GOOD], "expected application/x-ndjson"),
        ([response("200 OK", NDJSON)], "ended the stream"),
        ([response("200 OK", NDJSON | {"transfer-encoding": "chunked"}, b"5\r\nab")], "the connection broke"),
        ([response("200 OK", NDJSON, b"x" * 5000)], "a line longer than 1024 bytes"),
        ([response("200 OK", NDJSON, b"x" * 1025 + b"\n")], "a line longer than 1024 bytes"),
        *(
            ([response("200 OK", NDJSON, line + b"\n")], "neither a version nor a heartbeat")
            for line in (
                b"", b"{}", b"[1,2]", b"\xff", b'{"epoch":0}', b'{"epoch":"0","version":1}',
                b'{"epoch":-1,"version":1}',
                b'{"epoch":1,"version":0}', b'{"heartbeat":false}', b'{"epoch":1.5,"version":1}', b"[" * 1000,
                b'{"report":true}', b'{"heartbeat":true,"report":1}',
            )
        ),
    ],
)  # fmt: skip
async def test_no_changes(tls: Tls, said: list[bytes], words: str) -> None:
    server = await tls.serve(says(*said))
    stream = tls.client(server.url).changes("")
    error = await refusal(anext(stream))
    assert error.op == "changes"
    assert words in error.cause
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_lines_are_found_however_the_bytes_arrive(tls: Tls) -> None:
    lines = (
        b'{"epoch":1,"version":2,"note":"\xe2\x80\xa8"}\n{"heartbeat":true}\n{"epoch":1,"version":3,"report":true}\n'
    )
    server = await tls.serve(says(response("200 OK", NDJSON), *(lines[i : i + 1] for i in range(len(lines)))))
    stream = tls.client(server.url).changes("127.0.0.7")
    with trio.fail_after(5):
        assert [await anext(stream) for _ in range(3)] == [Change((1, 2)), Change(), Change((1, 3), True)]
    assert [(request.path, request.peer) for request in server.requests] == [("/v1/changes", "127.0.0.7")]
    assert "ended the stream" in (await refusal(anext(stream))).cause


@pytest.mark.parametrize("how", ["before the headers", "after a line", "dripping"])
async def test_silence(tls: Tls, how: str) -> None:
    async def answer(stream: Stream) -> None:
        if how == "before the headers":
            await trio.sleep_forever()
        await stream.send_all(response("200 OK", NDJSON, b'{"epoch":1,"version":2}\n'))
        while how == "dripping":
            await stream.send_all(b" ")
            await trio.sleep(0.01)
        await trio.sleep_forever()

    server = await tls.serve(answer)
    stream = tls.client(server.url, silence_s=0.2).changes("")
    if how != "before the headers":
        assert await anext(stream) == Change((1, 2))
    error = await refusal(anext(stream))
    assert ("does not answer" if how == "before the headers" else "silent for 0.2 s") in error.cause


async def listening() -> tuple[Answer, trio.Event]:
    """Says one line, then sets the event once the client has gone."""
    gone = trio.Event()

    async def answer(stream: Stream) -> None:
        await stream.send_all(response("200 OK", NDJSON, b'{"epoch":1,"version":2}\n'))
        with suppress(trio.BrokenResourceError):
            await stream.receive_some(1)
        gone.set()

    return answer, gone


Leave = Callable[[HttpsController, module.ChangeStream], Awaitable[None]]


async def leave_by_closing_while_another_task_waits(_: HttpsController, stream: module.ChangeStream) -> None:
    async def wait() -> None:
        async for _ in stream:
            raise AssertionError("nothing was said")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked(0.05)
        await stream.aclose()


async def leave_by_starting_another(client: HttpsController, _: module.ChangeStream) -> None:
    another = client.changes("")
    assert await anext(another) == Change((1, 2))
    await another.aclose()


async def leave_by_closing(_: HttpsController, stream: module.ChangeStream) -> None:
    await stream.aclose()


async def leave_by_closing_all(client: HttpsController, _: module.ChangeStream) -> None:
    await client.aclose()


async def leave_by_cancelling(_: HttpsController, stream: module.ChangeStream) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(anext, stream)
        await trio.testing.wait_all_tasks_blocked(0.05)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "leave",
    [
        leave_by_closing,
        leave_by_closing_all,
        leave_by_closing_while_another_task_waits,
        leave_by_cancelling,
        leave_by_starting_another,
    ],
)
async def test_whoever_leaves_a_stream_closes_its_connection(tls: Tls, leave: Leave) -> None:
    answer, gone = await listening()
    server = await tls.serve(answer)
    client = tls.client(server.url)
    stream = client.changes("")
    assert await anext(stream) == Change((1, 2))
    await leave(client, stream)
    with trio.fail_after(5):
        await gone.wait()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert not client._streams
