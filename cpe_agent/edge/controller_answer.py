"""Is this an answer of a controller, and what is in it?

In: what httpx received, or raised. Out: bodies, documents, changes, or a `ControllerError` that says what was found
instead. Nothing that is read here is believed: sizes are bounded while reading and shapes are checked. The signature
is the caller's to verify.
"""

from __future__ import annotations

import base64
import email.utils
import http
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Annotated

import httpx
import msgspec
import trio

from cpe_agent.model.document import KEY_ID_HEADER, MAX_BYTES, SIGNATURE_HEADER
from cpe_agent.ports import Change, EdgeError, SignedDocument

# {"epoch":...,"version":...} with the largest numbers there are is shorter.
LINE_MAX_BYTES = 1024
# A mistyped Retry-After must not orphan a site.
RETRY_AFTER_MAX_S = 3600.0

SIGNATURE_BYTES = 64
KEY_ID_MAX_CHARS = 256
# Enough to recognise a portal's or a proxy's page by.
EXCERPT_BYTES = 60
# What a controller says when it refuses is a sentence or two.
REFUSAL_MAX_CHARS = 300


# A refusal in the controller's own words, or a certificate with its authorities.
SMALL_BODY_MAX_BYTES = 64 * 1024


class ControllerError(EdgeError):
    """No answer, or none that can be used. `retry_after_s` is what the controller asked for, if it did; `code` is its
    word for a refusal ("" if it gave none); `answered`: something that is our controller did answer."""

    def __init__(
        self, op: str, cause: str, retry_after_s: float | None = None, code: str = "", answered: bool = False
    ) -> None:
        super().__init__("controller", op, cause)
        self.retry_after_s = retry_after_s
        self.code = code
        self.answered = answered


class _Refusal(msgspec.Struct, frozen=True):
    error: str
    code: str = ""


class _Line(msgspec.Struct, frozen=True):
    """A change or a heartbeat. Fields that we do not know are left to newer agents."""

    epoch: Annotated[int, msgspec.Meta(ge=0)] | None = None
    version: Annotated[int, msgspec.Meta(ge=1)] | None = None
    heartbeat: bool = False
    report: bool = False


def change(base_url: str, line: bytes) -> Change:
    """What a line of changes says."""
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        decoded = msgspec.json.decode(line, type=_Line)
        if decoded.epoch is not None and decoded.version is not None:
            return Change((decoded.epoch, decoded.version), decoded.report)
        if decoded.heartbeat:
            return Change(None, decoded.report)
    raise ControllerError(
        "changes", f"{base_url}: sent a line that is neither a version nor a heartbeat: {line[:80]!r}"
    )


@contextmanager
def words(op: str, base_url: str) -> Iterator[None]:
    """What httpx raises, in words that say what to look at."""
    try:
        yield
    except httpx.ConnectTimeout:
        raise ControllerError(op, f"{base_url}: no connection in time") from None
    except httpx.TimeoutException:
        raise ControllerError(op, f"{base_url}: connected, but it does not answer") from None
    except httpx.ConnectError as error:
        raise ControllerError(op, f"{base_url}: cannot connect: {_root(error)}") from None
    except (httpx.ReadError, httpx.RemoteProtocolError) as error:
        # In TLS 1.3 a client hears that its certificate was refused, or missed, when it first reads; often not at all.
        what = _root(error) or "without a word"
        if "without" in what:
            what += " (does the controller accept our certificate?)"
        raise ControllerError(op, f"{base_url}: the connection broke: {what}") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ControllerError(op, f"{base_url}: {type(error).__name__}: {error}") from None


def _root(error: BaseException) -> str:
    """The innermost words: what httpx raises often has none, and trio's "all attempts failed" hides the reason. What
    the kernel said ends it: anything behind that was already being handled, and is another story."""
    found = ""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, BaseExceptionGroup):
            return "; ".join(dict.fromkeys(_root(one) for one in cause.exceptions))
        if isinstance(cause, OSError) and cause.errno is not None:
            plain = not isinstance(cause, (ssl.SSLError, socket.gaierror))
            return os.strerror(cause.errno) if plain else str(cause)
        found = str(cause) or found
        cause = cause.__cause__ or cause.__context__
    return found


