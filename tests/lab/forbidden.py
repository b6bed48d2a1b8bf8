"""Does anything get through that no permit lists? And does the same get through once one does?

`Combination` is one thing to offer: who sends what to whom. `forbidden` lists all that a network.yaml does not permit:
every ordered pair of hosts, every host to the internet, and whoever holds the provider's wire to every host behind it,
under the provider's own address and under that of a permitted host. `offer_all` offers many at once and says of each
how many packets entered the site that has to judge them, and how many arrived anywhere.

Packets are told apart by addresses and protocol, and from all else by their DSCP; fragments by one of their own, since
routers may join them on the way. They are counted before any rule of a site, and at the door of every host.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import get_args

import yaml

from tests.lab import provision, watch
from tests.lab.container import LabError, wait_until
from tests.lab.lab import Lab
from tests.lab.offered import Protocol
from tests.lab.topology import Host, Network, Site, access_router
from tests.lab.wiring import OFFER_DSCP, TO_CPE

PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)

_SCRIPT = Path(__file__).with_name("offer.py")
_FRAGMENTS_DSCP = 41  # as unused as the other
_TABLE = "lab_matrix"
_STRANGER = "outside"  # an internet host, for what must not break out
_PORT = 80
_INTERVAL_MS = 0.5
_SEND_S = 60.0
_DOCUMENT_S = 30.0
_IN_FORCE_S = 10.0

_Key = tuple[str, str, Protocol]  # source address, destination address, protocol: as counted on the way


@dataclass(frozen=True, order=True)
class Combination:
    """`sender` is a namespace, whose packets come in at the site's `interface`."""

    sender: str
    source: str
    to: str
    protocol: Protocol
    site: str
    interface: str

    def __str__(self) -> str:
        return f"{self.protocol} from {self.sender} ({self.source}) to {self.to}"

    @property
    def key(self) -> _Key:
        return (self.source, self.to, self.protocol)


@dataclass(frozen=True)
class Outcome:
    """What became of a combination's packets. Combinations with the same addresses share what arrived."""

    combination: Combination
    entered: int
    arrived: int


@dataclass(frozen=True)
class Verdict:
    """`delivered`: packets that arrived though no permit lists them. `passing`: senders that a permit then let pass."""

    forbidden: tuple[Outcome, ...]
    delivered: int
    arrivals: tuple[str, ...]
    passing: tuple[Outcome, ...]

    @property
    def entered(self) -> int:
        return sum(outcome.entered for outcome in self.forbidden)


def judge(lab: Lab, count: int = 5) -> Verdict:
    """Offer all that is forbidden, then list those pairs that a network.yaml can list and offer these again. The
    network.yaml that the lab was provisioned with is in force again when this returns.

    LabError if a sender's packets did not even reach its site, or if a listed pair does not pass: then nothing was
    measured.
    """
    # One service is not permitted at first, so that a branch's hosts too are refused what they may have later.
    closed = network_yaml(lab.network, services_without_permit=1)
    opened = network_yaml(lab.network, initiator="either")
    put_in_force(lab, closed)
    refused = forbidden(lab.network, closed)
    outcomes, arrivals = offer_all(lab, refused, count)
    silent = [outcome.combination for outcome in outcomes if outcome.entered == 0]
    if silent:
        raise LabError(f"nothing was measured: packets did not enter their site: {_some(silent)}")
    now_listed = _listed(lab.network, opened)
    again = [c for c in refused if (c.sender, c.to) in now_listed and _is_alone(lab.network, c.source)]
    put_in_force(lab, opened)
    passing = _pass(lab, again, count)
    put_in_force(lab, provision.network_yaml(lab.network))
    return Verdict(tuple(outcomes), arrivals.total(), tuple(f"{n} x {key}" for key, n in arrivals.items()), passing)


def network_yaml(network: Network, *, services_without_permit: int = 0, initiator: str = "branch") -> str:
    """The lab's network.yaml with these permits left out, and with this side allowed to start flows."""
    described = yaml.safe_load(provision.network_yaml(network))
    permits = described["permits"]
    kept = permits[:1] + permits[1 + services_without_permit :]
    described["permits"] = [permit | {"initiator": initiator} for permit in kept]
    text: str = yaml.safe_dump(described, sort_keys=False)
    return text


