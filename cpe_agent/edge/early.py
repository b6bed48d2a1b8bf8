"""What came for a CHILD_SA before charon had installed it?

charon's answering side sends on a new CHILD_SA as soon as it has installed it: before its answer is out, and long
before the dialler has derived the keys. ESP that overtakes the set-up like this meets no SA, and charon throws it away
(with ESP in user space: strongSwan's ipsec_processor; a rekeying has a third message against that, a set-up has not).
So while a child is being set up this keeps a copy of the ESP that comes to its uplink's address, and hands to charon
once more what carries the new SPI. What charon had taken already it knows by the sequence number, and drops.

In: an address of ours, then the SPI. Out: the same datagrams again, over `lo`, as they came. Nothing is kept, and the
kernel copies nothing, while no set-up is under way.
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import struct
from collections import Counter
from contextlib import suppress

from cpe_agent.ports import EdgeError

ENCAPSULATION_PORT = 4500
# A set-up takes a round trip and some milliseconds: 5,000 large packets of it. What does not fit is lost, as before.
KEPT_BYTES = 8 * 1024 * 1024
PACKET_BYTES = 65535

_ETHERTYPE = {4: 0x0800, 6: 0x86DD}
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_ATTACH_FILTER, _RECEIVE_BUFFER_FORCE = 26, 33
_UDP = 17
_UDP_HEADER_BYTES = 8
# The classic packet filter: (code, jump if true, jump if false, value), from the IP header on. UDP to port 4500 whose
# first four bytes are not zero (the non-ESP marker), and no fragment.
_NOTHING = ((0x06, 0, 0, 0),)
_ESP = {
    4: (
        (0x30, 0, 0, 9), (0x15, 0, 8, _UDP),
        (0x28, 0, 0, 6), (0x45, 6, 0, 0x3FFF),
        (0xB1, 0, 0, 0), (0x48, 0, 0, 2), (0x15, 0, 3, ENCAPSULATION_PORT),
        (0x40, 0, 0, 8), (0x15, 1, 0, 0),
        (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0),
    ),
    6: (
        (0x30, 0, 0, 6), (0x15, 0, 5, _UDP),
        (0x28, 0, 0, 42), (0x15, 0, 3, ENCAPSULATION_PORT),
        (0x20, 0, 0, 48), (0x15, 1, 0, 0),
        (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0),
    ),
}  # fmt: skip


class EarlyEsp:
    """An `EarlyPort` on packet sockets; needs CAP_NET_RAW."""

    def __init__(self) -> None:
        # Opened once and kept: closing a packet socket waits for every processor, which a failover has no time for.
        self._taps: dict[int, socket.socket] = {}
        # A watch for each set-up: two children of one path may be under way, and all share what is kept.
        self._watches: dict[int, Counter[str]] = {4: Counter(), 6: Counter()}
        self._kept: dict[int, list[bytes]] = {4: [], 6: []}

    def watch(self, address: str) -> None:
        """Keep what comes for `address` from now on. Raises `EdgeError` without CAP_NET_RAW."""
        version = ipaddress.ip_address(address).version
        if not self._watches[version]:
            _attach(self._tap(version), _ESP[version])
        self._watches[version][address] += 1

    def hand_over(self, address: str, spi: int) -> int:
        """Give charon again what came for `spi`, and end one watch. Returns how many datagrams. `spi` 0: none."""
        version = ipaddress.ip_address(address).version
        watches = self._watches[version]
        if not watches[address]:
            return 0
        self._drain(version)
        found = [packet for packet in self._kept[version] if _carries(packet, version, address, spi)]
        watches.subtract([address])
        self._watches[version] = +watches
        if not self._watches[version]:
            _attach(self._taps[version], _NOTHING)
            self._drain(version)
            self._kept[version] = []
        return _send(found, version, address) if found else 0

    def close(self) -> None:
        for tap in self._taps.values():
            tap.close()
        self._taps.clear()

    def _tap(self, version: int) -> socket.socket:
        if version not in self._taps:
            try:
                kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
                tap = socket.socket(socket.AF_PACKET, kind, socket.htons(_ETHERTYPE[version]))
            except OSError as error:
                raise EdgeError("early", "open", f"{error.strerror}: it needs the capability CAP_NET_RAW") from None
            with suppress(OSError):
                tap.setsockopt(socket.SOL_SOCKET, _RECEIVE_BUFFER_FORCE, KEPT_BYTES)
            _attach(tap, _NOTHING)
            self._taps[version] = tap
            # What came before there was a filter is anything at all.
            self._drain(version)
            self._kept[version] = []
        return self._taps[version]

    def _drain(self, version: int) -> None:
        with suppress(BlockingIOError):
            while True:
                self._kept[version].append(self._taps[version].recv(PACKET_BYTES))


def _carries(packet: bytes, version: int, address: str, spi: int) -> bool:
    start = _udp_at(packet, version)
    packed = ipaddress.ip_address(address).packed
    to = packet[16:20] if version == 4 else packet[24:40]
    esp = packet[start + _UDP_HEADER_BYTES : start + _UDP_HEADER_BYTES + 4]
    return to == packed and esp == struct.pack("!I", spi)


def _udp_at(packet: bytes, version: int) -> int:
    return (packet[0] & 0x0F) * 4 if version == 4 else 40


def _send(packets: list[bytes], version: int, address: str) -> int:
    """To ourselves, with the sender's address: the kernel takes what it sends over `lo` as it is."""
    count = 0
    with socket.socket(_FAMILY[version], socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW) as raw:
        for packet in packets:
            with suppress(OSError):
                raw.sendto(_checksummed(packet, version), (address, 0))
                count += 1
    return count


def _checksummed(packet: bytes, version: int) -> bytes:
    """With a UDP checksum that holds: on a virtual link the kernel leaves it to the last interface to fill in."""
    at = _udp_at(packet, version) + 6
    blank = packet[:at] + b"\0\0" + packet[at + 2 :]
    if version == 4:
        # None: ESP has a better one.
        return blank
    udp = blank[40:]
    pseudo = blank[8:40] + struct.pack("!II", len(udp), _UDP)
    words = pseudo + udp + b"\0" * (len(udp) % 2)
    total = sum(struct.unpack(f"!{len(words) // 2}H", words))
    while total > 0xFFFF:
        total = (total >> 16) + (total & 0xFFFF)
    return blank[:at] + struct.pack("!H", ~total & 0xFFFF or 0xFFFF) + blank[at + 2 :]


def _attach(tap: socket.socket, program: tuple[tuple[int, int, int, int], ...]) -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    # struct sock_fprog: how many instructions, and where.
    tap.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HL", len(program), ctypes.addressof(code)))
