"""How does a box without a certificate become a site?

An app of its own, on a port of its own, for clients without certificates: `GET /v1/ca`, `POST /v1/enroll`. What is
believed is the token's secret, and nothing else that a box says of itself. Whoever guesses is slowed down.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from cpe_agent.model.document import NAME, SigningKey
from cpe_agent.model.document_check import decode
from cpe_controller import pki, standing, tokens
from cpe_controller.answers import Refused, body_of, refused, unavailable
from cpe_controller.change import in_force
from cpe_controller.limits import Limits, Rate, source
from cpe_controller.store import Store, StoreError

# A request with a P-256 CSR has about a kilobyte.
BODY_MAX_BYTES = 16 * 1024
# Fifty boxes may come at once from behind one carrier's address, each with two requests, and those that are let in cost
# nothing. The second is what one processor can sign and store beside its work.
EACH = Rate(burst=120, every_s=0.5)
TOGETHER = Rate(burst=200, every_s=0.05)
REQUESTS = 2  # of a box that is let in: the root, and its certificate
# A secret has 160 bits; who tries some all the same gets ten tries at once, and then one every six seconds.
GUESS = 11
_GUESSED = frozenset({"token_unknown", "token_used", "token_expired", "token_replaced"})


class Enrolling(msgspec.Struct, frozen=True):
    """What a box asks."""

    network: str
    site: str
    secret: str
    csr: str
    agent_version: str = ""
    instance: str = ""


class Vouching(msgspec.Struct, frozen=True):
    """What a controller hands to a new site. `authority` issues its certificate, `cas` are PEMs, the root first."""

    network: str
    authority: pki.Authority
    cas: tuple[str, ...]
    signing_keys: tuple[SigningKey, ...]
    controllers: tuple[str, ...]

    def chain(self, site: str, request: pki.Request, generation: int, now: dt.datetime) -> str:
        certificate = pki.issue_site(self.authority, self.network, site, request, now, generation)
        return (pki.certificate_pem(certificate) + self.authority.pem()).decode()


def make_app(store: Store, vouching: Callable[[], Vouching], limits: Limits | None = None) -> ASGIApp:
    """`vouching` is asked at every request: keys and addresses change while the server runs."""
    enrolment = _Enrolment(store, vouching, limits or Limits(EACH, TOGETHER))
    routes = [Route("/v1/ca", enrolment.ca), Route("/v1/enroll", enrolment.enroll, methods=["POST"])]
    handlers = {404: _not_found, 405: _not_found, Refused: refused, StoreError: unavailable}
    return Starlette(routes=routes, exception_handlers=handlers)


class _Enrolment:
    def __init__(self, store: Store, vouching: Callable[[], Vouching], limits: Limits) -> None:
        self._store = store
        self._vouching = vouching
        self._limits = limits

    async def ca(self, request: Request) -> Response:
        self._admit(request)
        return Response(self._vouching().cas[0], media_type="application/x-pem-file")

    async def enroll(self, request: Request) -> Response:
        self._admit(request)
        now = dt.datetime.now(dt.UTC)
        asked, csr = _read(await body_of(request, BODY_MAX_BYTES))
        vouching = self._vouching()
        try:
            chain, fresh = redeem(self._store, vouching, asked, csr, now)
        except Refused as refusal:
            if refusal.code in _GUESSED:
                self._limits.charge(_source(request), GUESS)
            raise
        if fresh:
            self._limits.give_back(_source(request), REQUESTS)
        first = in_force(self._store, asked.site)
        return JSONResponse(
            {
                "site": asked.site,
                "network": vouching.network,
                "certificate": chain,
                "cas": list(vouching.cas),
                "signing_keys": [{"id": key.id, "key": key.key} for key in vouching.signing_keys],
                "controllers": list((decode(first.raw).controllers if first else ()) or vouching.controllers),
                "now": now.isoformat(timespec="seconds"),
            }
        )

    def _admit(self, request: Request) -> None:
        if wait_s := self._limits.admit(_source(request), time.monotonic()):
            raise Refused("busy", f"too many requests: come again in {wait_s} s", status=429, retry_after_s=wait_s)


def _source(request: Request) -> str:
    return source(request.client.host if request.client else "")


def redeem(store: Store, vouching: Vouching, asked: Enrolling, csr: pki.Request, now: dt.datetime) -> tuple[str, bool]:
    """The certificate chain for this box, and whether it is new. Raises Refused, StoreError."""
    if asked.network != vouching.network:
        raise Refused("token_unknown", f"this controller is of the network {vouching.network}, not {asked.network}")
    key = tokens.key_of(asked.secret)
    while True:
        entry, site = store.get(key), store.get(standing.SITES + asked.site)
        record, stands = tokens.read(entry) if entry else None, standing.read(site)
        if chain := tokens.judge(record, stands, asked.site, pki.key_hash(csr), now):
            return chain, False
        assert entry is not None and record is not None  # judge refuses what is not there
        if in_force(store, asked.site) is None:
            raise Refused("site_unknown", f"{asked.site} is not in the network that was applied last")
        chain = vouching.chain(asked.site, csr, stands.generation, now)
        used = msgspec.structs.replace(record, key=pki.key_hash(csr), chain=chain)
        enrolled = msgspec.structs.replace(stands, enrolled_at=now)
        writes = [tokens.write(key, used, entry.revision), standing.write(asked.site, enrolled, site)]
        # Of two boxes with one token one is first; the other is judged again.
        if store.cas(writes) is not None:
            return chain, True


def _read(body: bytes) -> tuple[Enrolling, pki.Request]:
    try:
        asked = msgspec.json.decode(body, type=Enrolling)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refused("bad_request", f"that is no request to enrol: {error}") from None
    if not NAME.match(asked.site):
        raise Refused("bad_request", "site: is no name of a site")
    try:
        return asked, pki.request_of(asked.csr)
    except ValueError as error:
        raise Refused("csr_bad", f"csr: {error}") from None


async def _not_found(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    text = "there is GET /v1/ca and POST /v1/enroll here; sites with a certificate use the other port"
    return await refused(request, Refused("bad_request", text, status=status))
