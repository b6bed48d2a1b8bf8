"""How does the API reach the network?

uvicorn with mutual TLS 1.3: a client without a certificate of our root gets no further than the handshake. SIGTERM and
SIGINT end held streams at once and leave open requests a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from cpe_controller.api import make_app
from cpe_controller.feed import Feed
from cpe_controller.setup import ServerFiles, SetupError, opened, server_files

SHUTDOWN_S = 1
# Heartbeats are unacknowledged data when a client has gone: the kernel then drops the connection after this time.
DEAD_CLIENT_MS = 30_000
BACKLOG = 2048


def serve(
    state_dir: Path, listen: str | None, port: int | None, heartbeat_s: float, ready: Callable[[str], None]
) -> None:
    """Until SIGTERM or SIGINT. `listen` None is every address, `port` None the one of `init`, 0 any free one.

    `ready` is called with the URL once connections are accepted. Raises SetupError, StoreError.
    """
    with opened(state_dir) as (store, setup):
        tls = _tls(server_files(state_dir, setup))
        listener = _listener(listen, setup.port if port is None else port)
        with listener:
            feed = Feed(store)
            app = make_app(store, feed, setup.network, heartbeat_s)
            asyncio.run(_serve(feed, _config(app), tls, listener, ready))


class MutualTls(H11Protocol):
    """Hands the app who the client is (`certified_names`) and its `transport`; uvicorn hands on neither."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        names = (transport.get_extra_info("peercert") or {}).get("subjectAltName", ())
        self.app_state = {**self.app_state, "certified_names": names, "transport": transport}
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_CLIENT_MS)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, feed: Feed, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._feed = feed
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._feed.close()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a signal that was obeyed is not raised again: ending when told to is no failure."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        self.should_exit = True


async def _serve(
    feed: Feed, config: uvicorn.Config, tls: ssl.SSLContext, listener: socket.socket, ready: Callable[[str], None]
) -> None:
    config.load()
    config.ssl = tls
    host, port = listener.getsockname()[:2]
    url = f"https://{f'[{host}]' if ':' in host else host}:{port}"
    server = _Server(config, feed, lambda: ready(url))
    watching = asyncio.create_task(feed.run())
    # A server that no longer hears of changes must not look alive.
    watching.add_done_callback(lambda _: server.stop())
    try:
        await server.serve(sockets=[listener])
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching


def _config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=MutualTls,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,  # leaves logging alone
        access_log=False,
        proxy_headers=False,  # there is no proxy, so what a client says about its address is not believed
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )


def _tls(files: ServerFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    # A resumed session would not show its certificate again.
    context.num_tickets = 0
    try:
        context.load_cert_chain(files.certificate, files.key)
        context.load_verify_locations(cafile=files.root)
    except (OSError, ssl.SSLError) as error:
        raise SetupError(f"{files.certificate} cannot be used: {error}") from error
    return context


def _listener(listen: str | None, port: int) -> socket.socket:
    try:
        if listen is None and socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
        family = socket.AF_INET6 if listen and ":" in listen else socket.AF_INET
        return socket.create_server((listen or "", port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        raise SetupError(f"cannot listen on {listen or 'every address'}, port {port}: {error}") from error
