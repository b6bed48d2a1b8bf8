"""How does an app listen?

uvicorn with TLS 1.3, with or without client certificates. With them, a client without a certificate of our root gets no
further than the handshake.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cpe_controller.authorities import ServerFiles
from cpe_controller.files import SetupError

SHUTDOWN_S = 1
# Heartbeats are unacknowledged data when a client has gone: the kernel then drops the connection after this time.
DEAD_CLIENT_MS = 30_000
# Whoever connects and asks nothing for so long is cut off.
SILENT_S = 30.0
# Of a request's line and headers.
HEAD_MAX_BYTES = 64 * 1024
BACKLOG = 2048


class Tls(HttpToolsProtocol):
    """Hands the app who the client is (`certified_names`, `certified_until`) and its `transport`; uvicorn hands on
    neither."""

    asked = False
    reading_body = False
    unread = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        certificate = transport.get_extra_info("peercert") or {}
        self.app_state = {
            **self.app_state,
            "certified_names": certificate.get("subjectAltName", ()),
            "certified_until": certificate.get("notAfter"),
            "transport": transport,
        }
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_CLIENT_MS)
        self._silent = asyncio.get_running_loop().call_later(SILENT_S, self._cut_if_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        self._silent.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self.unread += len(data)
        super().data_received(data)
        # The parser would take any number of headers. A head and its body may come in one piece, and are no such thing.
        if not self.reading_body and self.unread > HEAD_MAX_BYTES:
            self.transport.abort()

    def on_headers_complete(self) -> None:
        self.asked = self.reading_body = True
        self.unread = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self.reading_body, self.unread = False, 0
        super().on_message_complete()

    def _cut_if_silent(self) -> None:
        if not self.asked:
            self.transport.abort()


class Listener(uvicorn.Server):
    """One app on one socket. Signals are its owner's: uvicorn would take them, and only one of several could have
    them."""

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        tls: ssl.SSLContext | None,
        ready: Callable[[str], None],
        ending: Callable[[], None] = lambda: None,
        limit_concurrency: int | None = None,
    ) -> None:
        super().__init__(_config(app, tls, limit_concurrency))
        self._listener = listener
        self._url = _url(listener, "http" if tls is None else "https")
        self._announce = ready
        self._ending = ending

    async def run_until_stopped(self) -> None:
        await self.serve(sockets=[self._listener])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce(self._url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._ending()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        self.should_exit = True


def tls_context(files: ServerFiles, *, clients: bool) -> ssl.SSLContext:
    """`clients`: whether they need a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # A resumed session would not show its certificate again.
    context.num_tickets = 0
    try:
        context.load_cert_chain(files.certificate, files.key)
        if clients:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cafile=files.root)
            # Sites that have no chain, but their own certificate only, are let in too.
            context.load_verify_locations(cafile=files.sites)
    except (OSError, ssl.SSLError) as error:
        raise SetupError(f"{files.certificate} cannot be used: {error}") from error
    return context


def bind(listen: str | None, port: int) -> socket.socket:
    """`listen` None is every address; port 0 is any that is free."""
    try:
        if listen is None and socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
        family = socket.AF_INET6 if listen and ":" in listen else socket.AF_INET
        return socket.create_server((listen or "", port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        raise SetupError(f"cannot listen on {listen or 'every address'}, port {port}: {error}") from error


def _config(app: ASGIApp, tls: ssl.SSLContext | None, limit_concurrency: int | None) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        http=HttpToolsProtocol if tls is None else Tls,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,  # leaves logging alone
        access_log=False,
        proxy_headers=False,  # there is no proxy, so what a client says about its address is not believed
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
        limit_concurrency=limit_concurrency,
    )
    config.load()
    config.ssl = tls
    return config


def _url(listener: socket.socket, scheme: str) -> str:
    host, port = listener.getsockname()[:2]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
