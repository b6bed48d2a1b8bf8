"""What does the controller say, and if nothing, why?

In: base URLs, a pinned authority, our certificate and key, and per call the local address to go out by. Out: the signed
document and the stream of changes, or a `ControllerError` in words for a human.

Every call and every stream has a connection of its own. Documents are fetched when they change, so a connection kept
for the next one would mostly be one that died in the meantime, over an uplink that may be gone.

The base URLs are tried in order, starting with the one that answered last.
"""

from __future__ import annotations

import http
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import httpx
import msgspec
import trio

from cpe_agent.edge.controller_answer import (
    LINE_MAX_BYTES,
    ControllerError,
    change,
    check,
    chunks_of,
    document_body,
    signed_document,
    small_body,
    words,
)
from cpe_agent.edge.https import TIMEOUT_S, Https, Now, server_tls
from cpe_agent.edge.names import Names
from cpe_agent.model.document import SCHEMA
from cpe_agent.model.enrolment import Renewed
from cpe_agent.model.site_report import SiteReport
from cpe_agent.ports import Change, SignedDocument

__all__ = ["ChangeStream", "ControllerError", "HttpsController"]

# For a whole document, however slowly it drips: the largest takes this long at 0.5 Mbit/s.
DOCUMENT_TIMEOUT_S = 128.0
# Three heartbeats of 10 s.
SILENCE_S = 30.0
# How long a poll is held: below the minute at which proxies give up.
POLL_S = 25.0
# Which schemas of documents this agent speaks, newest last.
SCHEMAS = {"cpe-schemas": str(SCHEMA)}

