"""Does the kernel's nftables admit what the document lists, and nothing else, whatever was edited before?

Random networks, random edit sequences and random packets, as in tests/core/test_ruleset_model.py; but the table is the
kernel's, edited by the agent's diff, and the packets are real: put on one wire of a router and seen coming off another,
or counted as dropped. Three must agree: what became of the packet, what the model of nftables says, and what the
document lists.

Replies and ICMP errors belong to flows that are there already, as established ones are when a pair is removed: each
is begun before there is a table.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pytest
import trio
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from cpe_agent.core.firewall import diff
from cpe_agent.core.wanted_ruleset import ruleset
from cpe_agent.edge.nftables import NftablesFirewall
from cpe_agent.model.dataplane import Backend
from cpe_agent.model.document import Document, Pair
from cpe_agent.model.ops import DeleteTable
from tests.core.networks import ADDRESSES, document_of, packets, pairs, ways
from tests.core.nft_model import Nft, Packet, listed
from tests.edge import wires
from tests.edge.wires import Sent, Wires

NETWORKS = int(os.environ.get("NETWORKS", "30"))
SEED = int(os.environ.get("SEED", "1"))
FIRST_PORT = 20_000  # the starters' own ports, which no pair speaks of
NETWORKS_ONCE = settings(
    deadline=None, database=None, phases=(Phase.generate,), suppress_health_check=list(HealthCheck)
)
# Keeps connection tracking on while there is no table of ours, and is nobody's business.
TRACKING = """
table inet tracking {
    chain watching {
        type filter hook prerouting priority -150
        ct state new counter
    }
}
"""


class Crossing(NamedTuple):
    """A packet of which the model knows, and how to make it real."""

    packet: Packet
    outward: bool
    sport: int


class Tally:
    """What was tried, so that nobody takes a sample for more than it is."""

    def __init__(self) -> None:
        self.networks = self.stages = self.sent = self.passed = 0

    def __str__(self) -> str:
        return (
            f"{self.networks} networks, {self.stages} tables, {self.sent} packets sent, {self.passed} passed; "
            f"SEED={SEED} NETWORKS={NETWORKS} repeats them"
        )


@pytest.fixture(scope="module")
def laid() -> Iterator[Wires]:
    with wires.wires(ADDRESSES) as found:
        subprocess.run(["nft", "-f", "-"], input=TRACKING, text=True, check=True)
        yield found
        subprocess.run(["nft", "delete table inet tracking"], check=True)


@pytest.mark.timeout(60 + 2 * NETWORKS)
def test_what_crosses_is_listed(
    laid: Wires, capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]
) -> None:
    record_property("seed", SEED)
    tally = Tally()

    @seed(SEED)
    # What is real takes too long to be made smaller and smaller.
    @settings(NETWORKS_ONCE, max_examples=NETWORKS)
    @given(
        st.lists(pairs(), min_size=2, max_size=5),
        st.lists(packets(), min_size=8, max_size=24),
        st.sampled_from(["branch", "hub"]),
        st.integers(0, 1 << 32),
    )
    def network(edits: list[list[Pair]], some: list[tuple[Packet, bool]], role: str, number: int) -> None:
        crossing = [Crossing(p, o != (role == "hub"), FIRST_PORT + n) for n, (p, o) in enumerate(_distinct(some))]
        trio.run(_judge, laid, tally, [document_of(role, pairs_) for pairs_ in edits], crossing, random.Random(number))

    network()
    with capsys.disabled():
        print(f"\n{tally}")
    assert tally.passed >= tally.networks, "hardly anything passed: this shows nothing"


async def _judge(
    laid: Wires, tally: Tally, documents: Sequence[Document], crossing: Sequence[Crossing], chance: random.Random
) -> None:
    firewall = NftablesFirewall()
    await firewall.apply([DeleteTable()])
    wires.forget_flows()
    began = [_begun(one) for one in crossing if one.packet.reply or one.packet.error]
    assert len(await wires.delivered(laid, began, firewall)) == len(began)
    tally.networks += 1
    for document in documents:
        wanted = ruleset(document, Backend.USERLAND)
        for ops in diff(wanted, await firewall.read()):
            await firewall.apply(ops)
        table = await NftablesFirewall().read()
        assert table is not None and diff(wanted, table) == ((), ())
        model = Nft(table)
        asked = []
        for one in crossing:
            way, others = ways(document, one.packet, one.outward)
            asked += [(one, way, True), (one, chance.choice(others), False)]
        arrived = await wires.delivered(laid, [_sent(one, way) for one, way, _ in asked], firewall)
        tally.stages += 1
        tally.sent += len(asked)
        tally.passed += len(arrived)
        for number, (one, way, listed_way) in enumerate(asked):
            real = number in arrived
            words = f"{one.packet} by {way}: real {real}"
            assert real == (listed_way and listed(document, one.packet, one.outward)), words
            assert real == model.admits(one.packet, *way), words
            assert not real or arrived[number] == way[1], words


def _distinct(some: Sequence[tuple[Packet, bool]]) -> list[tuple[Packet, bool]]:
    """Without what one flow could not be told from another by: a protocol without ports, the same two ends."""
    found, seen = [], set()
    for packet, outward in some:
        key = frozenset((packet.starter, packet.responder))
        if packet.protocol in (6, 17, 1, 58) or key not in seen:
            found.append((packet, outward))
        if packet.protocol not in (6, 17, 1, 58):
            seen.add(key)
    return found


def _begun(one: Crossing) -> Sent:
    """The first packet of the flow."""
    packet = one.packet
    return Sent("wired", packet.version, _whole(packet.starter, packet.responder, one, False, "lan1"))


def _sent(one: Crossing, way: tuple[str, str]) -> Sent:
    packet = one.packet
    if not packet.error:
        data = _whole(packet.source, packet.destination, one, packet.reply, way[1])
        return Sent(way[0], packet.version, data)
    # It speaks of a packet that its receiver has sent.
    about = _whole(packet.destination, packet.source, one, not packet.reply, way[1])
    body = wires.error(about) + bytes(wires.MARKER_BYTES)
    protocol = 1 if packet.version == 4 else 58
    return Sent(way[0], packet.version, wires.packet(packet.source, packet.destination, protocol, body, way[1]))


def _whole(source: str, destination: str, one: Crossing, reply: bool, out: str) -> bytes:
    packet = one.packet
    ports = (packet.port, one.sport) if reply else (one.sport, packet.port)
    body = wires.transport(packet.version, packet.protocol, *ports, reply) + bytes(wires.MARKER_BYTES)
    return wires.packet(source, destination, packet.protocol, body, out)
