"""What does a router answer, by the side that it is asked from? Real packets, the kernel's nftables.

A chain of somebody else's, behind ours, tells which packets our table has let in, and keeps the kernel from answering.
"""

from __future__ import annotations

import re
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import pytest
import trio

from cpe_agent.core.wanted_ruleset import ruleset
from cpe_agent.edge.nftables import NftablesFirewall
from cpe_agent.model.dataplane import Backend
from cpe_agent.model.document import Document, Management, Uplink
from cpe_agent.model.ops import ReplaceTable
from tests.core.documents import OWN_LAN, branch, hub, pair
from tests.edge import wires
from tests.edge.wires import Sent, Wires

GROUP = 8
BEHIND_OURS = f"""
table inet behind {{
    chain in {{
        type filter hook input priority 10
        log group {GROUP} drop
    }}
}}
"""
ASKED_S = 10.0
UPLINK, LAN, TUNNEL = "wired", "lan0", "ipsec0"
STRANGER = "203.0.113.50"
PUBLIC, SERVERS, PROBE, READY, SITE = "198.51.100.10", "10.10.0.1", "10.255.1.1", "10.255.1.2", "10.255.0.1"
BRANCH_LAN, BRANCH_HOST = "10.101.0.1", "10.101.0.7"
OWN = {"hub": (PUBLIC, SERVERS, PROBE, READY, SITE), "branch": (PUBLIC, BRANCH_LAN, "10.255.101.1", "10.255.0.101")}
OWN_6 = "fd00:10::1"
ICMP, TCP, UDP, GRE, OSPF, ICMP6 = 1, 6, 17, 47, 89, 58
RULED = Management(ssh_from=(OWN_LAN, "10.10.0.8/32"), metrics_from=("10.10.0.0/24",), routing_from=("10.10.0.2/32",))


class Knock(NamedTuple):
    """A packet for the router itself, and whether it may come in. `port` of UDP and TCP; from 40000 unless `sport`."""

    iif: str
    source: str
    to: str
    protocol: int
    port: int
    let_in: bool
    sport: int = 40000


