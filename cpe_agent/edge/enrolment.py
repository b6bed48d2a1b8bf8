"""Who answers at a token's addresses, and does it let us in?

In: an address to enrol at, and the pin of the root. Out: the root that has this pin, and what the controller grants, or
`EnrolmentError` with the kind of failure. The root itself is fetched from whoever answers, without believing them: only
its fingerprint counts. From then on the server has to prove itself by that root.
"""

from __future__ import annotations

import hashlib
import http
import re
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress

import httpx
import msgspec
import trio
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from cpe_agent.edge.controller_answer import ControllerError, check, small_body, words
from cpe_agent.edge.https import TIMEOUT_S, ClockDoubtful, Https, Now, server_tls
from cpe_agent.edge.names import Names, NameUnknown
from cpe_agent.model.enrolment import EnrolmentRequest, Granted
from cpe_agent.ports import EnrolmentError

# For a whole exchange, however slowly it drips.
EXCHANGE_S = 20.0
ROOTS_MAX = 10

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class HttpsEnrolment:
    """An `EnrolmentPort`. `now`: wall time, never below what has certainly passed."""

    def __init__(self, names: Names, now: Now, *, timeout_s: float = TIMEOUT_S, trust_env: bool = False) -> None:
        self._names = names
        self._now = now
        self._timeout_s = timeout_s
        self._trust_env = trust_env

    async def root(self, url: str, pin: str) -> str:
        """The root (PEM) whose certificate has this pin. Raises EnrolmentError."""
        body = await self._ask(url, "/v1/ca", None, _anybody, check_time=False)
        for pem in _PEM.findall(body)[:ROOTS_MAX]:
            with suppress(ValueError):
                root = x509.load_pem_x509_certificate(pem)
                if hashlib.sha256(root.public_bytes(serialization.Encoding.DER)).hexdigest() == pin:
                    return root.public_bytes(serialization.Encoding.PEM).decode()
        cause = f"{url}: it is not the controller of this token that answers there, or the token was mistyped"
        raise EnrolmentError("captive", cause)

    async def enroll(self, url: str, root_pem: str, request: EnrolmentRequest) -> Granted:
        """Ask to be let in. Raises EnrolmentError."""
        body = await self._ask(url, "/v1/enroll", msgspec.json.encode(request), lambda: server_tls(root_pem))
        try:
            return msgspec.json.decode(body, type=Granted)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise EnrolmentError("refused", f"{url}: its answer cannot be read: {error}") from None

    async def _ask(
        self,
        url: str,
        path: str,
        content: bytes | None,
        tls: Callable[[], ssl.SSLContext],
        *,
        check_time: bool = True,
    ) -> bytes:
        https = Https(
            tls,
            self._names,
            self._now,
            timeout_s=self._timeout_s,
            trust_env=self._trust_env,
            check_time=check_time,
        )
        headers = {"accept": "*/*", "content-type": "application/json"}
        try:
            with words("enroll", url):
                with trio.move_on_after(EXCHANGE_S):
                    async with AsyncExitStack() as stack:
                        try:
                            response = await https.send(stack, f"{url}{path}", headers, content=content)
                        except ClockDoubtful as error:
                            raise EnrolmentError("clock", f"{url}: {error}") from None
                        except NameUnknown as error:
                            raise EnrolmentError("no_dns", f"{url}: {error}") from None
                        return await self._body(url, response, content is not None)
                raise EnrolmentError("unreachable", f"{url}: not finished after {EXCHANGE_S:g} s")
        except ControllerError as error:
            kind = "refused" if error.answered else "unreachable"
            if "CERTIFICATE_VERIFY_FAILED" in error.cause:
                kind = "captive"
            raise EnrolmentError(error.code or kind, error.cause, error.retry_after_s or 0.0) from None

    async def _body(self, url: str, response: httpx.Response, verified: bool) -> bytes:
        if verified:
            await check("enroll", url, response, "application/json")
        elif response.status_code != http.HTTPStatus.OK:
            if response.status_code in (http.HTTPStatus.TOO_MANY_REQUESTS, http.HTTPStatus.SERVICE_UNAVAILABLE):
                await check("enroll", url, response, "")
            phrase = f"{response.status_code} {response.reason_phrase}".strip()
            raise EnrolmentError("captive", f"{url}: answered {phrase} when asked for its root")
        return await small_body("enroll", url, response)


def _anybody() -> ssl.SSLContext:
    """Believes anybody: what comes is judged by its fingerprint."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
