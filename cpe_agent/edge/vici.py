"""How does the agent talk to charon, from trio, without ever hanging on it?

In: the path of charon's VICI socket, commands with nested messages, event names. Out: replies, streamed replies and
events as text, or a `ViciError`. Bytes are vici_codec's business; sockets, bounds and failure are here.

A client keeps ONE connection for requests and one more for each `events()` block, since a request that charon answers
late would otherwise hold up the events that it causes. Connections are made when first needed, so that the agent
starts before charon does and outlives it.

What may go wrong, and what the caller can then assume:

| what happened                         | raised        | connection   | did charon act on it?           |
|---------------------------------------|---------------|--------------|---------------------------------|
| charon says `success: no`             | `ViciRefused` | kept         | no, or it goes on (own timeout) |
| charon does not know the command      | `ViciRefused` | kept         | no                              |
| the message does not fit the protocol | `ViciRefused` | kept         | never sent                      |
| no connection, EOF, reset, bad bytes  | `ViciLost`    | closed       | unknown: read before you repeat |
| the time is up while queueing         | `ViciLost`    | kept         | never sent                      |
| the time is up after sending began    | `ViciLost`    | closed       | unknown: read before you repeat |
| cancelled after sending began         | `Cancelled`   | closed       | unknown: read before you repeat |

Nothing is repeated here (initiate and terminate are not idempotent); the next call connects anew. An idle connection
that charon has closed is noticed before anything is sent on it, so a restart of charon between two calls costs nobody
an error.
"""

from __future__ import annotations

import math
import select
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio
from vici.protocol import Packet

from cpe_agent.edge.vici_codec import (
    MAX_PACKET_BYTES,
    Outgoing,
    Reply,
    Value,
    ViciError,
    ViciLost,
    ViciRefused,
    decode_message,
    decode_packet,
    encode_request,
    encode_subscription,
    section,
    text,
    texts,
)

__all__ = [
    "Outgoing",
    "Reply",
    "Value",
    "ViciClient",
    "ViciError",
    "ViciEvents",
    "ViciLost",
    "ViciRefused",
    "open_vici",
    "section",
    "text",
    "texts",
]

# A listing of 5,000 connections takes charon 0.5 s, on a slow router several times that. Longer means it hangs.
DEFAULT_TIMEOUT_S = 10.0
# The listen backlog is 3: with it full, connect() hands back a socket that is not connected. charon accepts within ms.
CONNECT_RETRY_S = 0.02
RECEIVE_BYTES = 64 * 1024

_LENGTH = struct.Struct("!I")
# (what was asked, payload) -> message.
Decode = Callable[[str, bytes], Reply]


