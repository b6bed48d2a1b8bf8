"""Does an address answer, asked from one of our own, and how fast?

In: (source, target, sequence). Out: `Reply`s, as they come. One raw ICMP or ICMPv6 socket per source address, bound to
it, so that `ip rule from ADDRESS` sends the echo through the right path and only what is addressed to it comes back.

A reply counts if all of it is what we asked: it comes from the target, to the source, with this process's random
identifier and cookie, with a sequence that is still open. So the replies of somebody's `ping`, those to an agent that
ran before us, second copies and forgeries from outside the path are all nothing. Open probes are forgotten after
`MAX_RTT_S`: who asks has long since called them lost.

**Time.** The kernel stamps a reply on arrival, so a busy agent does not look like a slow path. That stamp is wall
time, so the difference is taken between wall times; whenever the wall clock was stepped in between, which shows by
comparison with the monotonic clock, the monotonic clock is used and the agent's own lateness is in the figure.
"""

from __future__ import annotations

import errno
import ipaddress
import secrets
import select
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress

import msgspec
import trio

from cpe_agent.model.observed import Reply
from cpe_agent.ports import EdgeError

# The longest interval between probes is ten minutes, but an answer this late is of no use to anybody.
MAX_RTT_S = 10.0
# NTP slews by at most 0.5 ms in a second, so what differs more than this between the clocks was a step.
CLOCK_STEP_S = 0.005
# Twice the longest interval between probes: whoever has not sent for so long has lost its uplink or its address.
IDLE_S = 1200.0

# 64 of them per wake-up: then other tasks get their turn.
DRAIN_COUNT = 64
RECEIVE_BYTES = 2048
# Replies to 1,000 paths that come while the agent is busy for a second fit.
RECEIVE_BUFFER_BYTES = 1024 * 1024

# From the kernel's headers; Python's socket module does not have them. The "new" time stamp has 64 bits everywhere.
SO_TIMESTAMPNS_NEW = 64
SOL_RAW = 255
ICMP_FILTER = 1
ICMP6_FILTER = 1

ECHO_REQUEST_V4, ECHO_REPLY_V4 = 8, 0
ECHO_REQUEST_V6, ECHO_REPLY_V6 = 128, 129

# After these the socket is as good as before: it is the network, a firewall rule or a queue that refuses.
PASSING = frozenset(
    {
        errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.EPERM, errno.EACCES, errno.ENETUNREACH, errno.EHOSTUNREACH,
        errno.ENETDOWN, errno.EMSGSIZE,
    }
)  # fmt: skip

# Don't fragment, and never mind what is known of the way (from the kernel's headers, as above).
_PROBE_MTU = 3
_WHOLE = {4: (socket.IPPROTO_IP, 10, _PROBE_MTU), 6: (socket.IPPROTO_IPV6, 23, _PROBE_MTU)}
_IP_HEADER_BYTES = {4: 20, 6: 40}

_HEADER = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence
_PAYLOAD = struct.Struct("!8sQ")  # cookie, the whole sequence
_TIMESPEC = struct.Struct("=qq")


class Moment(msgspec.Struct, frozen=True):
    """The same instant on both clocks, in ns."""

    wall_ns: int
    monotonic_ns: int


def round_trip_s(sent: Moment, stamp_ns: int | None, read: Moment) -> float:
    """Seconds between `sent` and the kernel's wall-clock `stamp_ns` of a reply that was read at `read`.

    Without a stamp, or with a wall clock that was stepped between `sent` and `read`: until it was read.
    """
    monotonic_ns = read.monotonic_ns - sent.monotonic_ns
    wall_ns = read.wall_ns - sent.wall_ns
    if stamp_ns is None or abs(wall_ns - monotonic_ns) > CLOCK_STEP_S * 1e9:
        return monotonic_ns / 1e9
    stamped_ns = stamp_ns - sent.wall_ns
    # Not stepped as far as we can tell, and still absurd: two steps that cancel out.
    if not 0 <= stamped_ns <= wall_ns:
        return monotonic_ns / 1e9
    return stamped_ns / 1e9


