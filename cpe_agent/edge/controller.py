"""What does the controller say, and if nothing, why?

In: base URLs, a pinned authority, our certificate and key, and per call the local address to go out by. Out: the signed
document and the stream of changes, or a `ControllerError` in words for a human. Nothing that is read here is believed:
sizes are bounded while reading, shapes are checked, and the signature is the caller's to verify.

Every call and every stream has a connection of its own. Documents are fetched when they change, so a connection kept
for the next one would mostly be one that died in the meantime, over an uplink that may be gone.

The base URLs are tried in order, starting with the one that answered last.
"""

from __future__ import annotations

import base64
import email.utils
import http
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import httpx
import msgspec
import trio

from cpe_agent.model.document import KEY_ID_HEADER, MAX_BYTES, SIGNATURE_HEADER
from cpe_agent.ports import EdgeError, SignedDocument

# For connecting with TLS, and for each read of a document.
TIMEOUT_S = 5.0
# For a whole document, however slowly it drips: the largest takes this long at 0.5 Mbit/s.
DOCUMENT_TIMEOUT_S = 128.0
# Three heartbeats of 10 s.
SILENCE_S = 30.0
# {"epoch":...,"version":...} with the largest numbers there are is shorter.
LINE_MAX_BYTES = 1024
# A mistyped Retry-After must not orphan a site.
RETRY_AFTER_MAX_S = 3600.0

SIGNATURE_BYTES = 64
KEY_ID_MAX_CHARS = 256
# Enough to recognise a portal's or a proxy's page by.
EXCERPT_BYTES = 60

T = TypeVar("T")


class ControllerError(EdgeError):
    """No answer, or none that can be used. `retry_after_s` is what the controller asked for, if it did."""

    def __init__(self, op: str, cause: str, retry_after_s: float | None = None) -> None:
        super().__init__("controller", op, cause)
        self.retry_after_s = retry_after_s


