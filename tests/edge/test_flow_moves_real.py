"""Does a hub's kernel go on with a TCP connection that another hub has carried for a while?

Real segments through real nftables, connection tracking as the routes target leaves it. A branch sees all of its flows;
a hub does not: it may first meet one in its middle, or meet it again megabytes later.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from cpe_agent.core.firewall import diff
from cpe_agent.core.wanted_ruleset import ruleset
from cpe_agent.edge.netlink import Netlink
from cpe_agent.edge.nftables import NftablesFirewall
from cpe_agent.edge.ourroutes import LENIENT
from cpe_agent.model.dataplane import Backend
from cpe_agent.model.ops import DeleteTable, SetLenient
from tests.core.documents import CENTRE_LAN, OWN_LAN, hub, pair
from tests.edge import wires
from tests.edge.wires import Sent, Wires

CLIENT, SERVER, PORT = "10.101.0.10", "10.10.0.10", 80
DOCUMENT = hub(pairs=(pair("web", OWN_LAN, "hospital-1", local=CENTRE_LAN, initiator="remote", protocol="tcp"),))
SYN, SYN_ACK, ACK = 0x02, 0x12, 0x10
# More than any window: by then the other hub has carried all that this one could expect.
FAR = 50_000_000


class Segment(NamedTuple):
    """`down`: from the server, which is behind the hub."""

    down: bool
    flags: int
    sequence: int
    acknowledged: int


HANDSHAKE = (Segment(False, SYN, 0, 0), Segment(True, SYN_ACK, 0, 1), Segment(False, ACK, 1, 1))


@pytest.fixture(scope="module")
def laid() -> Iterator[Wires]:
    with wires.wires([CLIENT, SERVER]) as found:
        yield found


@pytest.fixture
async def firewall(laid: Wires) -> NftablesFirewall:
    """The hub's table; connection tracking knows nothing, and is as the kernel has it from the start."""
    LENIENT.write_text("0")
    firewall = NftablesFirewall()
    await firewall.apply([DeleteTable()])
    for ops in diff(ruleset(DOCUMENT, Backend.USERLAND), await firewall.read()):
        await firewall.apply(ops)
    wires.forget_flows()
    return firewall


async def test_that_a_connection_that_was_away_goes_on(laid: Wires, firewall: NftablesFirewall) -> None:
    for segment in HANDSHAKE:
        assert await _passes(laid, firewall, segment)
    back = (Segment(False, ACK, 1, FAR), Segment(True, ACK, FAR, 1))
    assert [await _passes(laid, firewall, segment) for segment in back] == [False, False], "else there is no need"
    await Netlink().apply([SetLenient()])
    assert [await _passes(laid, firewall, segment) for segment in back] == [True, True]


async def test_that_a_connection_that_is_met_in_its_middle_goes_on(laid: Wires, firewall: NftablesFirewall) -> None:
    """As soon as the side that may start it has been heard: until then nobody can tell it from one that the server
    starts."""
    await Netlink().apply([SetLenient()])
    assert not await _passes(laid, firewall, Segment(True, ACK, FAR, 1))
    assert await _passes(laid, firewall, Segment(False, ACK, 1, FAR))
    assert await _passes(laid, firewall, Segment(True, ACK, FAR, 1))


async def test_that_leniency_opens_nothing(laid: Wires, firewall: NftablesFirewall) -> None:
    await Netlink().apply([SetLenient()])
    for flags in (SYN, SYN_ACK, ACK):
        assert not await _passes(laid, firewall, Segment(True, flags, FAR, 1)), "the server may not start it"
    assert await _passes(laid, firewall, HANDSHAKE[0])
    for ops in diff(ruleset(hub(pairs=()), Backend.USERLAND), await firewall.read()):
        await firewall.apply(ops)
    assert not await _passes(laid, firewall, HANDSHAKE[1]), "its pair is gone"


async def _passes(laid: Wires, firewall: NftablesFirewall, segment: Segment) -> bool:
    ends, ports = (CLIENT, SERVER), (40_000, PORT)
    way = ("ipsec0", "lan0")
    if segment.down:
        ends, ports, way = ends[::-1], ports[::-1], way[::-1]
    head = struct.pack("!HHIIBBHHH", *ports, segment.sequence, segment.acknowledged, 5 << 4, segment.flags, 65535, 0, 0)
    data = wires.packet(*ends, 6, head + bytes(wires.MARKER_BYTES), way[1])
    arrived = await wires.delivered(laid, [Sent(way[0], 4, data)], firewall)
    return arrived == {0: way[1]}