class IcmpProber:
    """A `ProbePort` on raw sockets; needs CAP_NET_RAW. One task may wait in `replies()`; any may `send()`."""

    def __init__(self, *, whole: bool = False) -> None:
        """`whole`: packets that may not be fragmented, and that go out whatever is known of the way's MTU."""
        self._whole = whole
        self._identifier = secrets.randbits(16)
        self._cookie = secrets.token_bytes(8)
        # An epoll descriptor is itself readable when one of its sockets is: also one that joins while we wait.
        self._epoll = select.epoll()
        self._sockets: dict[str, _Socket] = {}
        self._sources: dict[int, str] = {}
        # In the order of sending, so the oldest are found first.
        self._open: dict[tuple[str, bytes, int], _Sent] = {}

    def send(self, source: str, target: str, sequence: int, size: int = 0) -> bool:
        """Send one echo request now; never waits. False if the kernel would not take it: no such address of ours, no
        route, a firewall rule, a full queue. Raises `EdgeError` without CAP_NET_RAW, ValueError for what is no
        address or a mix of IPv4 and IPv6."""
        asked = ipaddress.ip_address(target)
        version = ipaddress.ip_address(source).version
        if asked.version != version:
            raise ValueError(f"cannot probe {target} from {source}: not the same IP version")
        sock = self._sockets.get(source)
        if sock is None:
            sock = self._open_socket(source, version)
            if sock is None:
                return False
        payload = _PAYLOAD.pack(self._cookie, sequence)
        payload = payload.ljust(size - _IP_HEADER_BYTES[version] - _HEADER.size, b"\0")
        request = _echo_request(version, self._identifier, sequence & 0xFFFF, payload)
        now = _now()
        self._forget(now)
        sock.used_ns = now.monotonic_ns
        try:
            sock.socket.sendto(request, (target, 0))
        except OSError as error:
            # Anything else says that the socket is no longer good here, as EINVAL does once its address has gone.
            if error.errno not in PASSING:
                self._close_socket(source)
            return False
        self._open[(source, asked.packed, sequence)] = _Sent(target, now)
        return True

    async def replies(self) -> Sequence[Reply]:
        """Wait for replies; returns all that have come, at least one. Cancelling loses none."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            replies: list[Reply] = []
            for descriptor, _ in self._epoll.poll(0):
                replies += self._drain(self._sources[descriptor])
            if replies:
                return replies

    async def aclose(self) -> None:
        """Close every socket. A task that waits in `replies()` gets trio.ClosedResourceError."""
        for source in list(self._sockets):
            self._close_socket(source)
        if not self._epoll.closed:
            trio.lowlevel.notify_closing(self._epoll.fileno())
            self._epoll.close()
        await trio.lowlevel.checkpoint()

    def _open_socket(self, source: str, version: int) -> _Socket | None:
        now_ns = time.monotonic_ns()
        for other, idle in list(self._sockets.items()):
            if now_ns - idle.used_ns > IDLE_S * 1e9:
                self._close_socket(other)
        try:
            opened = _icmp_socket(source) if version == 4 else _icmpv6_socket(source)
            if self._whole:
                opened.setsockopt(*_WHOLE[version])
        except PermissionError as error:
            raise EdgeError("prober", "open", f"{error.strerror}: probing needs the capability CAP_NET_RAW") from None
        except OSError:
            return None
        self._epoll.register(opened.fileno(), select.EPOLLIN)
        self._sources[opened.fileno()] = source
        self._sockets[source] = _Socket(opened, version, now_ns)
        return self._sockets[source]

    def _close_socket(self, source: str) -> None:
        closing = self._sockets.pop(source).socket
        del self._sources[closing.fileno()]
        self._epoll.unregister(closing.fileno())
        closing.close()

    def _forget(self, now: Moment) -> None:
        while self._open:
            oldest = next(iter(self._open))
            if now.monotonic_ns - self._open[oldest].at.monotonic_ns <= MAX_RTT_S * 1e9:
                return
            del self._open[oldest]

    def _drain(self, source: str) -> list[Reply]:
        sock = self._sockets[source]
        replies: list[Reply] = []
        for _ in range(DRAIN_COUNT):
            try:
                data, ancillary, _, sender = sock.socket.recvmsg(RECEIVE_BYTES, socket.CMSG_SPACE(_TIMESPEC.size))
            except BlockingIOError:
                break
            except OSError:
                self._close_socket(source)
                break
            reply = self._judge(source, sock.version, data, str(sender[0]), _stamp_ns(ancillary))
            if reply is not None:
                replies.append(reply)
        return replies

    def _judge(self, source: str, version: int, data: bytes, sender: str, stamp_ns: int | None) -> Reply | None:
        if version == 4:
            # A raw IPv4 socket gives the IP header too, and gives it before the kernel has checked the ICMP checksum.
            data = data[(data[0] & 0x0F) * 4 :] if data else b""
            if _checksum(data) != 0:
                return None
        if len(data) < _HEADER.size + _PAYLOAD.size:
            return None
        kind, code, _, identifier, short = _HEADER.unpack_from(data)
        cookie, sequence = _PAYLOAD.unpack_from(data, _HEADER.size)
        wanted = (ECHO_REPLY_V4 if version == 4 else ECHO_REPLY_V6, 0, self._identifier, sequence & 0xFFFF)
        if (kind, code, identifier, short) != wanted or not secrets.compare_digest(cookie, self._cookie):
            return None
        answered = ipaddress.ip_address(sender.partition("%")[0]).packed
        sent = self._open.pop((source, answered, sequence), None)
        if sent is None:
            return None
        rtt_s = round_trip_s(sent.at, stamp_ns, _now())
        return Reply(target=sent.target, source=source, sequence=sequence, rtt_s=rtt_s) if rtt_s <= MAX_RTT_S else None


class _Sent(msgspec.Struct, frozen=True):
    target: str
    at: Moment


class _Socket:
    def __init__(self, opened: socket.socket, version: int, used_ns: int) -> None:
        self.socket = opened
        self.version = version
        self.used_ns = used_ns


def _now() -> Moment:
    return Moment(time.time_ns(), time.monotonic_ns())


def _icmp_socket(source: str) -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP)
    # A set bit keeps a type out.
    everything_else = struct.pack("=I", ~(1 << ECHO_REPLY_V4) & 0xFFFFFFFF)
    return _set_up(opened, source, SOL_RAW, ICMP_FILTER, everything_else)


def _icmpv6_socket(source: str) -> socket.socket:
    opened = socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMPV6)
    words = [0xFFFFFFFF] * 8
    words[ECHO_REPLY_V6 // 32] &= ~(1 << (ECHO_REPLY_V6 % 32))
    return _set_up(opened, source, socket.IPPROTO_ICMPV6, ICMP6_FILTER, struct.pack("=8I", *words))


def _set_up(opened: socket.socket, source: str, level: int, option: int, others: bytes) -> socket.socket:
    try:
        # Before bind: nothing but echo replies is ever queued. It saves wake-ups; `_judge` does not rely on it.
        opened.setsockopt(level, option, others)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        # Kernels before 5.1 do not know it; `round_trip_s` does without.
        with suppress(OSError):
            opened.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS_NEW, 1)
        opened.bind((source, 0))
    except BaseException:
        opened.close()
        raise
    return opened


def _stamp_ns(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS_NEW and len(data) == _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack(data)
            return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return None


def _echo_request(version: int, identifier: int, short: int, payload: bytes) -> bytes:
    if version == 6:
        # The kernel fills in the checksum of ICMPv6: it covers addresses that only it knows for certain.
        return _HEADER.pack(ECHO_REQUEST_V6, 0, 0, identifier, short) + payload
    blank = _HEADER.pack(ECHO_REQUEST_V4, 0, 0, identifier, short) + payload
    return _HEADER.pack(ECHO_REQUEST_V4, 0, _checksum(blank), identifier, short) + payload


def _checksum(data: bytes) -> int:
    """RFC 1071. Over a message that carries its own right checksum: 0."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total >> 16) + (total & 0xFFFF)
    return ~total & 0xFFFF
