"""How are packets copied off interfaces into a file that Wireshark reads?

In: interfaces, a classic BPF program, bounds. Out: a pcap file of packets that begin with their IP header, so that
Ethernet, PPP and modems are alike, with the kernel's times; and how many there were. Needs CAP_NET_RAW.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO

import msgspec
import trio

from cpe_agent.ports import EdgeError

# Headers: an IPv6 one, TCP with all its options, and some of what follows; of ESP its SPI and number.
HEADERS_BYTES = 128
WHOLE_BYTES = 65535
_BUFFER_BYTES = 4 * 1024 * 1024

_ALL_PROTOCOLS = 0x0003
_ATTACH_FILTER, _RECEIVE_BUFFER_FORCE, _TIMESTAMP_NS = 26, 33, 35
_SOL_PACKET, _STATISTICS = 263, 6
_NOTHING = ((0x06, 0, 0, 0),)
# With nanoseconds; version 2.4; LINKTYPE_RAW.
_MAGIC, _LINK_RAW = 0xA1B23C4D, 101

Program = Sequence[tuple[int, int, int, int]]


class Tapped(msgspec.Struct, frozen=True):
    """What one file holds: packets out of this router and into it by interface, and how many the kernel had to drop
    because they came faster than they could be written."""

    packets_out: dict[str, int]
    packets_in: dict[str, int]
    missed: int
    full: bool

    @property
    def packets(self) -> int:
        return sum(self.packets_out.values()) + sum(self.packets_in.values())


class Tap:
    """Copies from all `interfaces` what `program` takes, into `path`, which is made and must not be there."""

    def __init__(self, interfaces: Sequence[str], program: Program, path: Path, packets_max: int, snap: int) -> None:
        self._packets_max = packets_max
        self._snap = snap
        self._seen: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        self._full = trio.Event()
        self._files = ExitStack()
        self._sockets: list[trio.socket.SocketType] = []
        try:
            for interface in interfaces:
                self._sockets.append(self._files.enter_context(_open(interface, program)))
            self._file = self._files.enter_context(_made(path))
            self._file.write(struct.pack("=IHHiIII", _MAGIC, 2, 4, 0, 0, snap, _LINK_RAW))
        except BaseException:
            self._files.close()
            raise

    async def run(self) -> None:
        """Until the file has its packets, or for ever."""
        async with trio.open_nursery() as nursery:
            for tapped in self._sockets:
                nursery.start_soon(self._copy, tapped)
            await self._full.wait()
            nursery.cancel_scope.cancel()

    def close(self) -> Tapped:
        """End it; what was copied is in the file."""
        missed = 0
        for tapped in self._sockets:
            _, dropped = struct.unpack("=II", tapped.getsockopt(_SOL_PACKET, _STATISTICS, 8))
            missed += dropped
        self._files.close()
        return Tapped(dict(self._seen[True]), dict(self._seen[False]), missed, self._full.is_set())

    async def _copy(self, tapped: trio.socket.SocketType) -> None:
        while True:
            packet, ancillary, _, source = await tapped.recvmsg(WHOLE_BYTES, 128)
            if self._full.is_set():
                # Another interface's packet, of the same moment, was the last.
                return
            interface, direction = _from(source)
            seconds, nanoseconds = _time(ancillary)
            kept = packet[: self._snap]
            self._file.write(struct.pack("=IIII", seconds, nanoseconds, len(kept), len(packet)) + kept)
            self._seen[direction == socket.PACKET_OUTGOING][interface] += 1
            if sum(map(Counter.total, self._seen.values())) >= self._packets_max:
                self._full.set()


def _open(interface: str, program: Program) -> trio.socket.SocketType:
    try:
        tapped = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    except OSError as error:
        raise EdgeError("capture", "open", f"{error.strerror}: run it as root, or with CAP_NET_RAW") from None
    try:
        # Nothing until it listens on the right interface, for the right packets.
        _attach(tapped, _NOTHING)
        with suppress(OSError):
            tapped.setsockopt(socket.SOL_SOCKET, _RECEIVE_BUFFER_FORCE, _BUFFER_BYTES)
        tapped.setsockopt(socket.SOL_SOCKET, _TIMESTAMP_NS, 1)
        tapped.bind((interface, _ALL_PROTOCOLS))
        _attach(tapped, program)
    except OSError as error:
        tapped.close()
        raise EdgeError("capture", interface, f"nothing can be captured there: {error.strerror or error}") from None
    return trio.socket.from_stdlib_socket(tapped)


def _attach(tapped: socket.socket, program: Program) -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    # struct sock_fprog: how many instructions, and where.
    tapped.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HL", len(program), ctypes.addressof(code)))


def _made(path: Path) -> BinaryIO:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise EdgeError("capture", "write", f"{path} cannot be made: {error.strerror}") from None
    return os.fdopen(descriptor, "wb")


def _from(source: object) -> tuple[str, int]:
    """The interface, and whether it went out or came in, of a packet socket's address."""
    assert isinstance(source, tuple)
    return source[0], source[2]


def _time(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, int]:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _TIMESTAMP_NS):
            seconds, nanoseconds = struct.unpack("@ll", data[: struct.calcsize("@ll")])
            return int(seconds), int(nanoseconds)
    return 0, 0
