"""What does a site get to see?

Its own document and the news of it, nothing else: the site is the one that the client's certificate names, never one
that the request names. Documents are served as they were signed; nothing here holds a signing key.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cpe_agent.model.document import KEY_ID_HEADER, SIGNATURE_HEADER
from cpe_controller import pki
from cpe_controller.feed import Feed
from cpe_controller.publish import DOCUMENTS, Published
from cpe_controller.store import Store, StoreError

# A client that takes nothing for so long is cut off: it is stuck, and its buffers are ours.
SEND_S = 30.0
RETRY_AFTER_S = 5


def make_app(store: Store, feed: Feed, network: str, heartbeat_s: float) -> ASGIApp:
    """The app behind `serve.MutualTls`, which puts the client's certified names and its transport into the state."""
    api = _Api(store, feed, network, heartbeat_s)
    app = Starlette(
        routes=[Route("/v1/document", api.document), Route("/v1/changes", api.changes)],
        exception_handlers={404: _not_found, 405: _not_found, StoreError: _unavailable},
    )
    return Bounded(app)


class _Api:
    def __init__(self, store: Store, feed: Feed, network: str, heartbeat_s: float) -> None:
        self._store = store
        self._feed = feed
        self._network = network
        self._heartbeat_s = heartbeat_s

    async def document(self, request: Request) -> Response:
        site = self._site(request)
        if site is None:
            return _no_site()
        entry = self._store.get(DOCUMENTS + site)
        published = Published.read(entry.value or b"") if entry is not None else None
        if published is None or not published.raw:
            return _error(404, f"there is no document for {site}: it is not in the network that was applied last")
        headers = {
            "ETag": f'"{published.epoch}.{published.version}.{hashlib.sha256(published.raw).hexdigest()[:16]}"',
            "Cache-Control": "no-cache",
            SIGNATURE_HEADER: published.signature,
            KEY_ID_HEADER: published.key_id,
        }
        if _matches(request.headers.get("If-None-Match", ""), headers["ETag"]):
            return Response(status_code=304, headers=headers)
        return Response(published.raw, media_type="application/json", headers=headers)

    async def changes(self, request: Request) -> Response:
        site = self._site(request)
        if site is None:
            return _no_site()
        return StreamingResponse(
            self._lines(site), media_type="application/x-ndjson", headers={"Cache-Control": "no-store"}
        )

    async def _lines(self, site: str) -> AsyncIterator[bytes]:
        """What is in force, at once and whenever it changes; heartbeats when there is nothing to say."""
        with self._feed.stream(site) as stream:
            said = None
            due = 0.0  # of the next heartbeat; the first line is sent at once in any case
            clock = asyncio.get_running_loop().time
            while not (stream.ended or self._feed.closing):
                order = self._feed.order(site)
                if order is not None and order != said:
                    said = order
                    yield _line({"epoch": order[0], "version": order[1]})
                elif clock() >= due:
                    yield _line({"heartbeat": True})
                else:
                    try:
                        async with asyncio.timeout_at(due):
                            await self._feed.wait_woken(site)
                    except TimeoutError:
                        pass
                    continue
                due = clock() + self._heartbeat_s

    def _site(self, request: Request) -> str | None:
        return pki.site_of(request.scope["state"]["certified_names"], self._network)


class Bounded:
    """Every send takes at most SEND_S, or the connection is cut."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(SEND_S):
                    await send(message)
            except TimeoutError:
                scope["state"]["transport"].abort()

        await self._app(scope, receive, send_in_time)


def _matches(wanted: str, etag: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in wanted.split(",")]
    return etag in tags or tags == ["*"]


def _line(value: dict[str, int] | dict[str, bool]) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def _error(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": text}, status_code=status, headers=headers)


def _no_site() -> Response:
    return _error(403, "this certificate names no site of this network")


async def _not_found(request: Request, error: Exception) -> Response:
    return _error(getattr(error, "status_code", 404), "there is GET /v1/document and GET /v1/changes")


async def _unavailable(request: Request, error: Exception) -> Response:
    return _error(503, "the store cannot be read", {"Retry-After": str(RETRY_AFTER_S)})
