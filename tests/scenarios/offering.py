"""Who offers what, without pause, while a network lives and dies? And what became of it, by a recording?

A `Stream` is UDP to a port of its own, by which its packets are told apart on every wire. Listed streams are those that
the document admits; of the others no packet may ever arrive anywhere.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from tests.lab import offer, traffic
from tests.lab.capture import Packet, Recording, Wire, host_wire, uplink_wire
from tests.lab.container import Process, wait_until
from tests.lab.init import LOGS
from tests.lab.lab import Lab
from tests.lab.leaks import PRIVATE6
from tests.lab.pace import FACTOR
from tests.lab.topology import Network
from tests.lab.wiring import TO_CPE

RATE = round(100 / max(1.0, FACTOR / 2))  # nine streams and their recorders are more than a slow machine can do
START_S = 20.0
SECONDS = 600  # no test takes as long; whoever is left over ends by itself
LISTED_PORT = 7000
PRIVATE = IPv4Network("10.0.0.0/8")
_PRIVATE6 = IPv6Network(PRIVATE6)
_UNUSED_DSCP = 42


@dataclass(frozen=True)
class Stream:
    """`sender` is a namespace; `source` only if it claims an address that is not its own."""

    sender: str
    to: str
    port: int
    source: str = ""

    def __str__(self) -> str:
        claimed = f" as {self.source}" if self.source else ""
        return f"{self.sender}{claimed} to {self.to} port {self.port}"


# To a host of the far LAN whose pair lists another port; to a LAN that is in no pair; to the internet; from the side
# that may not start flows; and from whoever holds the provider's wire, also under a permitted host's name.
UNLISTED = (
    Stream("hospital-1-host", "10.10.0.10", 7009),
    Stream("hospital-1-host", "10.102.0.10", 7010),
    Stream("hospital-1-host", "203.0.113.202", 7011),
    Stream("centre-server", "10.101.0.10", 7012),
    Stream("centre-server", "203.0.113.202", 7013),
)
FROM_OUTSIDE = (
    Stream("net-hospital-1-wired", "10.101.0.10", 7014, "10.10.0.10"),
    Stream("net-hospital-1-lte", "10.101.0.10", 7015, "100.64.1.1"),
    Stream("net-centre-wan", "10.10.0.10", 7016, "10.101.0.10"),
)
LISTED = Stream("hospital-1-host", "10.10.0.10", LISTED_PORT)


def wires(network: Network, sites: Sequence[str]) -> list[Wire]:
    """Every wire of these sites, and every host behind any site."""
    uplinks = [uplink_wire(name, uplink.name) for name in sites for uplink in network.site(name).uplinks]
    return [*uplinks, *(host_wire(host.name) for host in network.hosts)]


@contextlib.contextmanager
def offered(lab: Lab) -> Iterator[None]:
    """Offer all streams until the end of the with block, which begins when all are there. Somebody listens at the end
    of the listed one."""
    processes: list[Process] = []
    logs: list[Path] = []

    def start(namespace: str, name: str, script: Path, argv: Sequence[str]) -> None:
        log = lab.path(f"{LOGS}/offering-{namespace}-{name}.log")
        with open(log, "wb") as stdout:
            argv = [sys.executable, "-S", str(script), *argv]
            processes.append(lab.container.spawn(argv, namespace=namespace, stdout=stdout))
        logs.append(log)

    routes: list[tuple[str, str]] = []
    try:
        common = ["--rate", str(RATE), "--seconds", str(SECONDS), "--linger-ms", "0"]
        listener = ["--port", str(LISTED.port), *common]
        start("centre-server", "listener", Path(traffic.__file__), listener)
        for stream in (LISTED, *UNLISTED):
            argv = ["--to", stream.to, "--port", str(stream.port), *common]
            start(stream.sender, str(stream.port), Path(traffic.__file__), argv)
        for stream in FROM_OUTSIDE:
            lead_in(lab, stream)
            routes.append((stream.sender, f"{stream.to}/32"))
            argv = ["--source", stream.source, "--to", stream.to, "--protocol", "udp", "--port", str(stream.port)]
            argv += ["--count", str(RATE * SECONDS), "--interval-ms", str(1000 / RATE), "--dscp", str(_UNUSED_DSCP)]
            start(stream.sender, str(stream.port), Path(offer.__file__), argv)
        wait_until("everything is offered", lambda: all(b"ready" in log.read_bytes() for log in logs), START_S)
        yield
    finally:
        for process in processes:
            process.signal(signal.SIGKILL)
            process.wait(5)
            process.close()
        for namespace, destination in routes:
            lab.run(namespace, "ip", "route", "del", destination, check=False)


def lead_in(lab: Lab, stream: Stream) -> None:
    """Lead a stream from outside over the provider's wire to the site; its route goes with the link."""
    uplinks = [uplink for site in lab.sites.values() for uplink in site.uplinks.values()]
    via = next(str(uplink.address.ip) for uplink in uplinks if uplink.router == stream.sender)
    lab.run(stream.sender, "ip", "route", "replace", f"{stream.to}/32", "via", via, "dev", TO_CPE)


def cleartext(recording: Recording) -> list[Packet]:
    """What a site sent to an uplink with a protected address as its source or destination."""
    return [
        packet
        for packet in recording.packets
        if packet.from_site and not _is_host(packet.wire) and _is_protected(packet)
    ]


def delivered(recording: Recording, streams: Sequence[Stream]) -> list[Packet]:
    """Packets of these streams that came to a host."""
    ports = {stream.port for stream in streams}
    return [p for p in recording.packets if p.from_site and _is_host(p.wire) and p.port in ports]


def offered_packets(recording: Recording, stream: Stream) -> list[Packet]:
    """Packets of this stream as they went to the site that must judge them."""
    return [p for p in recording.packets if not p.from_site and p.port == stream.port and str(p.to) == stream.to]


def between(packets: Sequence[Packet], since_ns: int, until_ns: int) -> list[Packet]:
    return [packet for packet in packets if since_ns <= packet.at_ns < until_ns]


def _is_host(wire: Wire) -> bool:
    return wire.interface != TO_CPE


def _is_protected(packet: Packet) -> bool:
    return any(address in (PRIVATE if address.version == 4 else _PRIVATE6) for address in (packet.source, packet.to))
