"""A router of veths in this process's network namespace: raw packets go in at one interface and come out at another.

Each interface has a far end, `NAME-far`, where packets are put on the wire and seen coming off it. Where a packet goes
is not the packet's address's doing but its TOS's (traffic class), so that any packet can be sent any way. Nothing here
has an address, and neighbours are written down, so the kernel says nothing of its own.
"""

from __future__ import annotations

import ipaddress
import itertools
import socket
import struct
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import trio

from cpe_agent.model.dataplane import TABLE
from cpe_agent.ports import FirewallPort

INTERFACES = ("lan0", "lan1", "wired", "ipsec0")
MARKER_BYTES = 8

# Values that both an IPv4 TOS rule and a traffic class rule take.
_TOS = dict(zip(INTERFACES, (0x04, 0x08, 0x0C, 0x10), strict=True))
_MACS = {name: f"02:00:00:00:00:{number:02}" for number, name in enumerate(INTERFACES, 1)}
_FIRST_TABLE = 101
_NOBODY = "02:00:00:00:00:99"  # whom packets that come out are for: no interface here
_ETH_P_ALL = 3
_PACKET_OUTGOING = 4
_ETHER_TYPE = {4: 0x0800, 6: 0x86DD}
_SETTINGS = {
    "ipv4/ip_forward": 1,
    "ipv6/conf/all/forwarding": 1,
    # What holds for all interfaces as well as for each.
    "ipv4/conf/all/rp_filter": 0,
    "ipv4/conf/all/send_redirects": 0,
    # Headers of ours have no checksums beyond IPv4's own.
    "netfilter/nf_conntrack_checksum": 0,
    "netfilter/nf_conntrack_tcp_be_liberal": 1,
}
_PER_INTERFACE = {
    "ipv4": {"rp_filter": 0, "send_redirects": 0, "accept_redirects": 0, "log_martians": 0},
    "ipv6": {"accept_ra": 0, "accept_dad": 0, "router_solicitations": 0},
}
_BUFFER_BYTES = 8 << 20
_ARRIVED_S = 10.0

_CTNETLINK, _CT_DELETE = 1, 2
_ULOG = 4
_NLM_F_REQUEST_ACK = 0x1 | 0x4
_numbers = itertools.count()
_ERROR_CODES = {4: (3, 1), 6: (1, 0)}  # ICMP destination unreachable: type, code


class Sent(NamedTuple):
    """What to put on the wire: where, and the whole frame but for its Ethernet header."""

    interface: str
    version: int
    data: bytes


class Wires:
    """The router's wires, for as long as `wires()` lasts."""

    def __init__(self, addresses: Iterable[str]) -> None:
        """`addresses`: everybody that packets may be for."""
        known = sorted(set(addresses))
        for name in INTERFACES:
            _ip(f"link add {name} address {_MACS[name]} type veth peer name {name}-far")
            for end in (name, f"{name}-far"):
                _ip(f"link set {end} addrgenmode none")
                for family, settings in _PER_INTERFACE.items():
                    for setting, value in settings.items():
                        _write(f"{family}/conf/{end}/{setting}", value)
                _ip(f"link set {end} up")
        self._settings = {path: int(Path(f"/proc/sys/net/{path}").read_text()) for path in _SETTINGS}
        for path, value in _SETTINGS.items():
            _write(path, value)
        lines: list[str] = []
        for table, name in enumerate(INTERFACES, _FIRST_TABLE):
            for address in known:
                lines.append(f"neighbour replace {address} lladdr {_NOBODY} dev {name} nud permanent")
            for family in ("-4", "-6"):
                lines.append(f"{family} route add default dev {name} table {table}")
                lines.append(f"{family} rule add priority {table} tos {_TOS[name]:#04x} table {table}")
        for line in lines:
            _ip(line)
        self._far = {name: self._opened(f"{name}-far") for name in INTERFACES}

    def close(self) -> None:
        for far in self._far.values():
            far.close()
        for table, name in enumerate(INTERFACES, _FIRST_TABLE):
            _ip(f"link del {name}")
            for family in ("-4", "-6"):
                _ip(f"{family} rule del priority {table}")
        for path, value in self._settings.items():
            _write(path, value)
        # Whatever was put between these wires is not the next file's.
        subprocess.run(["nft", f"add table inet {TABLE}; delete table inet {TABLE}"], check=True)

    def send(self, sent: Sent) -> None:
        ends = "".join((_MACS[sent.interface], _NOBODY)).replace(":", "")
        header = bytes.fromhex(ends) + struct.pack("!H", _ETHER_TYPE[sent.version])
        self._far[sent.interface].send(header + sent.data)

    def arrived(self) -> list[tuple[int, str]]:
        """(number, interface) of what has come out since the last call; what has no marker is not ours."""
        found = []
        for name, far in self._far.items():
            while True:
                try:
                    frame, address = far.recvfrom(2048)
                except BlockingIOError:
                    break
                end = frame[-MARKER_BYTES:]
                if address[2] != _PACKET_OUTGOING and end.startswith(b"cpe"):
                    found.append((int.from_bytes(end[3:], "big"), name))
        return found

    def _opened(self, name: str) -> socket.socket:
        far = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        far.bind((name, 0))
        far.setsockopt(socket.SOL_SOCKET, 33, _BUFFER_BYTES)  # SO_RCVBUFFORCE
        far.setblocking(False)
        return far