def put_in_force(lab: Lab, text: str) -> None:
    """Apply it, and return once every site that it concerns obeys it."""
    for site, version in provision.apply(lab, text).items():
        watch.wait_for(lab, site, f"obeys document version {version}", watch.has_document(version), _DOCUMENT_S)


def forbidden(network: Network, text: str) -> list[Combination]:
    """All that this network.yaml does not permit, and that somebody could try."""
    listed = _listed(network, text)
    found = [
        combination
        for combination in (*_between_hosts(network), *_to_the_internet(network))
        if (combination.sender, combination.to) not in listed
    ]
    return sorted([*found, *_from_the_wire(network)])


def offer_all(lab: Lab, combinations: Sequence[Combination], count: int) -> tuple[list[Outcome], Counter[_Key]]:
    """Offer `count` packets of each (of fragments: twice as many), all senders at once. What arrived, of whatever."""
    doors = sorted({(c.site, c.interface) for c in combinations})
    receivers = [host.name for host in lab.network.hosts] + [host.name for host in lab.network.internet_hosts]
    sites = sorted({site for site, _ in doors})
    try:
        for site in sites:
            interfaces = [interface for door, interface in doors if door == site]
            _count(lab, site, {interface: f'iifname "{interface}" ' for interface in interfaces})
        for receiver in receivers:
            _count(lab, receiver, {"arrived": ""})
        _send(lab, combinations, count)
        entered = {door: _counted(lab, *door) for door in doors}
        arrived: Counter[_Key] = Counter()
        for receiver in receivers:
            # A sender's own packets do not come in at its door: what is counted there came from elsewhere.
            arrived.update(_counted(lab, receiver, "arrived"))
    finally:
        for namespace in (*sites, *receivers):
            lab.run(namespace, "nft", "delete", "table", "ip", _TABLE, check=False)
    outcomes = [Outcome(c, entered[c.site, c.interface].get(c.key, 0), arrived[c.key]) for c in combinations]
    return outcomes, arrived


def _pass(lab: Lab, listed: Sequence[Combination], count: int) -> tuple[Outcome, ...]:
    outcomes: list[Outcome] = []
    # One direction after the other: hosts answer (echo replies, RST) with the DSCP of what they answer.
    roles = {c: lab.network.site(c.site).role for c in listed}

    def all_pass() -> bool:
        outcomes.clear()
        for role in sorted(set(roles.values())):
            outcomes.extend(offer_all(lab, [c for c in listed if roles[c] == role], count)[0])
        return all(outcome.arrived >= count for outcome in outcomes)

    try:
        wait_until("every listed pair passes", all_pass, _IN_FORCE_S)
    except LabError as error:
        lost = [outcome.combination for outcome in outcomes if outcome.arrived < count]
        raise LabError(f"{error}; not so: {_some(lost)}") from None
    return tuple(outcomes)


def _some(combinations: Sequence[Combination]) -> str:
    return f"{len(combinations)}, such as {'; '.join(map(str, combinations[:5]))}"


def _between_hosts(network: Network) -> Iterator[Combination]:
    addresses = sorted({str(host.address) for host in network.hosts})
    for site, interface, host in _hosts(network):
        for to in addresses:
            if to != str(host.address):
                for protocol in PROTOCOLS:
                    yield Combination(host.name, str(host.address), to, protocol, site.name, interface)


def _to_the_internet(network: Network) -> Iterator[Combination]:
    to = str(network.address_of(_STRANGER))
    for site, interface, host in _hosts(network):
        for protocol in PROTOCOLS:
            yield Combination(host.name, str(host.address), to, protocol, site.name, interface)


def _from_the_wire(network: Network) -> Iterator[Combination]:
    for site in network.sites:
        friends = [host for other, _, host in _hosts(network) if other.role != site.role]
        for uplink in site.uplinks:
            for lan in site.lans:
                for source in (str(uplink.gateway), str(friends[0].address)):
                    for protocol in PROTOCOLS:
                        router = access_router(site.name, uplink.name)
                        yield Combination(router, source, str(lan.host.address), protocol, site.name, uplink.name)


