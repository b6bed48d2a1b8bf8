"""Does the table admit what the document lists, and nothing else? A small nftables judges packets.

The same is done with real packets and the kernel's nftables in tests/edge/test_ruleset_real.py.
"""

from __future__ import annotations

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from cpe_agent.core.firewall import diff
from cpe_agent.core.wanted_ruleset import pair_elements, ruleset
from cpe_agent.model.dataplane import Backend
from cpe_agent.model.document import Pair
from tests.core.documents import OWN_LAN, SHARED, branch, hub, pair
from tests.core.networks import document_of, lan_of, mirrored, packets, pairs, ways
from tests.core.nft_model import Nft, Packet, lies_in, listed, number
from tests.fakes.firewall import FirewallFake


@settings(max_examples=120, deadline=None)
@given(pairs(), st.lists(packets(), min_size=1, max_size=30), st.sampled_from(["branch", "hub"]))
def test_admitted_is_listed(some: list[Pair], crossing: list[tuple[Packet, bool]], role: str) -> None:
    document = document_of(role, some)
    nft = Nft(ruleset(document, Backend.USERLAND))
    for packet, outward in crossing:
        outward = outward != (role == "hub")
        way, others = ways(document, packet, outward)
        assert nft.admits(packet, *way) == listed(document, packet, outward), packet
        # By any other way nothing passes, listed or not.
        for other in others:
            assert not nft.admits(packet, *other)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(pairs(), min_size=2, max_size=6),
    st.lists(packets(), min_size=1, max_size=20),
    st.sampled_from(["branch", "hub"]),
)
def test_admitted_is_listed_after_any_edits(
    edits: list[list[Pair]], crossing: list[tuple[Packet, bool]], role: str
) -> None:
    """The table is never built anew, but edited as the agent does it, and judged at every stage."""

    async def edited() -> None:
        firewall = FirewallFake()
        for some in edits:
            document = document_of(role, some)
            wanted = ruleset(document, Backend.USERLAND)
            for ops in diff(wanted, await firewall.read()):
                if ops:
                    await firewall.apply(ops)
            table = await firewall.read()
            assert table is not None
            assert diff(wanted, table) == ((), ())
            for packet, outward in crossing:
                outward = outward != (role == "hub")
                way, _ = ways(document, packet, outward)
                assert Nft(table).admits(packet, *way) == listed(document, packet, outward), packet

    trio.run(edited)


@settings(deadline=None)
@given(pairs(), st.lists(packets(), min_size=1, max_size=20))
def test_both_ends_judge_alike(some: list[Pair], crossing: list[tuple[Packet, bool]]) -> None:
    here = Nft(ruleset(branch(pairs=tuple(some)), Backend.USERLAND))
    other_end = hub(pairs=tuple(mirrored(p) for p in some))
    there = Nft(ruleset(other_end, Backend.USERLAND))
    for packet, outward in crossing:
        one = here.admits(packet, *(("lan0", "ipsec0") if outward else ("ipsec0", "lan0")))
        lan = lan_of(other_end, packet.destination if outward else packet.source)
        other = there.admits(packet, *(("ipsec0", lan) if outward else (lan, "ipsec0")))
        assert one == other


def test_a_lan_does_not_speak_for_another() -> None:
    """A listed flow passes from the LAN that its source is wired to, and from no other."""
    document = hub(pairs=(pair("p", OWN_LAN, "hospital-1", local=SHARED),))
    nft = Nft(ruleset(document, Backend.USERLAND))
    packet = Packet("10.50.0.5", "10.101.0.7", 6, 443, reply=False)
    assert nft.admits(packet, "lan1", "ipsec0")
    assert not nft.admits(packet, "lan0", "ipsec0")


def test_without_a_document_nothing_passes() -> None:
    nft = Nft(ruleset(None, Backend.USERLAND))
    packet = Packet("10.101.0.7", "10.10.0.1", 6, 443, reply=False)
    assert not any(nft.admits(packet, iif, oif) for iif in ("lan0", "ipsec0") for oif in ("lan0", "ipsec0"))


def test_counters_are_told_apart_by_pair() -> None:
    document = branch()
    table = {s.name: s.elements for s in ruleset(document, Backend.USERLAND).sets}
    found = pair_elements(document)
    assert found["local_pairs4 10.101.0.0/24 . 10.10.0.0/24 . 6 . 443"] == "web"
    assert found["remote_pairs4 10.10.0.0/24 . 10.101.0.0/24 . 17 . 53"] == "back"
    assert set(found) == {f"{name} {e}" for name in table if "_pairs" in name for e in table[name]}


def test_only_hubs_are_dialled() -> None:
    for document, dialled in ((branch(), False), (hub(), True), (None, False)):
        chains = {c.name: c.rules for c in ruleset(document, Backend.USERLAND).chains}
        assert ("udp dport 4500 accept" in chains["from_uplink"]) == dialled


@pytest.mark.parametrize("backend", list(Backend))
def test_cleartext_is_dropped_before_established_flows_are_let_in(backend: Backend) -> None:
    rules = next(c.rules for c in ruleset(branch(), backend).chains if c.name == "input")
    established = rules.index("ct state established,related accept")
    cleartext = [index for index, rule in enumerate(rules) if rule.endswith(" jump drop_cleartext")]
    assert len(cleartext) == 4 and max(cleartext) < established
    assert rules.index(f"{backend.came_through} jump from_tunnel") < min(cleartext)


def test_protected_covers_both_ends() -> None:
    sets = {s.name: s.elements for s in ruleset(branch(), Backend.USERLAND).sets}
    for address in ("10.101.0.5", "10.10.0.5", "10.50.0.5", "10.255.0.1", "10.255.1.2", "10.255.101.2"):
        assert any(lies_in(number(address), e) for e in sets["protected4"]), address
    assert not any(lies_in(number("203.0.113.18"), e) for e in sets["protected4"])
    assert any(lies_in(number("fd00:10::9"), e) for e in sets["protected6"])
    assert sets["answering4"] == {"10.255.0.101", "10.255.101.1", "10.255.101.2"}
