"""Does the table admit what the document lists, and nothing else? A small nftables judges packets."""

from __future__ import annotations

import ipaddress
import re
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpe_agent.core.wanted_ruleset import pair_elements, ruleset
from cpe_agent.model.dataplane import Backend, Ruleset
from cpe_agent.model.document import Document, Pair, Peer
from tests.core import documents
from tests.core.documents import OWN_LAN, SHARED, branch, hub, pair


class Packet:
    """A forwarded packet of a flow that `starter` began; `reply` packets run from `responder` to `starter`."""

    def __init__(
        self, starter: str, responder: str, protocol: int, port: int, reply: bool, error: bool = False
    ) -> None:
        self.starter, self.responder, self.protocol, self.port = starter, responder, protocol, port
        self.reply, self.error = reply, error
        self.version = ipaddress.ip_address(starter).version

    @property
    def source(self) -> str:
        return self.responder if self.reply else self.starter

    @property
    def destination(self) -> str:
        return self.starter if self.reply else self.responder

    # The starter's own port, which no pair speaks of.
    client_port = 51515

    def __repr__(self) -> str:
        return f"Packet({self.__dict__})"


class Nft:
    """The forward chain: enough of nft's language for the rules that stand there, and no more."""

    def __init__(self, table: Ruleset) -> None:
        self.sets = {s.name: s.elements for s in table.sets}
        self.chains = {c.name: c.rules for c in table.chains}

    def admits(self, packet: Packet, iif: str, oif: str) -> bool:
        return self._chain("forward", packet, iif, oif) == "accept"

    def _chain(self, name: str, packet: Packet, iif: str, oif: str) -> str | None:
        for rule in self.chains[name]:
            verdict = self._rule(rule, packet, iif, oif)
            if verdict:
                return verdict
        return None

    def _rule(self, rule: str, packet: Packet, iif: str, oif: str) -> str | None:
        if rule.startswith("tcp flags syn"):
            assert rule.endswith("tcp option maxseg size set rt mtu")
            return None
        if rule.startswith("limit rate") and " log prefix " in rule:
            return None
        if rule.startswith("counter drop"):
            return "drop"
        if match := re.match(r"iifname \. (ip6?) saddr != @(\w+) counter drop", rule):
            if (match[1] == "ip") != (packet.version == 4):
                return None
            parted = [element.split(" . ") for element in self.sets[match[2]]]
            known = any(name.strip('"') == iif and lies_in(number(packet.source), net) for name, net in parted)
            return None if known or packet.error else "drop"
        while True:
            if match := re.match(r"([io]if)name (?:@(\w+)|\"(\w+)\") ", rule):
                name = iif if match[1] == "iif" else oif
                if name not in (self.sets[match[2]] if match[2] else {match[3]}):
                    return None
            elif match := re.match(r"ct direction (original|reply) ", rule):
                if (match[1] == "reply") != packet.reply or packet.error:
                    return None
            elif match := re.match(r"meta l4proto (icmp|ipv6-icmp) ct state related ", rule):
                if not packet.error or (match[1] == "icmp") != (packet.version == 4):
                    return None
            elif match := re.match(r"([^@]*?)@(\w+) accept$", rule):
                return "accept" if self._found(match[1], self.sets[match[2]], packet) else None
            elif match := re.match(r"jump (\w+)$", rule):
                return self._chain(match[1], packet, iif, oif)
            else:
                raise AssertionError(f"not in this nft's language: {rule}")
            rule = rule[match.end() :]

    def _found(self, key: str, elements: frozenset[str], packet: Packet) -> bool:
        values: list[int] = []
        if f"ip{'' if packet.version == 4 else '6'} saddr" not in key:
            return False
        for part in key.strip().split(" . "):
            match part.replace("ip6 ", "ip "):
                case "ip saddr":
                    values.append(number(packet.source))
                case "ip daddr":
                    values.append(number(packet.destination))
                case "ct original ip saddr":
                    values.append(number(packet.starter))
                case "ct original ip daddr":
                    values.append(number(packet.responder))
                case "meta l4proto":
                    values.append(packet.protocol)
                case "th dport":
                    values.append(packet.client_port if packet.reply else packet.port)
                case "th sport":
                    values.append(packet.port if packet.reply else packet.client_port)
                case other:
                    raise AssertionError(f"not in this nft's language: {other}")
        hits = [e for e in elements if all(lies_in(v, t) for v, t in zip(values, e.split(" . "), strict=True))]
        assert len(hits) <= 1, "overlapping elements"
        return bool(hits)


def number(address: str) -> int:
    return int(ipaddress.ip_address(address))


def lies_in(value: int, text: str) -> bool:
    if "/" in text:
        network = ipaddress.ip_network(text)
        return int(network.network_address) <= value <= int(network.broadcast_address)
    first, _, last = text.partition("-")
    low, high = (int(t) if t.isdigit() else number(t) for t in (first, last or first))
    return low <= value <= high


