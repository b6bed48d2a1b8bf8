"""How many of the packets that somebody offers get through? Counted where they enter a site and where they arrive.

Packets of one protocol carry the lab's DSCP, so they are told apart from all else, also behind NAT and in tunnels.
Entering is counted in the site's namespace before any rule of the site (the counter is there only meanwhile); arriving
is counted at every host of the lab, so a packet delivered to the wrong one counts too.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Literal

from tests.lab.container import Container, LabError
from tests.lab.topology import Network, access_router
from tests.lab.wiring import OFFER_DSCP, TO_CPE

Protocol = Literal["tcp", "udp", "icmp", "fragments"]

_SCRIPT = Path(__file__).with_name("offer.py")
_NUMBERS = {"tcp": 6, "udp": 17, "icmp": 1, "fragments": 17}
_NAMES = {"tcp": 6, "udp": 17, "icmp": 1}  # how nft prints them
_SETTLE_S = 0.25  # for the last packets to arrive


@dataclass(frozen=True)
class Offer:
    """Packets of one offer. `fragments` offers two per count, and routers may join them on the way."""

    sent: int  # handed to the sender's kernel
    entered: int  # came in at the site that should judge them, from its LAN or its uplink
    arrived: dict[str, int]  # by host; only hosts that got any, and never the sender

    @property
    def delivered(self) -> int:
        return sum(self.arrived.values())


@dataclass(frozen=True)
class _Entrance:
    site: str
    interface: str


def offer(
    container: Container,
    network: Network,
    sender: str,
    to: str,
    protocol: Protocol,
    count: int,
    *,
    port: int,
    interval_ms: float,
) -> Offer:
    """`sender` is a host behind a site, the access router of an uplink (an attacker on the provider's wire, who hands
    the CPE any destination), or an internet host (whose `to` is then a site's public address)."""
    entrance = _entrance(network, sender, to)
    source, route = _source_and_route(network, sender, to)
    hosts = [host.name for host in network.hosts if host.name != sender]
    _count_entering(container, entrance)
    before = {host: _packets(container, host, "offered", protocol) for host in hosts}
    try:
        if route:
            container.run(["ip", "-n", sender, "route", "add", *route])
        try:
            argv = [sys.executable, "-S", str(_SCRIPT), "--source", source, "--to", to, "--protocol", protocol]
            argv += ["--port", str(port), "--count", str(count), "--interval-ms", str(interval_ms)]
            argv += ["--dscp", str(OFFER_DSCP)]
            sent = int(
                json.loads(container.run(argv, namespace=sender, timeout_s=60 + count * interval_ms).stdout)["sent"]
            )
            time.sleep(_SETTLE_S)
        finally:
            if route:
                container.run(["ip", "-n", sender, "route", "del", *route])
        entered = _packets(container, entrance.site, "entered", protocol)
        after = {host: _packets(container, host, "offered", protocol) for host in hosts}
    finally:
        container.run(["nft", "delete", "table", "ip", "lab_offer"], namespace=entrance.site, check=False)
    arrived = {host: after[host] - before[host] for host in hosts if after[host] != before[host]}
    return Offer(sent, entered, arrived)


def _entrance(network: Network, sender: str, to: str) -> _Entrance:
    for site in network.sites:
        for lan in site.lans:
            if any(host.name == sender for host in lan.hosts):
                return _Entrance(site.name, lan.name)
        for uplink in site.uplinks:
            if sender == access_router(site.name, uplink.name):
                return _Entrance(site.name, uplink.name)
    for site in network.sites:
        for uplink in site.uplinks:
            if network.public_address(site.name, uplink.name) == IPv4Address(to):
                return _Entrance(site.name, uplink.name)
    raise LabError(f"what {sender} sends to {to} enters no site of this lab")


def _source_and_route(network: Network, sender: str, to: str) -> tuple[str, list[str]]:
    for host in network.hosts:
        if host.name == sender:
            return str(host.address), []
    for site in network.sites:
        for uplink in site.uplinks:
            if sender == access_router(site.name, uplink.name):
                return str(uplink.gateway), [f"{to}/32", "via", str(uplink.address.ip), "dev", TO_CPE]
    return str(network.internet_host(sender).address.ip), []


def _count_entering(container: Container, entrance: _Entrance) -> None:
    rules = f"""
table ip lab_offer {{
  set entered {{ type inet_proto; size 256; flags dynamic; counter; }}
  chain prerouting {{
    type filter hook prerouting priority -450;
    iifname "{entrance.interface}" ip dscp {OFFER_DSCP} update @entered {{ ip protocol counter }}
  }}
}}
"""
    container.run(["nft", "-f", "-"], namespace=entrance.site, input=rules)


def _packets(container: Container, namespace: str, counters: str, protocol: Protocol) -> int:
    table = "lab_offer" if counters == "entered" else "lab"
    listing = container.run(["nft", "-j", "list", "set", "ip", table, counters], namespace=namespace).stdout
    for item in json.loads(listing)["nftables"]:
        for element in item.get("set", {}).get("elem", []):
            if _NAMES.get(element["elem"]["val"]) == _NUMBERS[protocol]:
                return int(element["elem"]["counter"]["packets"])
    return 0
