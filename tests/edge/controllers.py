"""Controllers for the agent's client: servers over real TLS, with certificates of an authority made for one test."""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from cryptography import x509

from cpe_agent.edge.controller import ControllerError, HttpsController
from cpe_agent.model.document import KEY_ID_HEADER, SIGNATURE_HEADER
from cpe_agent.ports import SignedDocument
from tests.edge.authority import Authority
from tests.edge.tls_server import Answer, TlsServer, response, serve

SIGNED = SignedDocument(raw=b'{"schema":1}', signature=bytes(range(64)), key_id="2026-a")
OTHER = SignedDocument(raw=b'{"schema":1,"version":2}', signature=bytes(64), key_id="2026-b")
NDJSON = {"content-type": "application/x-ndjson"}
# What has not come after so long hangs. How fast 16 MB come through TLS on a busy machine is nobody's promise.
HANGS_S = 30.0


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


async def refusal(call: Awaitable[object]) -> ControllerError:
    with trio.fail_after(HANGS_S), pytest.raises(ControllerError) as caught:
        await call
    assert caught.value.target == "controller"
    return caught.value