def listed(document: Document, packet: Packet, outward: bool) -> bool:
    """May it pass, by the words of the document? `outward`: from a LAN of this site into a tunnel."""
    local_started = packet.error or outward != packet.reply
    starters: list[Literal["local", "remote"]] = ["local" if local_started else "remote"]
    if packet.error:
        # An error may travel either way, whoever started the flow it speaks of.
        starters = ["local", "remote"]
    return any(_allows(pair, starter, packet) for pair in document.pairs for starter in starters)


def _allows(pair: Pair, starter: str, packet: Packet) -> bool:
    if pair.initiator not in (starter, "either"):
        return False
    here, there = (pair.local, pair.remote) if starter == "local" else (pair.remote, pair.local)
    for address, subnet in ((packet.starter, here), (packet.responder, there)):
        network = ipaddress.ip_network(subnet)
        if network.version != packet.version or ipaddress.ip_address(address) not in network:
            return False
    if packet.error:
        return True
    numbers = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58}
    if pair.protocol is not None and packet.protocol != numbers.get(pair.protocol, pair.protocol):
        return False
    return not pair.ports or any(
        int(text.split("-")[0]) <= packet.port <= int(text.split("-")[-1]) for text in pair.ports
    )


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


addresses_here = st.sampled_from(
    ["10.101.0.7", "10.101.0.8", "10.101.0.200", "10.102.0.1", "fd00:101::7", "fd00:101::1"]
)
addresses_there = st.sampled_from(["10.10.0.1", "10.10.0.70", "10.50.0.5", "10.50.0.6", "fd00:10::1", "203.0.113.1"])


@st.composite
def packets(draw: st.DrawFn) -> tuple[Packet, bool]:
    """A packet as it crosses, and whether it runs outward."""
    ends = draw(
        st.tuples(addresses_here, addresses_there).filter(
            lambda e: ipaddress.ip_address(e[0]).version == ipaddress.ip_address(e[1]).version
        )
    )
    outward, reply, error = draw(st.booleans()), draw(st.booleans()), draw(st.sampled_from([False, False, True]))
    starter, responder = ends if outward != reply else ends[::-1]
    version = ipaddress.ip_address(starter).version
    protocol = draw(st.sampled_from([1 if version == 4 else 58, 6, 17, 47]))
    return Packet(starter, responder, protocol, draw(st.sampled_from([0, 80, 443, 444, 51515])), reply, error), outward


@settings(max_examples=120, deadline=None)
@given(pairs(), st.lists(packets(), min_size=1, max_size=30), st.sampled_from(["branch", "hub"]))
def test_admitted_is_listed(some: list[Pair], crossing: list[tuple[Packet, bool]], role: str) -> None:
    centre = Peer("centre.city", True, "10.255.0.1", (*THERE, *THERE_6), endpoints=documents.CENTRE_ENDPOINTS)
    document = branch(peers={"centre": centre}, pairs=tuple(some))
    tunnel = "ipsec0"
    if role == "hub":
        # The same pairs, told to the other end.
        document = hub(pairs=tuple(mirrored(p) for p in some))
    nft = Nft(ruleset(document, Backend.USERLAND))
    for packet, outward in crossing:
        if role == "hub":
            outward = not outward
        lan = lan_of(document, packet.source if outward else packet.destination)
        inside = nft.admits(packet, *((lan, tunnel) if outward else (tunnel, lan)))
        assert inside == listed(document, packet, outward), packet
        # By any other way nothing passes, listed or not.
        for iif, oif in (
            (lan, lan),
            (lan, "wired"),
            ("wired", lan),
            ("wired", tunnel),
            (tunnel, "wired"),
            (tunnel, tunnel),
        ):
            assert not nft.admits(packet, iif, oif)


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
    cleartext = [index for index, rule in enumerate(rules) if '"cleartext"' in rule]
    assert len(cleartext) == 4 and max(cleartext) < established
    assert rules.index(f"{backend.came_through} jump from_tunnel") < min(cleartext)


def test_protected_covers_both_ends() -> None:
    sets = {s.name: s.elements for s in ruleset(branch(), Backend.USERLAND).sets}
    for address in ("10.101.0.5", "10.10.0.5", "10.50.0.5", "10.255.0.1", "10.255.1.2", "10.255.101.2"):
        assert any(lies_in(number(address), e) for e in sets["protected4"]), address
    assert not any(lies_in(number("203.0.113.18"), e) for e in sets["protected4"])
    assert any(lies_in(number("fd00:10::9"), e) for e in sets["protected6"])
    assert sets["answering4"] == {"10.255.0.101", "10.255.101.1", "10.255.101.2"}
