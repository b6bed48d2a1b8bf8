"""All that a network and a server can do to the controller's client that asks for a document, over real TLS."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography import x509

from cpe_agent.edge.controller import ControllerError, HttpsController
from cpe_agent.model.document import KEY_ID_HEADER, MAX_BYTES, SIGNATURE_HEADER
from tests.edge.authority import Authority
from tests.edge.controllers import GOOD, SIGNED, Tls, headers_of, refusal
from tests.edge.tls_server import Stream, response, says


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


async def test_a_server_that_never_answers(tls: Tls, autojump_clock: trio.testing.MockClock) -> None:
    server = await tls.serve(hang)
    error = await refusal(tls.client(server.url, timeout_s=0.1).document("", None))
    assert error.cause == f"{server.url}: connected, but it does not answer"


async def test_a_document_that_drips(tls: Tls, autojump_clock: trio.testing.MockClock) -> None:
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
