"""Enough of nftables to judge forwarded packets by a `Ruleset`, and what a document says of the same packets.

Two opinions on a packet that have nothing in common: `Nft` reads the rules, `listed` reads the pairs.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Literal

from cpe_agent.model.dataplane import Ruleset
from cpe_agent.model.document import Document, Pair


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
        if match := re.match(r"iifname \. (ip6?) saddr != @(\w+) jump drop_spoofed$", rule):
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