T = TypeVar("T")


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
        names: Names | None = None,
        now: Now = time.time,
        timeout_s: float = TIMEOUT_S,
        document_timeout_s: float = DOCUMENT_TIMEOUT_S,
        silence_s: float = SILENCE_S,
    ) -> None:
        if not base_urls:
            raise ValueError("a controller needs at least one base URL")
        self._first_urls = [url.rstrip("/") for url in base_urls]
        self._base_urls = self._first_urls
        self._last_good = 0
        self._ca_pem_path = ca_pem_path
        self._cas: tuple[str, ...] = ()
        self._certificate_path = certificate_path
        self._key_path = key_path
        self._https = Https(self._tls, names, now, timeout_s=timeout_s, trust_env=trust_env)
        self._timeout_s = timeout_s
        self._document_timeout_s = document_timeout_s
        self._silence_s = silence_s
        self._streams: set[ChangeStream] = set()
        # It logs every request at INFO, in words of its own.
        logging.getLogger("httpx").setLevel(logging.WARNING)

    async def document(self, local_address: str, etag: str | None) -> tuple[SignedDocument, str] | None:
        """The signed document and its ETag; None if `etag` is still current. Raises ControllerError."""

        async def fetch(base_url: str) -> tuple[SignedDocument, str] | None:
            with words("document", base_url):
                with trio.move_on_after(self._document_timeout_s):
                    return await self._fetch(base_url, local_address, etag)
                raise ControllerError("document", f"{base_url}: not finished after {self._document_timeout_s:g} s")

        return await self._first_good("document", fetch)

    def changes(self, local_address: str) -> ChangeStream:
        """What is served now, then each change, each wish for a report and each heartbeat. Connects at the first step,
        which ends any earlier stream: an agent follows one. Raises ControllerError when it cannot connect, and when the
        stream breaks, ends or falls silent. Leaving it early, close it (`contextlib.aclosing`)."""

        async def connect() -> _Connection:
            # Whoever left a stream early without closing it does not collect connections.
            for other in self._streams - {stream}:
                await other.aclose()
            return await self._first_good("changes", lambda base_url: self._subscribe(base_url, local_address))

        stream = ChangeStream(connect, self._silence_s, self._streams.discard)
        self._streams.add(stream)
        return stream

    async def poll(self, local_address: str, after: tuple[int, int] | None) -> Change:
        """One line of changes, held by the controller for at most POLL_S: for networks that cut or swallow a stream.
        Raises ControllerError."""
        query = f"?after={after[0]}.{after[1]}&wait={POLL_S:g}" if after else f"?wait={POLL_S:g}"
        patience_s = POLL_S + self._timeout_s
        body = await self._exchange(
            "changes", f"/v1/changes{query}", local_address, None, "application/x-ndjson", patience_s
        )
        return change("the controller", body.partition(b"\n")[0])

    async def report(self, local_address: str, report: SiteReport) -> None:
        """Tell the controller how this site fares. Raises ControllerError."""
        content = msgspec.json.encode(report)
        await self._exchange("status", "/v1/status", local_address, content, "application/json", self._timeout_s)

    async def renew(self, local_address: str, csr_pem: str) -> Renewed:
        """A certificate for the next key of this site. Raises ControllerError."""
        content = msgspec.json.encode({"csr": csr_pem})
        body = await self._exchange(
            "certificate", "/v1/certificate", local_address, content, "application/json", self._timeout_s
        )
        try:
            return msgspec.json.decode(body, type=Renewed)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ControllerError("certificate", f"the answer cannot be read: {error}") from None

    def use(self, base_urls: Sequence[str]) -> None:
        """These are the controller's addresses now, best first; those from the beginning stay as the last resort."""
        urls = list(dict.fromkeys([*(url.rstrip("/") for url in base_urls), *self._first_urls]))
        if urls != self._base_urls:
            self._base_urls, self._last_good = urls, 0

    def trust(self, cas: Sequence[str]) -> None:
        """Only these (PEM) vouch for the controller from the next connection on; none: the file of the settings."""
        self._cas = tuple(cas)

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
        cause = "; ".join(failure.cause for failure in failures)
        code = next((failure.code for failure in failures if failure.code), "")
        answered = any(failure.answered for failure in failures)
        raise ControllerError(op, cause, max(asked, default=None), code, answered)

    async def _fetch(self, base_url: str, local_address: str, etag: str | None) -> tuple[SignedDocument, str] | None:
        headers = {"accept": "application/json", **SCHEMAS} | ({} if etag is None else {"if-none-match": etag})
        async with AsyncExitStack() as stack:
            response = await self._https.send(stack, f"{base_url}/v1/document", headers, local_address=local_address)
            if response.status_code == http.HTTPStatus.NOT_MODIFIED and etag is not None:
                return None
            await check("document", base_url, response, "application/json")
            raw = await document_body(base_url, response)
        return signed_document(base_url, response.headers, raw)

    async def _subscribe(self, base_url: str, local_address: str) -> _Connection:
        with words("changes", base_url):
            async with AsyncExitStack() as stack:
                headers = {"accept": "application/x-ndjson", **SCHEMAS}
                url = f"{base_url}/v1/changes"
                response = await self._https.send(
                    stack, url, headers, local_address=local_address, read_timeout_s=self._silence_s
                )
                await check("changes", base_url, response, "application/x-ndjson")
                chunks = await stack.enter_async_context(chunks_of(response))
                return _Connection(stack.pop_all(), chunks, base_url)
        raise AssertionError("words() raises what it catches")

    async def _exchange(
        self, op: str, path: str, local_address: str, content: bytes | None, accept: str, patience_s: float
    ) -> bytes:
        """One small request, and the answer's body (empty for 204)."""

        async def attempt(base_url: str) -> bytes:
            with words(op, base_url):
                with trio.move_on_after(self._timeout_s + patience_s):
                    async with AsyncExitStack() as stack:
                        headers = {"accept": accept, "content-type": "application/json", **SCHEMAS}
                        response = await self._https.send(
                            stack,
                            f"{base_url}{path}",
                            headers,
                            local_address=local_address,
                            read_timeout_s=patience_s,
                            content=content,
                        )
                        if response.status_code == http.HTTPStatus.NO_CONTENT and content is not None:
                            return b""
                        await check(op, base_url, response, accept)
                        return await small_body(op, base_url, response)
                raise ControllerError(op, f"{base_url}: not finished after {self._timeout_s + patience_s:g} s")

        return await self._first_good(op, attempt)

    def _tls(self) -> ssl.SSLContext:
        try:
            context = server_tls("\n".join(self._cas)) if self._cas else server_tls(None, str(self._ca_pem_path))
        except (OSError, ValueError) as error:
            whose = "the document's trust.cas" if self._cas else self._ca_pem_path
            raise ControllerError("connect", f"{whose} cannot be used as authority: {error}") from None
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
        self._reading: trio.CancelScope | None = None
        self._closed = False
        self._unread = bytearray()

    def __aiter__(self) -> ChangeStream:
        return self

    async def __anext__(self) -> Change:
        if self._closed:
            raise StopAsyncIteration
        with trio.CancelScope() as self._reading:
            try:
                return await self._next()
            except BaseException:
                await self._drop()
                raise
            finally:
                self._reading = None
        raise StopAsyncIteration  # closed by another task

    async def aclose(self) -> None:
        """Drop the connection; iteration is over, also for a task that waits in it."""
        if self._reading is not None:
            self._closed = True
            self._reading.cancel()
        else:
            await self._drop()

    async def _next(self) -> Change:
        if self._connection is None:
            self._connection = await self._connect()
        base_url = self._connection.base_url
        with words("changes", base_url):
            # Over whole lines, not reads: a connection that drips bytes says nothing either.
            with trio.move_on_after(self._silence_s):
                return change(base_url, await self._line(self._connection))
            raise ControllerError("changes", f"{base_url}: silent for {self._silence_s:g} s")

    async def _drop(self) -> None:
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
