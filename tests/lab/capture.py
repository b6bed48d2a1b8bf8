"""What really left a site, and what really arrived at a machine behind one? Recorded on the wire, beside all rules.

    with record(lab, [uplink_wire("centre", "wan"), host_wire("centre-server")]) as recording:
        ...
    for packet in recording.packets: ...

A wire is watched at the end that is not the site's: in the provider's router and in the host, where no rule, counter or
crash of the site can hide anything.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import signal
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from tests.lab.container import LabError, Process, wait_until
from tests.lab.init import LOGS
from tests.lab.lab import Lab
from tests.lab.recorder import RECORD
from tests.lab.topology import access_router
from tests.lab.wiring import TO_CPE

_SCRIPT = Path(__file__).with_name("recorder.py")
_START_S = 10.0
_END_S = 20.0
_MOST_PACKETS = 1_000_000  # of one wire: 100 bytes each
_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD
_FRAGMENT_OFFSET = 0x1FFF
_WITH_PORTS = (socket.IPPROTO_TCP, socket.IPPROTO_UDP)

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, order=True)
class Wire:
    """`namespace` is at the far end of it from the site; `interface` is its name there."""

    namespace: str
    interface: str

    def __str__(self) -> str:
        return f"{self.interface} of {self.namespace}"


@dataclass(frozen=True)
class Packet:
    """`from_site`: the site sent it, not the machine at the far end. `port`: the destination's, None if it has none.
    Of an ARP message `source` is who asks, and `to` who is asked for. `head`: the first bytes from the IP header on."""

    wire: Wire
    at_ns: int  # CLOCK_MONOTONIC
    from_site: bool
    source: Address
    to: Address
    protocol: int | None  # None: ARP
    port: int | None
    head: bytes = field(default=b"", compare=False, repr=False)

    def __str__(self) -> str:
        what = "ARP" if self.protocol is None else f"protocol {self.protocol}"
        port = "" if self.port is None else f" port {self.port}"
        return f"{self.at_ns / 1e9:.3f} {self.wire}: {what} {self.source} -> {self.to}{port}"


@dataclass
class Recording:
    """`packets` is filled when recording has ended, in order of time. IP fragments after the first have no port."""

    packets: list[Packet] = field(default_factory=list)


def uplink_wire(site: str, uplink: str) -> Wire:
    return Wire(access_router(site, uplink), TO_CPE)


def host_wire(host: str) -> Wire:
    return Wire(host, "eth0")


@contextlib.contextmanager
def record(lab: Lab, wires: Sequence[Wire]) -> Iterator[Recording]:
    """Record until the end of the with block. LabError if a single packet was missed: then nothing was shown."""
    recording = Recording()
    started: list[tuple[Wire, Process, Path, Path]] = []
    try:
        for wire in wires:
            started.append((wire, *_start(lab, wire)))
        yield recording
    finally:
        for _, process, _, _ in started:
            process.signal(signal.SIGTERM)
        ends = [_end(lab, *each) for each in started]
    recording.packets = sorted((packet for packets in ends for packet in packets), key=lambda packet: packet.at_ns)


def parse(wire: Wire, data: bytes) -> list[Packet]:
    """What `recorder` wrote of this wire. What is neither IP nor ARP is left out."""
    found = []
    for at_ns, sent_here, protocol, head in RECORD.iter_unpack(data):
        packet = _packet(wire, at_ns, not sent_here, protocol, head)
        if packet is not None:
            found.append(packet)
    return found


def _start(lab: Lab, wire: Wire) -> tuple[Process, Path, Path]:
    inside = f"{LOGS}/{wire.namespace}-{wire.interface}.packets"
    log = lab.path(f"{LOGS}/{wire.namespace}-{wire.interface}-recorder.log")
    argv = [sys.executable, "-S", str(_SCRIPT), "--interface", wire.interface, "--to", inside]
    argv += ["--most", str(_MOST_PACKETS)]
    with open(log, "wb") as stdout:
        process = lab.container.spawn(argv, namespace=wire.namespace, stdout=stdout)
    wait_until(f"{wire} is recorded", lambda: log.read_bytes().startswith(b'{"ready"'), _START_S)
    return process, lab.path(inside), log


def _end(lab: Lab, wire: Wire, process: Process, file: Path, log: Path) -> list[Packet]:
    if process.wait(_END_S) != 0:
        raise LabError(f"the recorder of {wire} failed: {log.read_text().strip()}")
    told = json.loads(log.read_text().splitlines()[-1])
    if told["unwritten"] or told["dropped"]:
        raise LabError(f"the recording of {wire} is not complete: {told}")
    packets = parse(wire, file.read_bytes())
    file.unlink()
    return packets


def _packet(wire: Wire, at_ns: int, from_site: bool, protocol: int, head: bytes) -> Packet | None:
    source: Address
    to: Address
    if protocol == _ARP:
        source, to = ipaddress.IPv4Address(head[14:18]), ipaddress.IPv4Address(head[24:28])
        return Packet(wire, at_ns, from_site, source, to, None, None, head)
    if protocol == _IPV4:
        length, fragment, inner = (head[0] & 0xF) * 4, struct.unpack("!H", head[6:8])[0], head[9]
        source, to = ipaddress.IPv4Address(head[12:16]), ipaddress.IPv4Address(head[16:20])
        whole = not fragment & _FRAGMENT_OFFSET
    elif protocol == _IPV6:
        length, inner, whole = 40, head[6], True
        source, to = ipaddress.IPv6Address(head[8:24]), ipaddress.IPv6Address(head[24:40])
    else:
        return None
    port = None
    if inner in _WITH_PORTS and whole:
        port = int(struct.unpack("!H", head[length + 2 : length + 4])[0])
    return Packet(wire, at_ns, from_site, source, to, inner, port, head)
