"""One end of a sequenced UDP flow: sends numbered packets on a fixed schedule, and notes each that arrives.

The client (`--to`) starts; the server (`--port`) sends its own numbers back as soon as it has heard the client, so
that a flow which only one side may start works. Stand-alone, standard library only: runs in a host's namespace.

Standard output is one JSON object per line: {"ready": true}, then progress every 100 ms, and as the last line the
result: {"sent", "first_sent_ns", "last_sent_ns", "arrivals": [[sequence, arrived_ns, sent_ns], ...]}. All times are
CLOCK_MONOTONIC, which all namespaces share; arrivals are stamped by the kernel, not when this process got round to it.

SIGTERM ends the sending; SIGUSR1 says that the other end sends no more either: it then listens for `--linger-ms` more
for what is still under way. `--seconds` is the time for both.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import socket
import struct
import time

_MAGIC = b"lab1"
_HEADER = struct.Struct("!4sIQ")  # magic, sequence, when it was sent (ns)
_SO_TIMESTAMPNS = 35  # the socket module does not name it; the same on every Linux that Debian runs on but sparc, hppa
_TIMESPEC = struct.Struct("@qq")
_PROGRESS_NS = 100_000_000
_READINGS, _TOGETHER_NS = 10, 50_000
_LOOK_NS = 10_000_000  # between looks at whether it was told something

Address = tuple[str, int]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--to", help="client: the server's address")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True, help="packets per second")
    parser.add_argument("--seconds", type=float, required=True, help="stop sending after this")
    parser.add_argument("--linger-ms", type=float, default=500)
    parser.add_argument("--first", type=int, default=0, help="the first sequence number")
    parser.add_argument("--bytes", type=int, default=64, help="payload of each packet")
    parser.add_argument("--ipv6", action="store_true")
    arguments = parser.parse_args()
    with contextlib.suppress(PermissionError):
        os.nice(-10)
    # On a busy machine a packet that was sent before the scheduler moved us would be overtaken by the next.
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[os.getpid() % len(cpus)]})
    end = End(
        peer=(arguments.to, arguments.port) if arguments.to else None,
        port=0 if arguments.to else arguments.port,
        interval_ns=round(1e9 / arguments.rate),
        padding=bytes(max(0, arguments.bytes - _HEADER.size)),
        first=arguments.first,
        family=socket.AF_INET6 if arguments.ipv6 else socket.AF_INET,
    )
    signal.signal(signal.SIGTERM, lambda _number, _frame: end.stop())
    signal.signal(signal.SIGUSR1, lambda _number, _frame: end.all_stopped())
    until_ns = time.monotonic_ns() + round(arguments.seconds * 1e9)
    print(json.dumps({"ready": True}), flush=True)
    end.send_and_receive(until_ns)
    end.receive_until_all_stopped(until_ns)
    end.receive_until(time.monotonic_ns() + round(arguments.linger_ms * 1e6))
    print(json.dumps(end.result()), flush=True)


class End:
    def __init__(
        self, peer: Address | None, port: int, interval_ns: int, padding: bytes, first: int, family: int
    ) -> None:
        self._peer = peer
        self._interval_ns = interval_ns
        self._padding = padding
        self._first = first
        self._stopped = False
        self._all_stopped = False
        self._sent = 0
        self._first_sent_ns = 0
        self._last_sent_ns = 0
        self._arrivals: list[tuple[int, int, int]] = []
        # Not connected, so that ICMP errors from routers on the way do not end the flow.
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        with contextlib.suppress(PermissionError):
            self._socket.setsockopt(socket.SOL_SOCKET, 33, 4 << 20)  # SO_RCVBUFFORCE
        self._socket.setblocking(False)
        self._socket.bind(("", port))

    def stop(self) -> None:
        self._stopped = True

    def all_stopped(self) -> None:
        self._stopped = self._all_stopped = True

    def send_and_receive(self, until_ns: int) -> None:
        """Packet n leaves at start + n * interval, however late the one before was."""
        start_ns = 0
        progress_ns = time.monotonic_ns()
        while not self._stopped and (now := time.monotonic_ns()) < until_ns:
            if self._peer is None:
                self._receive(now + self._interval_ns)
                continue
            start_ns = start_ns or now
            due_ns = start_ns + self._sent * self._interval_ns
            if now < due_ns:
                self._receive(due_ns)
                continue
            self._send(now, self._peer)
            if now - progress_ns >= _PROGRESS_NS:
                progress_ns = now
                print(json.dumps({"at_ns": now, "sent": self._sent, "received": len(self._arrivals)}), flush=True)

    def receive_until_all_stopped(self, until_ns: int) -> None:
        while not self._all_stopped and (now := time.monotonic_ns()) < until_ns:
            self._receive(min(until_ns, now + _LOOK_NS))

    def receive_until(self, until_ns: int) -> None:
        while time.monotonic_ns() < until_ns:
            self._receive(until_ns)
        # What came while this process stood still.
        self._receive(until_ns)

    def result(self) -> dict[str, object]:
        return {
            "sent": self._sent,
            "first_sent_ns": self._first_sent_ns,
            "last_sent_ns": self._last_sent_ns,
            "arrivals": self._arrivals,
        }

    def _send(self, now_ns: int, peer: Address) -> None:
        packet = _HEADER.pack(_MAGIC, self._first + self._sent, now_ns) + self._padding
        # What the kernel will not send (no route, a full queue) counts as sent and lost: the nurse felt it.
        with contextlib.suppress(OSError):
            self._socket.sendto(packet, peer)
        self._first_sent_ns = self._first_sent_ns or now_ns
        self._last_sent_ns = now_ns
        self._sent += 1

    def _receive(self, until_ns: int) -> None:
        """Wait for packets until then at the latest; take all that are there."""
        timeout_s = max(0, until_ns - time.monotonic_ns()) / 1e9
        if not select.select([self._socket], [], [], timeout_s)[0]:
            return
        with contextlib.suppress(BlockingIOError):
            while True:
                data, ancillary, _, sender = self._socket.recvmsg(2048, 128)
                if len(data) < _HEADER.size or not data.startswith(_MAGIC):
                    continue
                _, sequence, sent_ns = _HEADER.unpack_from(data)
                self._arrivals.append((sequence, _arrived_ns(ancillary), sent_ns))
                if self._peer is None:
                    self._peer = sender


def _arrived_ns(ancillary: list[tuple[int, int, bytes]]) -> int:
    """The kernel's stamp is of the wall clock: count back from now by how long ago that was."""
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
            seconds, nanoseconds = map(int, _TIMESPEC.unpack(value[: _TIMESPEC.size]))
            return _monotonic_ns(seconds * 1_000_000_000 + nanoseconds)
    return time.monotonic_ns()


def _monotonic_ns(wall_ns: int) -> int:
    """The clocks are read one after the other, and a busy machine may let others run in between: then once more."""
    before, wall_now, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
    for _ in range(_READINGS):
        if after - before < _TOGETHER_NS:
            break
        before, wall_now, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
    return after - (wall_now - wall_ns)


if __name__ == "__main__":
    main()
