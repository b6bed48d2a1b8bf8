"""What is each packet on an uplink for, and how large is it?

In: packets as `tests.lab.capture` recorded them. Out: bytes by kind, link headers included, as an interface counts
them. ESP is told apart by its size alone, which is enough: a probe and its answer have one, and all else has others.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable

from tests.lab.capture import Packet
from tests.loops.standby import ECHO_BYTES, esp_bytes

IPSEC_PORT = 4500
ETHERNET_BYTES = 14
_ARP_BYTES = 28
_UDP_BYTES = 8
_MARKER = bytes(4)
_IKE = struct.Struct("!8s8sBBBBI")
_EXCHANGES = {34: "IKE_SA_INIT", 35: "IKE_AUTH", 36: "CREATE_CHILD_SA", 37: "INFORMATIONAL"}


def kind(packet: Packet) -> str:
    """Named as in the model, or as the protocol calls it."""
    if packet.protocol is None:
        return "ARP"
    if packet.protocol != socket.IPPROTO_UDP:
        return f"protocol {packet.protocol}"
    length = (packet.head[0] & 0xF) * 4 if packet.head[0] >> 4 == 4 else 40
    source, target = struct.unpack("!HH", packet.head[length : length + 4])
    if IPSEC_PORT not in (source, target):
        return f"UDP {min(source, target)}"
    inside = packet.head[length + _UDP_BYTES :]
    if size(packet) == length + _UDP_BYTES + 1:
        return "keepalives"
    if inside[:4] != _MARKER:
        return "probes" if size(packet) == esp_bytes(ECHO_BYTES) else f"ESP of {size(packet)}"
    exchange = _IKE.unpack(inside[4 : 4 + _IKE.size])[4]
    return f"{_EXCHANGES.get(exchange, exchange)} of {size(packet)}"


def size(packet: Packet) -> int:
    """Bytes from the IP header on."""
    if packet.protocol is None:
        return _ARP_BYTES
    if packet.head[0] >> 4 == 4:
        return int(struct.unpack("!H", packet.head[2:4])[0])
    return 40 + int(struct.unpack("!H", packet.head[4:6])[0])


def by_kind(packets: Iterable[Packet]) -> dict[str, tuple[int, int]]:
    """(packets, bytes) of each kind, the costliest first."""
    found: dict[str, tuple[int, int]] = {}
    for packet in packets:
        count, total = found.get(kind(packet), (0, 0))
        found[kind(packet)] = (count + 1, total + size(packet) + ETHERNET_BYTES)
    return dict(sorted(found.items(), key=lambda one: -one[1][1]))
