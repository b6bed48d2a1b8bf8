"""How does Prometheus get at the metrics?

In: an address, and who makes a `Status`. Out: an HTTP server that has one page, /metrics.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

import h11
import trio

from cpe_agent.edge.exposition import exposition
from cpe_agent.model.condition import Status
from cpe_agent.ports import EdgeError

PAGE = b"/metrics"
# Every Prometheus reads this version; the library's own constant moves on with the library.
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

# A scraper's request has a few hundred bytes.
REQUEST_MAX_BYTES = 8192
# From connect to close; Prometheus gives up after 10 s too, unless told otherwise.
EXCHANGE_S = 10.0
# A pair of scrapers and somebody with curl.
CONNECTIONS_MAX = 16
RECEIVE_BYTES = 4096

# Not in Python's socket module.
_FREEBIND = {socket.AF_INET: (socket.IPPROTO_IP, 15), socket.AF_INET6: (socket.IPPROTO_IPV6, 78)}


async def serve_metrics(
    host: str,
    port: int,
    status: Callable[[], Awaitable[Status]],
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; starts with the port in use (for `port` 0 the kernel's choice).

    Raises `EdgeError` if nothing can listen there. An `EdgeError` of `status` makes that one scrape fail (503).
    """
    listeners = await _listen(host, port)
    limiter = trio.CapacityLimiter(CONNECTIONS_MAX)

    async def serve(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError), trio.move_on_after(EXCHANGE_S):
            async with stream:
                connection = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_MAX_BYTES)
                try:
                    limiter.acquire_nowait()
                except trio.WouldBlock:
                    await stream.send_all(_response(connection, 503, b"Too many scrapers at once.\n"))
                    return
                try:
                    await stream.send_all(await _respond(connection, stream, status))
                finally:
                    limiter.release()

    task_status.started(listeners[0].socket.getsockname()[1])
    await trio.serve_listeners(serve, listeners)


async def _listen(host: str, port: int) -> list[trio.SocketListener]:
    found: list[trio.socket.SocketType] = []
    try:
        for family, kind, protocol, _, address in await trio.socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            listener = trio.socket.socket(family, kind, protocol)
            found.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # An overlay address is there once a document is, a LAN's once its interface is: neither is waited for.
            listener.setsockopt(*_FREEBIND[family], 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            await listener.bind(address)
            listener.listen(CONNECTIONS_MAX)
    except OSError as error:
        for opened in found:
            opened.close()
        cause = f"nothing can listen on {host} port {port}: {error.strerror or error}"
        raise EdgeError("metrics", "listen", f"{cause}; write another address as metrics in agent.yaml") from None
    return [trio.SocketListener(listener) for listener in found]


async def _respond(
    connection: h11.Connection, stream: trio.SocketStream, status: Callable[[], Awaitable[Status]]
) -> bytes:
    try:
        request = await _request(connection, stream)
        if request is None:
            return b""
        if request.method != b"GET":
            # Without words: an answer to HEAD must have no body.
            return _response(connection, 405, b"", (b"allow", b"GET"))
        if request.target.partition(b"?")[0] != PAGE:
            return _response(connection, 404, b"The metrics are at /metrics.\n")
        return _response(connection, 200, exposition(await status()), (b"content-type", CONTENT_TYPE))
    except h11.RemoteProtocolError as error:
        return _response(connection, error.error_status_hint, b"That is no HTTP request.\n")
    except EdgeError as error:
        return _response(connection, 503, f"{error}\n".encode())


async def _request(connection: h11.Connection, stream: trio.SocketStream) -> h11.Request | None:
    """The request; None if the client went away without one. A body, if any, is left unread."""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(RECEIVE_BYTES))
        elif isinstance(event, h11.Request):
            return event
        else:
            return None


def _response(connection: h11.Connection, code: int, body: bytes, *headers: tuple[bytes, bytes]) -> bytes:
    # One answer per connection: scrapes are seconds apart, and a kept one would only hold a place.
    fields = [*headers, (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    if not any(name == b"content-type" for name, _ in headers):
        fields.append((b"content-type", b"text/plain; charset=utf-8"))
    head = connection.send(h11.Response(status_code=code, headers=fields))
    sent = connection.send(h11.Data(data=body))
    return (head or b"") + (sent or b"") + (connection.send(h11.EndOfMessage()) or b"")