def _hosts(network: Network) -> Iterator[tuple[Site, str, Host]]:
    for site in network.sites:
        for lan in site.lans:
            for host in lan.hosts:
                yield site, lan.name, host


def _listed(network: Network, text: str) -> set[tuple[str, str]]:
    """(host, address): who may start flows to whom. Every permit of the lab is from all branches."""
    described = yaml.safe_load(text)
    branch_hosts = [host for site, _, host in _hosts(network) if site.role == "branch"]
    found = set()
    for permit in described["permits"]:
        subnet = IPv4Network(described["services"][permit["to"]]["subnet"])
        for server in (host for host in network.hosts if host.address in subnet):
            for client in branch_hosts:
                if permit.get("initiator", "branch") in ("branch", "either"):
                    found.add((client.name, str(server.address)))
                if permit.get("initiator", "branch") in ("service", "either"):
                    found.add((server.name, str(client.address)))
    return found


def _is_alone(network: Network, address: str) -> bool:
    """Of two servers with one address only the one at the hub that carries the bundle can reach a branch."""
    return sum(str(host.address) == address for host in network.hosts) == 1


def _send(lab: Lab, combinations: Iterable[Combination], count: int) -> None:
    by_sender: dict[str, list[Combination]] = {}
    for combination in combinations:
        by_sender.setdefault(combination.sender, []).append(combination)
    with ThreadPoolExecutor(len(by_sender) or 1) as pool:
        list(pool.map(lambda sender: _send_from(lab, sender, by_sender[sender], count), by_sender))
    # The slowest uplinks of the lab take 25 ms; a busy machine takes more.
    lab.run(_STRANGER, "sleep", "0.5")


def _send_from(lab: Lab, sender: str, combinations: Sequence[Combination], count: int) -> None:
    offers = [
        {
            "source": c.source,
            "to": c.to,
            "protocol": c.protocol,
            "port": _PORT,
            "count": count,
            "interval_ms": _INTERVAL_MS,
            "dscp": _FRAGMENTS_DSCP if c.protocol == "fragments" else OFFER_DSCP,
        }
        for c in combinations
    ]
    site = lab.site(combinations[0].site)
    wire = combinations[0].interface in site.uplinks
    destinations = sorted({c.to for c in combinations}) if wire else []
    via = str(site.uplink(combinations[0].interface).address.ip) if wire else ""
    argv = [sys.executable, "-S", str(_SCRIPT), "--many"]
    try:
        for to in destinations:
            lab.run(sender, "ip", "route", "add", f"{to}/32", "via", via, "dev", TO_CPE)
        lab.run(sender, *argv, input=json.dumps(offers), timeout_s=_SEND_S)
    finally:
        for to in destinations:
            lab.run(sender, "ip", "route", "del", f"{to}/32", check=False)


def _count(lab: Lab, namespace: str, where: dict[str, str]) -> None:
    """Two sets for each name: whole packets and fragments, where the condition of that name holds."""
    sets, rules = [], []
    for name, condition in where.items():
        for suffix, dscp in (("", OFFER_DSCP), ("_fragments", _FRAGMENTS_DSCP)):
            key = "ip saddr . ip daddr . ip protocol"
            sets.append(
                f"set {name}{suffix} {{ type ipv4_addr . ipv4_addr . inet_proto; size 4096; flags dynamic; counter; }}"
            )
            rules.append(f"{condition}ip dscp {dscp} update @{name}{suffix} {{ {key} counter }}")
    chain = "chain prerouting { type filter hook prerouting priority -450;\n" + "\n".join(rules) + "\n}"
    lab.run(namespace, "nft", "-f", "-", input=f"table ip {_TABLE} {{\n" + "\n".join(sets) + f"\n{chain}\n}}\n")


def _counted(lab: Lab, namespace: str, name: str) -> dict[_Key, int]:
    found: dict[_Key, int] = {}
    for suffix in ("", "_fragments"):
        listing = lab.run(namespace, "nft", "-j", "list", "set", "ip", _TABLE, name + suffix).stdout
        for item in json.loads(listing)["nftables"]:
            for element in item.get("set", {}).get("elem", []):
                source, to, protocol = element["elem"]["val"]["concat"]
                found[source, to, "fragments" if suffix else protocol] = int(element["elem"]["counter"]["packets"])
    return found