HUB = (
    # The internet: IKE and ESP on 4500, a DHCP server's answers, and nothing else.
    Knock(UPLINK, STRANGER, PUBLIC, UDP, 4500, True),
    Knock(UPLINK, STRANGER, PUBLIC, UDP, 500, False),
    Knock(UPLINK, STRANGER, PUBLIC, UDP, 53, False),
    Knock(UPLINK, STRANGER, PUBLIC, UDP, 68, True, sport=67),
    Knock(UPLINK, STRANGER, PUBLIC, TCP, 22, False),
    Knock(UPLINK, STRANGER, PUBLIC, TCP, 4500, False),
    Knock(UPLINK, STRANGER, PUBLIC, TCP, 9273, False),
    Knock(UPLINK, STRANGER, PUBLIC, TCP, 179, False),
    Knock(UPLINK, STRANGER, PUBLIC, ICMP, 0, False),
    Knock(UPLINK, STRANGER, PUBLIC, OSPF, 0, False),
    Knock(UPLINK, STRANGER, PUBLIC, GRE, 0, False),
    # In cleartext nobody has, or may reach, an inner address.
    Knock(UPLINK, BRANCH_HOST, PUBLIC, UDP, 4500, False),
    Knock(UPLINK, "10.255.101.1", PROBE, ICMP, 0, False),
    Knock(UPLINK, STRANGER, SITE, TCP, 22, False),
    Knock(UPLINK, STRANGER, SERVERS, UDP, 4500, False),
    # The LAN: echo, neighbours, DHCP, and whom `management` lists.
    Knock(LAN, "10.10.0.9", SERVERS, ICMP, 0, True),
    Knock(LAN, "fd00:10::9", OWN_6, ICMP6, 0, True),
    Knock(LAN, "10.10.0.8", SERVERS, TCP, 22, True),
    Knock(LAN, "10.10.0.9", SERVERS, TCP, 22, False),
    Knock(LAN, "10.10.0.9", SERVERS, TCP, 9273, True),
    Knock(LAN, "10.10.0.2", SERVERS, TCP, 179, True),
    Knock(LAN, "10.10.0.2", SERVERS, UDP, 3784, True),
    Knock(LAN, "10.10.0.2", SERVERS, OSPF, 0, True),
    Knock(LAN, "10.10.0.9", SERVERS, TCP, 179, False),
    Knock(LAN, "10.10.0.9", SERVERS, OSPF, 0, False),
    Knock(LAN, "10.10.0.9", SERVERS, UDP, 4500, False),
    Knock(LAN, "10.10.0.9", SERVERS, UDP, 53, False),
    Knock(LAN, "10.10.0.9", SERVERS, UDP, 67, True, sport=68),
    Knock(LAN, "10.10.0.9", SERVERS, UDP, 67, False),
    # Tunnels: probes, management, and pairs that name the site's address.
    Knock(TUNNEL, "10.255.101.1", PROBE, ICMP, 0, True),
    Knock(TUNNEL, "10.255.101.1", READY, ICMP, 0, True),
    Knock(TUNNEL, BRANCH_HOST, SITE, TCP, 22, True),
    Knock(TUNNEL, BRANCH_HOST, SITE, TCP, 8022, True),
    Knock(TUNNEL, BRANCH_HOST, SITE, TCP, 8023, False),
    Knock(TUNNEL, "10.102.0.7", SITE, TCP, 22, False),
    Knock(TUNNEL, BRANCH_HOST, SITE, TCP, 9273, False),
    Knock(TUNNEL, BRANCH_HOST, SERVERS, TCP, 80, False),
    Knock(TUNNEL, BRANCH_HOST, PUBLIC, UDP, 4500, False),
    Knock(TUNNEL, BRANCH_HOST, SITE, OSPF, 0, False),
)
BRANCH = (
    # To the internet a branch is not there.
    *(Knock(UPLINK, STRANGER, PUBLIC, UDP, port, False) for port in (53, 500, 4500)),
    *(Knock(UPLINK, STRANGER, PUBLIC, TCP, port, False) for port in (22, 80, 9273)),
    Knock(UPLINK, STRANGER, PUBLIC, ICMP, 0, False),
    Knock(UPLINK, STRANGER, PUBLIC, UDP, 68, True, sport=67),
    Knock(LAN, BRANCH_HOST, BRANCH_LAN, ICMP, 0, True),
    Knock(LAN, BRANCH_HOST, BRANCH_LAN, TCP, 22, False),
    Knock(LAN, BRANCH_HOST, BRANCH_LAN, UDP, 4500, False),
    # A renewal; before it has an address, a host asks from 0.0.0.0 (tests/docs/test_networkd.py).
    Knock(LAN, BRANCH_HOST, BRANCH_LAN, UDP, 67, True, sport=68),
    Knock(UPLINK, STRANGER, PUBLIC, UDP, 67, False, sport=68),
    Knock(TUNNEL, PROBE, "10.255.101.1", ICMP, 0, True),
    Knock(TUNNEL, "10.10.0.5", "10.255.0.101", TCP, 22, False),
)


def _hub(ready: bool = True) -> tuple[Document, bool]:
    page = pair("page", OWN_LAN, "hospital-1", local=f"{SITE}/32", initiator="remote", protocol="tcp", ports=("8022",))
    uplinks = {"wan": Uplink("wired", 1, "10.255.100.1", interface=UPLINK)}
    return hub(management=RULED, pairs=(page,), uplinks=uplinks), ready


@pytest.fixture(scope="module")
def laid() -> Iterator[Wires]:
    with wires.wires([STRANGER]) as found:
        subprocess.run(["nft", "-f", "-"], input=BEHIND_OURS, text=True, check=True)
        yield found
        subprocess.run(["nft", "delete table inet behind"], check=True)
        _be()


