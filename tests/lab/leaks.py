"""Which packets with a private address has the internet seen?

Its routers count them, and remember of each flow who sent what to whom: `rules` is the nft text that a router needs,
`read` says what it has seen since.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.lab.topology import Network

PRIVATE6 = "fd00::/8"  # where all LANs and inner addresses of IPv6 are

_BEFORE_EVERYTHING = -450  # nftables priority: before connection tracking reassembles fragments
_FLOWS_MAX = 4096  # beyond, packets are still counted
_ADDRESS = {"ip": "ipv4_addr", "ip6": "ipv6_addr"}


@dataclass(frozen=True, order=True)
class Leak:
    """Packets of one flow. Ports are the first four bytes after the IP header: type and code, for ICMP; of fragments
    after the first they mean nothing."""

    source: str
    to: str
    protocol: str
    ports: tuple[int, int]
    packets: int

    def __str__(self) -> str:
        if "icmp" in self.protocol:
            what = f"{self.protocol} type {self.ports[0] >> 8} code {self.ports[0] & 0xFF}"
        else:
            what = f"{self.protocol} port {self.ports[0]} to {self.ports[1]}"
        return f"{self.packets} x {self.source} -> {self.to} {what}"


def rules(network: Network, where: str) -> str:
    """nft text. `where` says of which packets, as an nft match; "" for all."""
    subnets = ", ".join(map(str, network.private_subnets))
    return (_table("ip6", PRIVATE6, where) if network.has_ipv6 else "") + _table("ip", f"{{ {subnets} }}", where)


def read(network: Network, nft: Callable[..., str]) -> tuple[Leak, ...]:
    """What the router has seen in which `nft` is run with these arguments."""
    found = []
    for family in _families(network):
        entries = json.loads(nft("-j", "list", "set", family, "lab", "leaks"))["nftables"]
        for element in (e["elem"] for entry in entries for e in entry.get("set", {}).get("elem", ())):
            found.append(_leak(element))
    return tuple(sorted(found))


def count(network: Network, nft: Callable[..., str]) -> int:
    """How many packets that router has seen."""
    packets = 0
    for family in _families(network):
        entries = json.loads(nft("-j", "list", "counter", family, "lab", "leaked"))["nftables"]
        packets += sum(int(entry["counter"]["packets"]) for entry in entries if "counter" in entry)
    return packets


def _families(network: Network) -> tuple[str, ...]:
    return ("ip", "ip6") if network.has_ipv6 else ("ip",)


def _table(family: str, private: str, where: str) -> str:
    address = _ADDRESS[family]
    return f"""
table {family} lab {{
  counter leaked {{}}
  set leaks {{
    type {address} . {address} . inet_proto . inet_service . inet_service
    size {_FLOWS_MAX}; flags dynamic; counter
  }}
  chain leaking {{
    counter name leaked
    update @leaks {{ {family} saddr . {family} daddr . meta l4proto . th sport . th dport counter }}
  }}
  chain prerouting {{
    type filter hook prerouting priority {_BEFORE_EVERYTHING};
    {where}{family} saddr {private} goto leaking
    {where}{family} daddr {private} goto leaking
  }}
}}
"""


def _leak(element: dict[str, Any]) -> Leak:
    source, to, protocol, *ports = element["val"]["concat"]
    return Leak(source, to, str(protocol), (int(ports[0]), int(ports[1])), int(element["counter"]["packets"]))