class HttpsController:
    """A `ControllerPort` over HTTPS with mutual TLS. The files are read at every connection, so that a renewed
    certificate is used at once."""

    def __init__(
        self,
        base_urls: Sequence[str],
        ca_pem_path: Path,
        certificate_path: Path,
        key_path: Path,
        trust_env: bool = False,
        *,
        timeout_s: float = TIMEOUT_S,
        document_timeout_s: float = DOCUMENT_TIMEOUT_S,
        silence_s: float = SILENCE_S,
    ) -> None:
        if not base_urls:
            raise ValueError("a controller needs at least one base URL")
        self._base_urls = [url.rstrip("/") for url in base_urls]
        self._last_good = 0
        self._ca_pem_path = ca_pem_path
        self._certificate_path = certificate_path
        self._key_path = key_path
        self._trust_env = trust_env
        self._timeout_s = timeout_s
        self._document_timeout_s = document_timeout_s
        self._silence_s = silence_s
        self._streams: set[ChangeStream] = set()
        # It logs every request at INFO, in words of its own.
        logging.getLogger("httpx").setLevel(logging.WARNING)

    async def document(self, local_address: str, etag: str | None) -> tuple[SignedDocument, str] | None:
        """The signed document and its ETag; None if `etag` is still current. Raises ControllerError."""

        async def fetch(base_url: str) -> tuple[SignedDocument, str] | None:
            with _words("document", base_url):
                with trio.move_on_after(self._document_timeout_s):
                    return await self._fetch(base_url, local_address, etag)
                raise ControllerError("document", f"{base_url}: not finished after {self._document_timeout_s:g} s")

        return await self._first_good("document", fetch)

    def changes(self, local_address: str) -> ChangeStream:
        """(epoch, version) served now, then at each change; None for a heartbeat. Connects at the first step, which ends
        any earlier stream: an agent follows one. Raises ControllerError when it cannot connect, and when the stream
        breaks, ends or falls silent. Leaving it early, close it (`contextlib.aclosing`)."""

        async def connect() -> _Connection:
            # Whoever left a stream early without closing it does not collect connections.
            for other in self._streams - {stream}:
                await other.aclose()
            return await self._first_good("changes", lambda base_url: self._subscribe(base_url, local_address))

        stream = ChangeStream(connect, self._silence_s, self._streams.discard)
        self._streams.add(stream)
        return stream

    async def aclose(self) -> None:
        """Close every stream that is still open."""
        for stream in list(self._streams):
            await stream.aclose()
        await trio.lowlevel.checkpoint()

    async def _first_good(self, op: str, attempt: Callable[[str], Coroutine[None, None, T]]) -> T:
        failures: list[ControllerError] = []
        for offset in range(len(self._base_urls)):
            index = (self._last_good + offset) % len(self._base_urls)
            try:
                result = await attempt(self._base_urls[index])
            except ControllerError as error:
                failures.append(error)
                continue
            self._last_good = index
            return result
        asked = [failure.retry_after_s for failure in failures if failure.retry_after_s is not None]
        raise ControllerError(op, "; ".join(failure.cause for failure in failures), max(asked, default=None))

    async def _fetch(self, base_url: str, local_address: str, etag: str | None) -> tuple[SignedDocument, str] | None:
        headers = {"accept": "application/json"} | ({} if etag is None else {"if-none-match": etag})
        async with AsyncExitStack() as stack:
            response = await self._get(stack, f"{base_url}/v1/document", local_address, headers, self._timeout_s)
            if response.status_code == http.HTTPStatus.NOT_MODIFIED and etag is not None:
                return None
            await _check("document", base_url, response, "application/json")
            raw = await _body(base_url, response)
        return _signed(base_url, response.headers, raw)

    async def _subscribe(self, base_url: str, local_address: str) -> _Connection:
        with _words("changes", base_url):
            async with AsyncExitStack() as stack:
                headers = {"accept": "application/x-ndjson"}
                url = f"{base_url}/v1/changes"
                response = await self._get(stack, url, local_address, headers, self._silence_s)
                await _check("changes", base_url, response, "application/x-ndjson")
                chunks = await stack.enter_async_context(_chunks(response))
                return _Connection(stack.pop_all(), chunks, base_url)
        raise AssertionError("_words raises what it catches")

    async def _get(
        self, stack: AsyncExitStack, url: str, local_address: str, headers: dict[str, str], read_timeout_s: float
    ) -> httpx.Response:
        """A response whose body is still to be read; `stack` holds its connection."""
        client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(
                verify=self._tls(), http2=False, local_address=local_address or None, trust_env=self._trust_env
            ),
            timeout=httpx.Timeout(self._timeout_s, read=read_timeout_s),
            trust_env=self._trust_env,
            # A signature is over exact bytes, and what is not compressed cannot explode.
            headers={"user-agent": "cpe-agent", "accept-encoding": "identity", **headers},
        )
        await stack.enter_async_context(client)
        return await stack.enter_async_context(client.stream("GET", url))

    def _tls(self) -> ssl.SSLContext:
        try:
            # With a file of ours, the system's own authorities are not loaded: the pinned one is the only one.
            context = ssl.create_default_context(cafile=self._ca_pem_path)
        except (OSError, ValueError) as error:
            raise ControllerError("connect", f"{self._ca_pem_path} cannot be used as authority: {error}") from None
        try:
            context.load_cert_chain(self._certificate_path, self._key_path)
        except (OSError, ValueError) as error:
            files = f"{self._certificate_path} with {self._key_path}"
            raise ControllerError("connect", f"{files} cannot be used as identity: {error}") from None
        return context