@asynccontextmanager
async def open_vici(path: Path, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> AsyncIterator[ViciClient]:
    """A client for the charon behind `path`; it connects at its first call and is closed on the way out."""
    client = ViciClient(path, timeout_s=timeout_s)
    try:
        yield client
    finally:
        client.close()


class ViciClient:
    """Requests to one charon. Tasks may share it: requests queue, one at a time. `timeout_s` bounds each call."""

    def __init__(self, path: Path, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._turn = trio.Lock()
        self._connection: _Connection | None = None

    async def request(
        self, command: str, message: Mapping[str, Outgoing] | None = None, *, timeout_s: float | None = None
    ) -> Reply:
        """charon's one reply to `command`. Raises ViciRefused, ViciLost."""
        _, reply = await self._call(command, message, None, timeout_s)
        return reply

    async def collect(
        self,
        command: str,
        message: Mapping[str, Outgoing] | None,
        event: str,
        *,
        timeout_s: float | None = None,
        known: dict[bytes, Reply] | None = None,
    ) -> list[Reply]:
        """What charon streams as `event` in answer to `command`, in order: list-sas with list-sa, and the like.

        All or nothing: a listing that breaks off raises, since half a listing read as a whole would prune what lives.
        `known`: what was decoded of such a listing before, by its bytes, is not decoded again, which would take thirty
        times as long; then it has what this one said.
        """
        if known is None:
            return (await self._call(command, message, event, timeout_s))[0]
        told: dict[bytes, Reply] = {}

        def decode(op: str, payload: bytes) -> Reply:
            reply = told[payload] = known.get(payload) or decode_message(op, payload)
            return reply

        streamed, _ = await self._call(command, message, event, timeout_s, decode)
        known.clear()
        known.update(told)
        return streamed

    @asynccontextmanager
    async def events(self, *names: str, timeout_s: float | None = None) -> AsyncIterator[ViciEvents]:
        """Subscribe on a connection of its own. Inside the block, charon has confirmed every name: what is listed
        from here on and what is iterated here leave no gap. `timeout_s` bounds connecting and subscribing.

        Iterating waits without bound (quiet is normal) and raises ViciLost when charon goes. A charon that is alive
        but stuck is silent here; requests find it out.
        """
        op = ",".join(names)
        with _bounded(op, self._timeout_s if timeout_s is None else timeout_s):
            connection = await _connect(self._path, op)
            try:
                for name in names:
                    await connection.subscribe(name)
            except BaseException:
                connection.close()
                raise
        try:
            yield ViciEvents(connection, op)
        finally:
            connection.close()

    def close(self) -> None:
        """Drop the connection, if there is one. A later call connects again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _call(
        self,
        command: str,
        message: Mapping[str, Outgoing] | None,
        event: str | None,
        timeout_s: float | None,
        decode: Decode = decode_message,
    ) -> tuple[list[Reply], Reply]:
        packet = encode_request(command, message or {})
        with _bounded(command, self._timeout_s if timeout_s is None else timeout_s):
            async with self._turn:
                connection = await self._ready_connection(command)
                try:
                    return await connection.exchange(command, packet, event, decode)
                except ViciRefused:
                    raise
                except BaseException:
                    # Cancelled included: the rest of this reply would be taken for the answer to the next request.
                    self.close()
                    raise

    async def _ready_connection(self, command: str) -> _Connection:
        if self._connection is not None and not self._connection.is_idle():
            self.close()
        if self._connection is None:
            self._connection = await _connect(self._path, command)
        return self._connection


class ViciEvents:
    """The events of one subscription: `async for name, message in events`."""

    def __init__(self, connection: _Connection, op: str) -> None:
        self._connection = connection
        self._op = op

    def __aiter__(self) -> ViciEvents:
        return self

    async def __anext__(self) -> tuple[str, Reply]:
        return await self._connection.next_event(self._op)


class _Connection:
    """One connected socket and the packets on it. Receiving can be cancelled between any two bytes and resumed."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._received = bytearray()
        # Events that arrive while a later name of the same subscription is still being confirmed.
        self._early: list[tuple[str, Reply]] = []

    def close(self) -> None:
        self._stream.socket.close()

    def is_idle(self) -> bool:
        """Whether it is open with nothing to read, as it must be between two requests."""
        readable = select.poll()
        readable.register(self._stream.socket.fileno(), select.POLLIN)
        return not self._received and not readable.poll(0)

    async def subscribe(self, event: str) -> None:
        """Register for `event`. What comes in before the confirmation is kept for `next_event`."""
        await self._send(event, encode_subscription(event, wanted=True))
        while True:
            kind, name, payload = await self._receive(event)
            if kind == Packet.EVENT:
                self._early.append((name, decode_message(event, payload)))
            elif kind == Packet.EVENT_CONFIRM:
                return
            elif kind == Packet.EVENT_UNKNOWN:
                raise ViciRefused(event, "charon does not know this event")
            else:
                raise ViciLost(event, f"unexpected packet type {kind} while subscribing")

    async def next_event(self, op: str) -> tuple[str, Reply]:
        if self._early:
            await trio.lowlevel.checkpoint()
            return self._early.pop(0)
        kind, name, payload = await self._receive(op)
        if kind != Packet.EVENT:
            raise ViciLost(op, f"unexpected packet type {kind} among events")
        return name, decode_message(op, payload)

    async def exchange(
        self, command: str, packet: bytes, event: str | None, decode: Decode
    ) -> tuple[list[Reply], Reply]:
        """Send one request and take its reply, with the events (read by `decode`) that charon streams before it."""
        if event is not None:
            await self.subscribe(event)
            self._early.clear()
        await self._send(command, packet)
        streamed: list[Reply] = []
        while True:
            kind, _, payload = await self._receive(command)
            if kind != Packet.EVENT:
                break
            streamed.append(decode(command, payload))
        if event is not None:
            await self._unsubscribe(event)
        if kind == Packet.CMD_UNKNOWN:
            raise ViciRefused(command, "charon does not know this command")
        if kind != Packet.CMD_RESPONSE:
            raise ViciLost(command, f"unexpected packet type {kind} as a reply")
        reply = decode_message(command, payload)
        if reply.get("success") == "no":
            raise ViciRefused(command, text(reply, "errmsg") or "refused without a reason")
        return streamed, reply

    async def _unsubscribe(self, event: str) -> None:
        await self._send(event, encode_subscription(event, wanted=False))
        while True:
            # Another client's listing raises the same event here: between our reply and this confirmation, it is noise.
            kind, _, _ = await self._receive(event)
            if kind == Packet.EVENT_CONFIRM:
                return
            if kind != Packet.EVENT:
                raise ViciLost(event, f"unexpected packet type {kind} while unsubscribing")

    async def _send(self, op: str, packet: bytes) -> None:
        with _broken_socket_lost(op):
            await self._stream.send_all(_LENGTH.pack(len(packet)) + packet)

    async def _receive(self, op: str) -> tuple[int, str, bytes]:
        """The next packet as (type, event name or "", payload)."""
        while (packet := self._take_packet(op)) is None:
            with _broken_socket_lost(op):
                chunk = await self._stream.receive_some(RECEIVE_BYTES)
            if not chunk:
                raise ViciLost(op, "charon closed the connection")
            self._received += chunk
        # A long listing arrives in large chunks: without this, decoding it would keep the probes waiting.
        await trio.lowlevel.checkpoint()
        return decode_packet(op, packet)

    def _take_packet(self, op: str) -> bytes | None:
        if len(self._received) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._received)
        if length > MAX_PACKET_BYTES:
            raise ViciLost(op, f"charon announced a packet of {length} bytes")
        end = _LENGTH.size + length
        if len(self._received) < end:
            return None
        packet = bytes(self._received[_LENGTH.size : end])
        del self._received[:end]
        return packet


async def _connect(path: Path, op: str) -> _Connection:
    """Connect, again and again while the backlog is full: the caller's time limit is what ends it."""
    while True:
        connected = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _broken_socket_lost(op):
                await connected.connect(str(path))
            if _has_peer(connected):
                return _Connection(trio.SocketStream(connected))
        except BaseException:
            connected.close()
            raise
        connected.close()
        await trio.sleep(CONNECT_RETRY_S)


def _has_peer(connected: trio.socket.SocketType) -> bool:
    try:
        connected.getpeername()
    except OSError:
        return False
    return True


@contextmanager
def _bounded(op: str, timeout_s: float) -> Iterator[None]:
    if not 0 < timeout_s < math.inf:
        raise ValueError(f"every call to charon has a bound, got {timeout_s}")
    with trio.move_on_after(timeout_s) as scope:
        yield
    if scope.cancelled_caught:
        raise ViciLost(op, f"no answer within {timeout_s:g} s")


@contextmanager
def _broken_socket_lost(op: str) -> Iterator[None]:
    try:
        yield
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
        reason = error.__cause__ if isinstance(error, trio.BrokenResourceError) and error.__cause__ else error
        raise ViciLost(op, str(reason) or type(reason).__name__) from error
