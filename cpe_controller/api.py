"""What does a site get to see?

Its own document and the news of it, and a new certificate for itself, nothing else: the site is the one that the
client's certificate names, never one that the request names. Documents are served as they were signed; nothing here
holds a signing key.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cpe_agent.model.document import KEY_ID_HEADER, SIGNATURE_HEADER
from cpe_controller import pki, standing
from cpe_controller.answers import Refused, body_of, refused, unavailable
from cpe_controller.enrolment import Vouching
from cpe_controller.feed import Feed
from cpe_controller.publish import in_force
from cpe_controller.store import Store, StoreError

# A client that takes nothing for so long is cut off: it is stuck, and its buffers are ours.
SEND_S = 30.0
# Of a request for a certificate.
CSR_MAX_BYTES = 16 * 1024


def make_app(store: Store, feed: Feed, network: str, heartbeat_s: float, vouching: Callable[[], Vouching]) -> ASGIApp:
    """The app behind `listening.Tls`, which puts the client's certified names and its transport into the state."""
    api = _Api(store, feed, network, heartbeat_s, vouching)
    routes = [
        Route("/v1/document", api.for_site(api.document)),
        Route("/v1/changes", api.for_site(api.changes)),
        Route("/v1/certificate", api.for_site(api.certificate), methods=["POST"]),
    ]
    handlers = {404: _not_found, 405: _not_found, Refused: refused, StoreError: unavailable}
    return Bounded(Starlette(routes=routes, exception_handlers=handlers))


class Asking(msgspec.Struct, frozen=True):
    """A request for the next certificate."""

    csr: str


class _Api:
    def __init__(
        self, store: Store, feed: Feed, network: str, heartbeat_s: float, vouching: Callable[[], Vouching]
    ) -> None:
        self._store = store
        self._feed = feed
        self._network = network
        self._heartbeat_s = heartbeat_s
        self._vouching = vouching

    def for_site(
        self, answer: Callable[[Request, pki.Holder], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """What is asked by a box that has its site's place now; any other is refused."""

        async def answered(request: Request) -> Response:
            holder = pki.holder_of(request.scope["state"]["certified_names"], self._network)
            if holder is None:
                raise Refused("bad_request", "this certificate names no site of this network", status=403)
            self._let_in(holder)
            return await answer(request, holder)

        return answered

    async def document(self, request: Request, holder: pki.Holder) -> Response:
        published = in_force(self._store, holder.site)
        if published is None:
            text = f"there is no document for {holder.site}: it is not in the network that was applied last"
            raise Refused("site_unknown", text)
        headers = {
            "ETag": f'"{published.epoch}.{published.version}.{hashlib.sha256(published.raw).hexdigest()[:16]}"',
            "Cache-Control": "no-cache",
            SIGNATURE_HEADER: published.signature,
            KEY_ID_HEADER: published.key_id,
        }
        if _matches(request.headers.get("If-None-Match", ""), headers["ETag"]):
            return Response(status_code=304, headers=headers)
        return Response(published.raw, media_type="application/json", headers=headers)

    async def changes(self, request: Request, holder: pki.Holder) -> Response:
        return StreamingResponse(
            self._lines(holder), media_type="application/x-ndjson", headers={"Cache-Control": "no-store"}
        )

    async def certificate(self, request: Request, holder: pki.Holder) -> Response:
        try:
            asked = msgspec.json.decode(await body_of(request, CSR_MAX_BYTES), type=Asking)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Refused("bad_request", f'that is no {{"csr": ...}}: {error}') from None
        try:
            csr = pki.request_of(asked.csr)
        except ValueError as error:
            raise Refused("csr_bad", f"csr: {error}") from None
        vouching = self._vouching()
        chain = vouching.chain(holder.site, csr, holder.generation, dt.datetime.now(dt.UTC))
        return JSONResponse({"certificate": chain, "cas": list(vouching.cas)})

    def _let_in(self, holder: pki.Holder) -> None:
        stands = self._feed.standing(holder.site)
        if not stands.admits(holder.generation):
            why = "is revoked" if stands.revoked else "has its place taken by another box"
            raise Refused("revoked", f"{holder.site} {why}: this certificate lets nobody in any more")
        if holder.generation > stands.generation:
            # The store is older than this box (it was restored): what its certificate proves is put right.
            standing.change(
                self._store,
                holder.site,
                lambda now: msgspec.structs.replace(now, generation=max(now.generation, holder.generation)),
            )

    async def _lines(self, holder: pki.Holder) -> AsyncIterator[bytes]:
        """What is in force, at once and whenever it changes; heartbeats when there is nothing to say."""
        with self._feed.stream(holder.site) as stream:
            said = None
            due = 0.0  # of the next heartbeat; the first line is sent at once in any case
            clock = asyncio.get_running_loop().time
            while not (stream.ended or self._feed.closing) and self._feed.admits(holder):
                order = self._feed.order(holder.site)
                if order is not None and order != said:
                    said = order
                    yield _line({"epoch": order[0], "version": order[1]})
                elif clock() >= due:
                    yield _line({"heartbeat": True})
                else:
                    try:
                        async with asyncio.timeout_at(due):
                            await self._feed.wait_woken(holder.site)
                    except TimeoutError:
                        pass
                    continue
                due = clock() + self._heartbeat_s


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


async def _not_found(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    text = "there is GET /v1/document, GET /v1/changes and POST /v1/certificate"
    return await refused(request, Refused("bad_request", text, status=status))