class ChangeStream:
    """An async iterator over one `GET /v1/changes`. One task reads it."""

    def __init__(
        self,
        connect: Callable[[], Coroutine[None, None, _Connection]],
        silence_s: float,
        forget: Callable[[ChangeStream], None],
    ) -> None:
        self._connect = connect
        self._silence_s = silence_s
        self._forget = forget
        self._connection: _Connection | None = None
        self._closed = False
        self._unread = bytearray()

    def __aiter__(self) -> ChangeStream:
        return self

    async def __anext__(self) -> tuple[int, int] | None:
        if self._closed:
            raise StopAsyncIteration
        try:
            if self._connection is None:
                self._connection = await self._connect()
            base_url = self._connection.base_url
            with _words("changes", base_url):
                # Over whole lines, not reads: a connection that drips bytes says nothing either.
                with trio.move_on_after(self._silence_s):
                    return _change(base_url, await self._line(self._connection))
                raise ControllerError("changes", f"{base_url}: silent for {self._silence_s:g} s")
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Drop the connection; iteration is over."""
        self._closed = True
        self._forget(self)
        connection, self._connection = self._connection, None
        if connection is not None:
            # Also when cancelled: a farewell of a second at most, then the socket is closed whatever comes.
            with trio.move_on_after(1, shield=True), suppress(httpx.HTTPError, OSError):
                await connection.stack.aclose()

    async def _line(self, connection: _Connection) -> bytes:
        while (end := self._unread.find(b"\n")) < 0:
            if len(self._unread) > LINE_MAX_BYTES:
                break
            try:
                self._unread += await anext(connection.chunks)
            except StopAsyncIteration:
                raise ControllerError("changes", f"{connection.base_url}: ended the stream") from None
        if not 0 <= end <= LINE_MAX_BYTES:
            raise ControllerError("changes", f"{connection.base_url}: sent a line longer than {LINE_MAX_BYTES} bytes")
        line = bytes(self._unread[:end])
        del self._unread[: end + 1]
        return line


class _Connection(NamedTuple):
    stack: AsyncExitStack
    chunks: AsyncIterator[bytes]
    base_url: str


class _Line(msgspec.Struct, frozen=True):
    """A change or a heartbeat. Fields that we do not know are left to newer agents."""

    epoch: Annotated[int, msgspec.Meta(ge=0)] | None = None
    version: Annotated[int, msgspec.Meta(ge=1)] | None = None
    heartbeat: bool = False


def _change(base_url: str, line: bytes) -> tuple[int, int] | None:
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        decoded = msgspec.json.decode(line, type=_Line)
        if decoded.epoch is not None and decoded.version is not None:
            return decoded.epoch, decoded.version
        if decoded.heartbeat:
            return None
    raise ControllerError(
        "changes", f"{base_url}: sent a line that is neither a version nor a heartbeat: {line[:80]!r}"
    )


@contextmanager
def _words(op: str, base_url: str) -> Iterator[None]:
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
    """The innermost words: what httpx raises often has none, and trio's "all attempts failed" hides the reason."""
    words = ""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, BaseExceptionGroup):
            return "; ".join(_root(one) for one in cause.exceptions)
        words = str(cause) or words
        cause = cause.__cause__ or cause.__context__
    return words


@asynccontextmanager
async def _chunks(response: httpx.Response) -> AsyncIterator[AsyncIterator[bytes]]:
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


async def _check(op: str, base_url: str, response: httpx.Response, content_type: str) -> None:
    """Raises unless this is 200 with `content_type`."""
    found = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if response.status_code == http.HTTPStatus.OK and found == content_type:
        return
    excerpt = b""
    async with _chunks(response) as chunks:
        async for chunk in chunks:
            excerpt += chunk[: EXCERPT_BYTES - len(excerpt)]
            if len(excerpt) >= EXCERPT_BYTES:
                break
    phrase = f"{response.status_code} {response.reason_phrase}".strip()
    looks = f"{found or 'no content type'}, {excerpt!r}" if excerpt else "an empty body"
    cause = f"{base_url}: answered {phrase} with {looks}"
    if response.status_code == http.HTTPStatus.OK:
        cause += f"; expected {content_type}: is this our controller?"
    raise ControllerError(op, cause, _retry_after_s(response.headers))


async def _body(base_url: str, response: httpx.Response) -> bytes:
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
    async with _chunks(response) as chunks:
        async for chunk in chunks:
            if len(raw) + len(chunk) > MAX_BYTES:
                raise too_long
            raw += chunk
    if not raw:
        raise ControllerError("document", f"{base_url}: answered 200 with an empty body")
    return bytes(raw)


def _signed(base_url: str, headers: httpx.Headers, raw: bytes) -> tuple[SignedDocument, str]:
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
    except (ValueError, TypeError):
        return None
    return min(max(asked_s, 0.0), RETRY_AFTER_MAX_S)