def _be(*own: str) -> None:
    """A router with these addresses and no others."""
    subprocess.run(["ip", "address", "flush", "dev", "lo", "scope", "global"], check=True)
    for address in own:
        length = 128 if ":" in address else 32
        subprocess.run(["ip", "address", "add", f"{address}/{length}", "dev", "lo"], check=True)
    if own:
        subprocess.run(["ip", "route", "replace", "default", "dev", UPLINK, "src", PUBLIC], check=True)


async def test_a_hub(laid: Wires) -> None:
    await _knock(laid, *_hub(), HUB)


async def test_a_branch(laid: Wires) -> None:
    await _knock(laid, branch(), True, BRANCH)


async def test_a_hub_that_is_not_willing_is_silent_on_its_ready_address_alone(laid: Wires) -> None:
    asked = [k for k in HUB if k.iif == TUNNEL and k.protocol == ICMP]
    await _knock(laid, *_hub(ready=False), [k._replace(let_in=k.to != READY) for k in asked])


@pytest.mark.parametrize("role", ["hub", "branch"])
async def test_what_the_router_began_is_answered_and_told_what_was_too_long(laid: Wires, role: str) -> None:
    document = _hub()[0] if role == "hub" else branch()
    await _put_in_force(document)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.bind((PUBLIC, 0))
        port = asking.getsockname()[1]
        asking.sendto(b"?", (STRANGER, 53))
    question = wires.packet(PUBLIC, STRANGER, UDP, wires.transport(4, UDP, port, 53, False) + bytes(8), UPLINK)
    too_long = struct.pack("!BBHHH", 3, 4, 0, 0, 1280) + question + bytes(wires.MARKER_BYTES)
    answer = wires.transport(4, UDP, 53, port, False) + bytes(wires.MARKER_BYTES)
    stray = wires.transport(4, UDP, 53, port + 1, False) + bytes(wires.MARKER_BYTES)
    sent = [
        Sent(UPLINK, 4, wires.packet(STRANGER, PUBLIC, protocol, body, UPLINK))
        for protocol, body in ((UDP, answer), (ICMP, too_long), (UDP, stray))
    ]
    assert await _let_in(laid, sent) == {0, 1}


async def _knock(laid: Wires, document: Document, ready: bool, knocks: list[Knock] | tuple[Knock, ...]) -> None:
    await _put_in_force(document, ready)
    let_in = await _let_in(laid, [_sent(knock) for knock in knocks])
    wrong = [knock for number, knock in enumerate(knocks) if (number in let_in) != knock.let_in]
    assert not wrong, wrong


async def _put_in_force(document: Document, ready: bool = True) -> None:
    _be(*OWN[document.role], OWN_6)
    wires.forget_flows()
    await NftablesFirewall().apply([ReplaceTable(ruleset(document, Backend.USERLAND, ready=ready))])


def _sent(knock: Knock) -> Sent:
    version = 6 if ":" in knock.source else 4
    body = wires.transport(version, knock.protocol, knock.sport, knock.port, False) + bytes(wires.MARKER_BYTES)
    return Sent(knock.iif, version, wires.packet(knock.source, knock.to, knock.protocol, body, UPLINK))


async def _let_in(laid: Wires, sent: list[Sent]) -> set[int]:
    """Which of them have passed our table. Returns when each has, or is counted as dropped."""
    firewall = NftablesFirewall()
    before = await wires.dropped(firewall)
    found: set[int] = set()
    with wires.logged(GROUP) as log:
        for number, one in enumerate(sent):
            laid.send(Sent(one.interface, one.version, one.data[: -wires.MARKER_BYTES] + wires.marker(number)))
        log.setblocking(False)
        deadline = time.monotonic() + ASKED_S
        # What is logged is told within a second.
        while len(found) + await wires.dropped(firewall) - before < len(sent):
            assert time.monotonic() < deadline, f"{len(found)} of {len(sent)} came in"
            with suppress(BlockingIOError):
                found |= {int.from_bytes(end, "big") for end in re.findall(rb"cpe(\x00{4}.)", log.recv(1 << 17), re.S)}
            await trio.sleep(0.01)
    return found
