"""A controller's answers, byte for byte, over real TLS that asks for a client certificate: what a test wants to be said
is said, however wrong it is."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

Stream = trio.SSLStream[trio.SocketStream]
Answer = Callable[[Stream], Awaitable[None]]


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    peer: str
    body: bytes = b""


@dataclass
class TlsServer:
    """`answer` is called once for each request; then the connection is closed. `requests` is what was asked."""

    url: str
    answer: Answer
    requests: list[Request] = field(default_factory=list)


def response(status: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def says(*chunks: bytes) -> Answer:
    async def answer(stream: Stream) -> None:
        for chunk in chunks:
            await stream.send_all(chunk)

    return answer


async def serve(
    nursery: trio.Nursery, ca: Path, certificate: Path, key: Path, answer: Answer, *, anybody: bool = False
) -> TlsServer:
    """On a port of its own at 127.0.0.1, until `nursery` ends. `anybody`: also who shows no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(ca)
    context.verify_mode = ssl.CERT_NONE if anybody else ssl.CERT_REQUIRED

    async def handle(tcp: trio.SocketStream) -> None:
        stream: Stream = trio.SSLStream(tcp, context, server_side=True, https_compatible=True)
        try:
            head = b""
            while b"\r\n\r\n" not in head:
                chunk = await stream.receive_some(4096)
                if not chunk:
                    return
                head += chunk
            head, _, body = head.partition(b"\r\n\r\n")
            first, *rest = head.decode().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
            while len(body) < int(headers.get("content-length", 0)):
                body += await stream.receive_some(4096)
            server.requests.append(Request(first.split(" ")[1], headers, tcp.socket.getpeername()[0], body))
            await server.answer(stream)
        except (trio.BrokenResourceError, ssl.SSLError):
            pass  # the client went away, or did not like us
        finally:
            await trio.aclose_forcefully(stream)

    listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
    server = TlsServer(f"https://127.0.0.1:{listeners[0].socket.getsockname()[1]}", answer)
    return server
