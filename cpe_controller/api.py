"""What may a site ask?

For its own document and the news of it, and for a new certificate; and it says how it fares. The site is the one that
the client's certificate names, never one that the request names. Documents are served as they were signed; nothing here
holds a signing key. `openapi.py` describes all of it.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cpe_agent.model.document import KEY_ID_HEADER, SCHEMA, SIGNATURE_HEADER
from cpe_controller import changes, openapi, pki, standing
from cpe_controller.answers import Refused, body_of, refused, unavailable
from cpe_controller.change import in_force
from cpe_controller.changes import Changes
from cpe_controller.enrolment import Vouching
from cpe_controller.feed import Feed
from cpe_controller.limits import Limits, Rate
from cpe_controller.reports import Report, Reports
from cpe_controller.store import Store, StoreError

# A client that takes nothing for so long is cut off: it is stuck, and its buffers are ours.
SEND_S = 30.0
CSR_MAX_BYTES = 16 * 1024
REPORT_MAX_BYTES = 64 * 1024
# Which document schemas the agent speaks, as in "1, 2"; left out: the first.
SCHEMAS_HEADER = "Cpe-Schemas"
# An agent reports every minute, and at a change every 2 s; renews once in months.
REPORTS = (Rate(burst=20, every_s=1), Rate(burst=20_000, every_s=0.0005))
CERTIFICATES = (Rate(burst=5, every_s=60), Rate(burst=2000, every_s=0.01))


@dataclass(frozen=True)
class Serves:
    """What the API works with. `vouching` is asked anew for each certificate."""

    store: Store
    feed: Feed
    reports: Reports
    vouching: Callable[[], Vouching]
    network: str
    heartbeat_s: float


def make_app(serves: Serves) -> ASGIApp:
    """The app behind `listening.Tls`, which puts the client's certified names and its transport into the state."""
    api = _Api(serves)
    routes = [
        Route("/v1/document", api.for_site(api.document)),
        Route("/v1/changes", api.for_site(api.changes)),
        Route("/v1/status", api.for_site(api.status), methods=["POST"]),
        Route("/v1/certificate", api.for_site(api.certificate), methods=["POST"]),
        Route("/v1/openapi.json", api.openapi),
    ]
    handlers = {404: _not_found, 405: _not_found, Refused: refused, StoreError: unavailable}
    return Bounded(Starlette(routes=routes, exception_handlers=handlers))


class Asking(msgspec.Struct, frozen=True):
    """A request for the next certificate."""

    csr: str


class _Api:
    def __init__(self, serves: Serves) -> None:
        self._store = serves.store
        self._feed = serves.feed
        self._reports = serves.reports
        self._network = serves.network
        self._vouching = serves.vouching
        self._changes = Changes(
            serves.feed,
            serves.heartbeat_s,
            lambda site: in_force(serves.store, site),
            serves.reports.refused,
            self._still_there,
        )
        self._report_limits = Limits(*REPORTS)
        self._certificate_limits = Limits(*CERTIFICATES)

    def for_site(
        self, answer: Callable[[Request, pki.Holder], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """What is asked by a box that has its site's place now; any other is refused."""

        async def answered(request: Request) -> Response:
            state = request.scope["state"]
            holder = pki.holder_of(state["certified_names"], self._network)
            if holder is None:
                raise Refused("bad_request", "this certificate names no site of this network", status=403)
            self._let_in(holder)
            until = state.get("certified_until")
            self._reports.seen(holder.site, time.time(), None if until is None else ssl.cert_time_to_seconds(until))
            return await answer(request, holder)

        return answered

    async def document(self, request: Request, holder: pki.Holder) -> Response:
        _check_schemas(request.headers.get(SCHEMAS_HEADER))
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
        asked = request.headers.get("If-None-Match", "")
        # What a site has refused is offered to it no longer: it goes on with what it has.
        refused = asked and self._reports.refused(holder.site) == (published.epoch, published.version)
        if refused or _matches(asked, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        return Response(published.raw, media_type="application/json", headers=headers)

    async def changes(self, request: Request, holder: pki.Holder) -> Response:
        asked = changes.read(request.query_params)
        kind, headers = "application/x-ndjson", {"Cache-Control": "no-store"}
        if asked.stream:
            lines = self._changes.lines(holder, asked.inline)
            return StreamingResponse(lines, media_type=kind, headers=headers)
        return Response(await self._changes.next_line(holder, asked), media_type=kind, headers=headers)

    async def status(self, request: Request, holder: pki.Holder) -> Response:
        _admit(self._report_limits, holder)
        body = await body_of(request, REPORT_MAX_BYTES)
        try:
            report = msgspec.json.decode(body, type=Report)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Refused("bad_request", f"that is no status report: {error}") from None
        self._reports.said(holder.site, report, time.time())
        return Response(status_code=204)

    async def certificate(self, request: Request, holder: pki.Holder) -> Response:
        _admit(self._certificate_limits, holder)
        body = await body_of(request, CSR_MAX_BYTES)
        try:
            asked = msgspec.json.decode(body, type=Asking)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Refused("bad_request", f'that is no {{"csr": ...}}: {error}') from None
        try:
            csr = pki.request_of(asked.csr)
        except ValueError as error:
            raise Refused("csr_bad", f"csr: {error}") from None
        vouching = self._vouching()
        chain = vouching.chain(holder.site, csr, holder.generation, dt.datetime.now(dt.UTC))
        return JSONResponse({"certificate": chain, "cas": list(vouching.cas)})

    async def openapi(self, request: Request) -> Response:
        return Response(openapi.text(), media_type="application/json")

    def _let_in(self, holder: pki.Holder) -> None:
        # From the store itself, and not as the feed has it a moment later: who is revoked is out at once.
        stands = standing.of(self._store, holder.site)
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

    def _still_there(self, holder: pki.Holder) -> None:
        contact = self._reports.of(holder.site)
        self._reports.seen(holder.site, time.time(), contact.certificate_until if contact else None)


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


def _admit(limits: Limits, holder: pki.Holder) -> None:
    if wait_s := limits.admit(holder.site, time.monotonic()):
        raise Refused("busy", f"too many requests: come again in {wait_s} s", status=429, retry_after_s=wait_s)


def _check_schemas(spoken: str | None) -> None:
    """There is one schema; an agent that speaks others only must not be sent it."""
    if spoken is not None and str(SCHEMA) not in [word.strip() for word in spoken.split(",")]:
        raise Refused("bad_request", f"this controller has documents of schema {SCHEMA}, and this agent speaks others")


def _matches(wanted: str, etag: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in wanted.split(",")]
    return etag in tags or tags == ["*"]


async def _not_found(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    text = "there is no such thing; GET /v1/document is there, and GET /v1/openapi.json says what else"
    return await refused(request, Refused("bad_request", text, status=status))
