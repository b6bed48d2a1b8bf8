"""Random networks and random packets that cross them, for hypothesis.

A network is a branch or a hub, and the pairs in it; subnets lie in one another, ports overlap, and packets come from
inside and outside of all of them.
"""

from __future__ import annotations

import ipaddress
from typing import Literal

from hypothesis import strategies as st

from cpe_agent.model.document import Document, Pair, Peer
from tests.core import documents
from tests.core.documents import branch, hub, pair
from tests.core.nft_model import Packet

TUNNEL = "ipsec0"
HERE = ["10.101.0.0/24", "10.101.0.0/25", "10.101.0.128/25", "10.101.0.7/32"]
THERE = ["10.10.0.0/24", "10.10.0.64/26", "10.50.0.0/24", "10.50.0.5/32"]
HERE_6, THERE_6 = ["fd00:101::/64", "fd00:101::7/128"], ["fd00:10::/64", "fd00:10::/65"]
initiators: st.SearchStrategy[Literal["local", "remote", "either"]] = st.sampled_from(["local", "remote", "either"])


@st.composite
def pairs(draw: st.DrawFn) -> list[Pair]:
    found = []
    for index in range(draw(st.integers(0, 6))):
        here, there = draw(st.sampled_from([(HERE, THERE), (HERE, THERE), (HERE_6, THERE_6)]))
        protocol = draw(st.sampled_from([None, "tcp", "udp", "icmp", "icmpv6"]))
        ports = st.lists(st.sampled_from(["80", "443", "400-500", "1-65535"]), max_size=2, unique=True)
        found.append(
            pair(
                f"p{index}",
                draw(st.sampled_from(there)),
                "centre",
                local=draw(st.sampled_from(here)),
                initiator=draw(initiators),
                protocol=protocol,
                ports=tuple(draw(ports)) if protocol in ("tcp", "udp") else (),
            )
        )
    return found


ADDRESSES_HERE = ("10.101.0.7", "10.101.0.8", "10.101.0.200", "10.102.0.1", "fd00:101::7", "fd00:101::1")
ADDRESSES_THERE = ("10.10.0.1", "10.10.0.70", "10.50.0.5", "10.50.0.6", "fd00:10::1", "203.0.113.1")
ADDRESSES = (*ADDRESSES_HERE, *ADDRESSES_THERE)


@st.composite
def packets(draw: st.DrawFn) -> tuple[Packet, bool]:
    """A packet as it crosses, and whether it runs outward."""
    ends = draw(
        st.tuples(st.sampled_from(ADDRESSES_HERE), st.sampled_from(ADDRESSES_THERE)).filter(
            lambda e: ipaddress.ip_address(e[0]).version == ipaddress.ip_address(e[1]).version
        )
    )
    outward, reply, error = draw(st.booleans()), draw(st.booleans()), draw(st.sampled_from([False, False, True]))
    starter, responder = ends if outward != reply else ends[::-1]
    version = ipaddress.ip_address(starter).version
    protocol = draw(st.sampled_from([1 if version == 4 else 58, 6, 17, 47]))
    return Packet(starter, responder, protocol, draw(st.sampled_from([0, 80, 443, 444, 51515])), reply, error), outward


def document_of(role: str, some: list[Pair]) -> Document:
    """A branch with these pairs, or a hub that is told of the same."""
    if role == "hub":
        return hub(pairs=tuple(mirrored(p) for p in some))
    centre = Peer("centre.city", True, "10.255.0.1", (*THERE, *THERE_6), endpoints=documents.CENTRE_ENDPOINTS)
    return branch(peers={"centre": centre}, pairs=tuple(some))


def ways(document: Document, packet: Packet, outward: bool) -> tuple[tuple[str, str], list[tuple[str, str]]]:
    """(in, out) by interface: the one way that a listed packet may take, and others."""
    lan = lan_of(document, packet.source if outward else packet.destination)
    others = [(lan, lan), (lan, "wired"), ("wired", lan), ("wired", TUNNEL), (TUNNEL, "wired"), (TUNNEL, TUNNEL)]
    return ((lan, TUNNEL) if outward else (TUNNEL, lan)), others


def lan_of(document: Document, address: str) -> str:
    """Where a host with this address is wired to the site."""
    host = ipaddress.ip_address(address)
    return next((lan.interface or "" for lan in document.lans if host in ipaddress.ip_network(lan.subnet)), "lan0")


def mirrored(p: Pair) -> Pair:
    start: dict[str, Literal["local", "remote", "either"]] = {"local": "remote", "remote": "local", "either": "either"}
    return pair(
        p.id,
        p.local,
        "hospital-1",
        local=p.remote,
        initiator=start[p.initiator],
        protocol=p.protocol,
        ports=p.ports,
    )
