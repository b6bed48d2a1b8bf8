"""The API over real TLS on loopback, served by a process of its own, as agents meet it."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from cpe_agent.model.document import KEY_ID_HEADER, SIGNATURE_HEADER
from cpe_agent.model.document_check import decode
from cpe_controller import api, setup
from cpe_controller.feed import MAX_STREAMS
from cpe_controller.signing import verify
from tests.controller.conftest import ENDED_S, HEARTBEAT_S, Served

REFUSED = (httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)


def test_a_site_gets_its_own_document_signed(served: Served) -> None:
    [key] = setup.signing_keys(served.state)
    for site in ("centre", "van-1"):
        with served.client(site) as client:
            answer = client.get("/v1/document")
        assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
        assert decode(answer.content).site == site
        assert answer.headers[KEY_ID_HEADER] == key.id
        assert verify(key, answer.content, answer.headers[SIGNATURE_HEADER])


def test_nothing_in_a_request_makes_another_site_of_it(served: Served) -> None:
    with served.client("van-1") as client:
        for path in ("/v1/document?site=centre", "/v1/document?site=centre&name=centre.blood.cpe"):
            answer = client.get(path, headers={"X-Forwarded-For": "centre", "Host": "centre.blood.cpe"})
            assert decode(answer.content).site == "van-1"
        answer = client.get("/v1/document/centre")
        assert answer.status_code == 404 and "/v1/document" in answer.json()["error"]
        assert client.post("/v1/document").status_code == 405


def test_an_etag_saves_the_document(served: Served, text: str) -> None:
    with served.client("hospital-1") as client:
        etag = client.get("/v1/document").headers["etag"]
        same = client.get("/v1/document", headers={"If-None-Match": f'"x", {etag}'})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
        assert client.get("/v1/document", headers={"If-None-Match": '"x"'}).status_code == 200
        setup.apply(served.state, text.replace("failback_s: 60", "failback_s: 61"))
        new = client.get("/v1/document", headers={"If-None-Match": etag})
        assert new.status_code == 200 and decode(new.content).policy.failback_s == 61


def test_without_a_certificate_of_ours_there_is_no_answer(served: Served, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    setup.init_state(foreign, "blood", ["127.0.0.1"])
    with served.client(None) as client, pytest.raises(REFUSED):
        client.get("/v1/document")
    with served.client("van-1", issuer=foreign) as client, pytest.raises(REFUSED):
        client.get("/v1/document")
    with served.client("van-1", ca=foreign) as client, pytest.raises(httpx.ConnectError, match="certificate"):
        client.get("/v1/document")


def test_the_servers_own_certificate_is_no_clients(served: Served) -> None:
    context = ssl.create_default_context(cafile=str(served.state / "root.pem"))
    context.load_cert_chain(served.state / "server.pem", served.state / "server.key")
    with httpx.Client(base_url=served.url, verify=context, trust_env=False) as client, pytest.raises(REFUSED):
        client.get("/v1/document")


def test_a_site_that_is_not_in_the_network_gets_none(served: Served) -> None:
    with served.client("stranger") as client:
        answer = client.get("/v1/document")
    assert answer.status_code == 404 and "stranger" in answer.json()["error"]


def _lines(answer: httpx.Response) -> Iterator[dict[str, object]]:
    rest = b""
    for part in answer.iter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        yield from (json.loads(line) for line in lines)


def test_changes_are_told_at_once_and_to_whom_they_concern(served: Served, text: str) -> None:
    """`apply` runs in this process, the server in another."""
    with (
        served.client("hospital-1") as client,
        client.stream("GET", "/v1/changes") as answer,
        served.client("van-1") as other_client,
        other_client.stream("GET", "/v1/changes") as other_answer,
    ):
        assert answer.headers["content-type"] == "application/x-ndjson"
        lines, others = _lines(answer), _lines(other_answer)
        assert next(lines) == next(others) == {"epoch": 1, "version": 1}
        assert next(lines) == {"heartbeat": True}
        with ThreadPoolExecutor(1) as pool:
            changed = text.replace("kind: cellular, priority: 2", "kind: cellular, priority: 3")
            applied = pool.submit(setup.apply, served.state, changed)
            late = 0
            while (told := next(lines)) == {"heartbeat": True}:
                late += applied.done()
        assert told == {"epoch": 1, "version": 2}
        # Within a second, by the server's own time: this machine may stand still.
        assert late * HEARTBEAT_S < 1
        assert [next(others), next(others)] == [{"heartbeat": True}, {"heartbeat": True}]


def test_heartbeats_keep_coming(served: Served) -> None:
    # Before the stream begins: later, some may be there already.
    started = time.monotonic()
    with served.client("stranger") as client, client.stream("GET", "/v1/changes") as answer:
        lines = _lines(answer)
        assert [next(lines) for _ in range(4)] == [{"heartbeat": True}] * 4
        assert time.monotonic() - started >= 3 * HEARTBEAT_S * 0.9


def test_a_sites_oldest_stream_gives_way(served: Served) -> None:
    clients = [served.client("van-1") for _ in range(MAX_STREAMS + 1)]
    streams = [client.stream("GET", "/v1/changes") for client in clients]
    lines = []
    for stream in streams:
        lines.append(_lines(stream.__enter__()))
        assert next(lines[-1]) == {"epoch": 1, "version": 1}
    assert all(line == {"heartbeat": True} for line in lines[0])  # it ends
    assert next(lines[1]) == {"heartbeat": True}
    for stream, client in zip(streams, clients, strict=True):
        stream.__exit__(None, None, None)
        client.close()


def test_a_client_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "SEND_S", 0.01)
    cut: list[bool] = []

    class Transport:
        def abort(self) -> None:
            cut.append(True)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.body"})

    async def never() -> Message:
        raise AssertionError("nothing is received")

    async def stuck(message: Message) -> None:
        await asyncio.Event().wait()

    async def run() -> None:
        await asyncio.wait_for(api.Bounded(app)({"state": {"transport": Transport()}}, never, stuck), 5)

    asyncio.run(run())
    assert cut == [True]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_server_ends_when_told_to_streams_or_not(served: Served, number: signal.Signals) -> None:
    with served.client("van-1") as client, client.stream("GET", "/v1/changes") as answer:
        lines = _lines(answer)
        next(lines)
        served.process.send_signal(number)
        # The stream ends whole, with its last chunk: what does not end by itself is cut off after a second.
        assert all(line == {"heartbeat": True} for line in lines)
        assert served.process.wait(ENDED_S) == 0
