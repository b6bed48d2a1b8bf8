"""Is what the kernel drops counted by its reason, and a sample of it logged?"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import msgspec
import pytest

from cpe_agent.core.wanted_ruleset import ruleset
from cpe_agent.edge.nftables import NftablesFirewall
from cpe_agent.model.dataplane import Backend, Ruleset
from cpe_agent.model.ops import ReplaceTable
from tests.core.documents import branch
from tests.core.networks import ADDRESSES
from tests.edge import wires
from tests.edge.wires import Sent, Wires

SPORT = 20_000
GROUP = 7


@pytest.fixture(scope="module")
def laid() -> Iterator[Wires]:
    with wires.wires(ADDRESSES) as found:
        yield found


class Flood(NamedTuple):
    """Packets that are dropped for one reason."""

    reason: str
    source: str
    destination: str
    protocol: int
    way: tuple[str, str]


FLOODS = (
    Flood("unlisted", "10.101.0.7", "10.10.0.1", 47, ("lan0", "ipsec0")),
    Flood("spoofed", "10.102.0.1", "10.10.0.1", 6, ("lan0", "ipsec0")),
    Flood("breakout", "10.101.0.7", "203.0.113.1", 17, ("lan0", "wired")),
    Flood("unlisted", "fd00:10::1", "fd00:101::7", 47, ("ipsec0", "lan0")),
)
SAMPLED = range(1, 15)  # ten at once, and one more every ten seconds


@pytest.mark.parametrize("flood", FLOODS, ids=lambda flood: f"{flood.reason}-{flood.way[0]}")
async def test_what_is_dropped_is_counted_and_a_sample_of_it_logged(laid: Wires, flood: Flood) -> None:
    firewall = NftablesFirewall()
    await firewall.apply([ReplaceTable(_logging_to_us(ruleset(branch(), Backend.USERLAND)))])
    with wires.logged(GROUP) as log:
        body = wires.transport(4, flood.protocol, SPORT, 443, False) + bytes(wires.MARKER_BYTES)
        data = wires.packet(flood.source, flood.destination, flood.protocol, body, flood.way[1])
        one = Sent(flood.way[0], 6 if ":" in flood.source else 4, data)
        assert await wires.delivered(laid, [one] * 200, firewall) == {}
        words = _words(log)
    assert (await firewall.counters())[f"drop {flood.reason}"][0] == 200
    assert set(words) == {f"cpe_agent {flood.reason}: "}
    assert len(words) in SAMPLED


def _logging_to_us(table: Ruleset) -> Ruleset:
    """The kernel's log is the machine's alone: its words go to a socket of this namespace instead."""
    chains = tuple(
        msgspec.structs.replace(
            chain, rules=tuple(re.sub(r'( log prefix "[^"]*")$', rf"\1 group {GROUP}", rule) for rule in chain.rules)
        )
        for chain in table.chains
    )
    return msgspec.structs.replace(table, chains=chains)


def _words(log: socket.socket) -> list[str]:
    """Each packet's prefix. The kernel gathers messages for up to a second."""
    log.settimeout(2)
    found: list[bytes] = []
    with suppress(TimeoutError):
        while True:
            found += re.findall(rb"cpe_agent \w+: ", log.recv(1 << 17))
    return [text.decode() for text in found]