@contextmanager
def wires(addresses: Iterable[str]) -> Iterator[Wires]:
    laid = Wires(addresses)
    try:
        yield laid
    finally:
        laid.close()


def packet(source: str, destination: str, protocol: int, body: bytes, out: str) -> bytes:
    """An IP packet that will leave by the interface `out`."""
    version = ipaddress.ip_address(source).version
    ends = b"".join(ipaddress.ip_address(end).packed for end in (source, destination))
    if version == 6:
        return struct.pack("!IHBB", 6 << 28 | _TOS[out] << 20, len(body), protocol, 64) + ends + body
    head = struct.pack("!BBHHHBBH", 0x45, _TOS[out], 20 + len(body), 1, 0, 64, protocol, 0) + ends
    return head[:10] + struct.pack("!H", _checksum(head)) + head[12:] + body


def transport(version: int, protocol: int, sport: int, dport: int, reply: bool) -> bytes:
    """The start of a flow, or the first answer to it, without what follows the header. Whoever starts a flow of echo
    requests is known by its `sport`."""
    if protocol == 6:
        flags = 0x12 if reply else 0x02
        return struct.pack("!HHIIBBHHH", sport, dport, 1, int(reply), 5 << 4, flags, 65535, 0, 0)
    if protocol == 17:
        return struct.pack("!HHHH", sport, dport, 8 + MARKER_BYTES, 0)
    if protocol in (1, 58):
        kinds = {4: (8, 0), 6: (128, 129)}[version]
        return struct.pack("!BBHHH", kinds[reply], 0, 0, dport if reply else sport, 1)
    return bytes(8)


def error(about: bytes) -> bytes:
    """An ICMP error's body that speaks of the packet `about`, ready for a marker."""
    version = about[0] >> 4
    # IPv4 errors quote a header and eight bytes; here a whole small packet.
    return struct.pack("!BBHI", *_ERROR_CODES[version], 0, 0) + about


async def delivered(laid: Wires, sent: Sequence[Sent], firewall: FirewallPort) -> dict[int, str]:
    """Which of these came out, by number, and where. Returns when each has come out or is counted as dropped."""
    before = await dropped(firewall)
    numbers = {next(_numbers): index for index in range(len(sent))}
    for number, index in numbers.items():
        one = sent[index]
        laid.send(Sent(one.interface, one.version, one.data[:-MARKER_BYTES] + marker(number)))
    found: dict[int, str] = {}
    deadline = time.monotonic() + _ARRIVED_S
    while True:
        found |= {numbers[number]: name for number, name in laid.arrived()}
        lost = await dropped(firewall) - before
        if len(found) + lost == len(sent):
            return found
        assert len(found) + lost < len(sent), "what came out is counted as dropped as well"
        assert time.monotonic() < deadline, f"{len(found)} came out, {lost} were dropped, {len(sent)} were sent"
        await trio.sleep(0.001)


async def dropped(firewall: FirewallPort) -> int:
    """Packets that our table has counted as dropped."""
    counters = await firewall.counters()
    return sum(packets for name, (packets, _) in counters.items() if name.startswith("drop "))


@contextmanager
def logged(group: int) -> Iterator[socket.socket]:
    """What nftables logs to `group` in this namespace: messages of nfnetlink_log, with their packets whole."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as log:
        log.settimeout(5)
        bind, whole = struct.pack("=HHB3x", 5, 1, 1), struct.pack("=HH", 10, 2) + struct.pack("!IBx2x", 0xFFFF, 2)
        for attribute in (bind, whole):
            body = struct.pack("!BBH", 0, 0, group) + attribute
            log.send(struct.pack("=IHHII", 16 + len(body), _ULOG << 8 | 1, _NLM_F_REQUEST_ACK, 1, 0) + body)
            (code,) = struct.unpack_from("=i", log.recv(4096), 16)
            if code:
                raise OSError(-code, "nothing can be logged to this namespace")
        yield log


def forget_flows() -> None:
    """Empty this namespace's connection tracking."""
    header = struct.pack("=IHHII", 20, _CTNETLINK << 8 | _CT_DELETE, _NLM_F_REQUEST_ACK, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netlink:
        netlink.settimeout(5)
        netlink.send(header + struct.pack("=BBH", 0, 0, 0))
        (code,) = struct.unpack_from("=i", netlink.recv(4096), 16)
    if code not in (0, -2):
        raise OSError(-code, "cannot empty connection tracking")


def marker(number: int) -> bytes:
    """What ends packet `number`, and by which `arrived` knows it."""
    return b"cpe" + number.to_bytes(MARKER_BYTES - 3, "big")


def _checksum(header: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


def _write(path: str, value: int) -> None:
    Path(f"/proc/sys/net/{path}").write_text(f"{value}\n")