@asynccontextmanager
async def chunks_of(response: httpx.Response) -> AsyncIterator[AsyncIterator[bytes]]:
    """The body as it comes. Inside are half a dozen nested async generators that nobody closes when the outermost is
    left early; a cancelled read unwinds them all."""
    chunks = response.aiter_raw()
    try:
        yield chunks
    finally:
        with trio.CancelScope() as scope, suppress(httpx.HTTPError):
            scope.cancel()
            async for _ in chunks:
                pass


async def check(op: str, base_url: str, response: httpx.Response, content_type: str) -> None:
    """Raises unless this is 200 with `content_type`."""
    found = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if response.status_code == http.HTTPStatus.OK and found == content_type:
        return
    body = b""
    at_most = SMALL_BODY_MAX_BYTES if found == "application/json" else EXCERPT_BYTES
    async with chunks_of(response) as chunks:
        async for chunk in chunks:
            body += chunk[: at_most - len(body)]
            if len(body) >= at_most:
                break
    retry_after_s = _retry_after_s(response.headers)
    if found == "application/json":
        with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            refusal = msgspec.json.decode(body, type=_Refusal)
            said = " ".join(refusal.error.split())[:REFUSAL_MAX_CHARS]
            raise ControllerError(op, f"{base_url}: {said}", retry_after_s, refusal.code[:40], True)
    excerpt = body[:EXCERPT_BYTES]
    phrase = f"{response.status_code} {response.reason_phrase}".strip()
    looks = f"{found or 'no content type'}, {excerpt!r}" if excerpt else "an empty body"
    cause = f"{base_url}: answered {phrase} with {looks}"
    if response.status_code == http.HTTPStatus.OK:
        cause += f"; expected {content_type}: is this our controller?"
    raise ControllerError(op, cause, retry_after_s, answered=True)


async def small_body(op: str, base_url: str, response: httpx.Response) -> bytes:
    """All of a body that has no reason to be long."""
    body = bytearray()
    async with chunks_of(response) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > SMALL_BODY_MAX_BYTES:
                raise ControllerError(op, f"{base_url}: answered with more than {SMALL_BODY_MAX_BYTES} bytes")
    return bytes(body)


async def document_body(base_url: str, response: httpx.Response) -> bytes:
    """All of the body, and never more than MAX_BYTES of it."""
    encoding = response.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise ControllerError("document", f"{base_url}: sent the document as {encoding!r}, unasked")
    too_long = ControllerError(
        "document", f"{base_url}: sends more than the {MAX_BYTES} bytes that a document may have"
    )
    if int(response.headers.get("content-length", 0)) > MAX_BYTES:
        raise too_long
    raw = bytearray()
    async with chunks_of(response) as chunks:
        async for chunk in chunks:
            if len(raw) + len(chunk) > MAX_BYTES:
                raise too_long
            raw += chunk
    if not raw:
        raise ControllerError("document", f"{base_url}: answered 200 with an empty body")
    return bytes(raw)


def signed_document(base_url: str, headers: httpx.Headers, raw: bytes) -> tuple[SignedDocument, str]:
    """`raw` with its signature, and its ETag."""
    for name in (SIGNATURE_HEADER, KEY_ID_HEADER, "ETag"):
        if not headers.get(name):
            raise ControllerError("document", f"{base_url}: sent a document without the header {name}")
    text, key_id = headers[SIGNATURE_HEADER], headers[KEY_ID_HEADER]
    try:
        signature = base64.b64decode(text, validate=True)
    except ValueError:
        signature = b""
    if len(signature) != SIGNATURE_BYTES:
        shown = f"{SIGNATURE_HEADER}: {text[:EXCERPT_BYTES]!r}"
        raise ControllerError("document", f"{base_url}: {shown} is not {SIGNATURE_BYTES} bytes in base64")
    if len(key_id) > KEY_ID_MAX_CHARS:
        raise ControllerError("document", f"{base_url}: {KEY_ID_HEADER} is longer than {KEY_ID_MAX_CHARS} characters")
    return SignedDocument(raw=raw, signature=signature, key_id=key_id), headers["ETag"]


def _retry_after_s(headers: httpx.Headers) -> float | None:
    """Seconds, from either of the two forms. A date is held against the answer's own Date: our clock may be wrong."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), RETRY_AFTER_MAX_S)
    try:
        until = email.utils.parsedate_to_datetime(text)
        asked_s = (until - email.utils.parsedate_to_datetime(headers.get("date", ""))).total_seconds()
    except (ValueError, TypeError, OverflowError):
        # A year or an hour that no date can have overflows rather than being refused.
        return None
    return min(max(asked_s, 0.0), RETRY_AFTER_MAX_S)
