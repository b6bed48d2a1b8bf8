"""Which pairs does each site get?

In: a `Network` and its addresses. Out: for each site its pairs, every one with its mirror at the other end, or the
`NetworkError` of a permit that cannot be kept. Theory of operation:

- Either end of a permit becomes sides: a subnet and the sites that have it, best first. A LAN of a branch is one side,
  and so are a router's site_address and each subnet of a service. A LAN that several hubs have is one side with all of
  them, because to everybody else a packet for it has one list of hubs.
- Two sides of one IP version are a pair: at each site of the one, and mirrored at each site of the other. Each end
  names the other's sites as its peers.
- What a site has itself it does not look for elsewhere: no pair joins a subnet with a hub that has it too.
- A site, LAN or router that a permit names and that comes away without a pair is an error, not silence.

Ids are made of names alone ("hospital-1.ward>records", "centre.servers>van-1.router:tcp/22"), so they stay when other
permits come and go.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Literal

from cpe_agent.model.document import Pair, ServiceProbe
from cpe_agent.model.document_check import admits
from cpe_controller import values
from cpe_controller.addresses import Allocation
from cpe_controller.fields import NetworkError
from cpe_controller.network import End, Hub, Lan, Network, Permit, Subnet

Initiator = Literal["local", "remote", "either"]


_FROM_SAYS: dict[str, Initiator] = {"from": "local", "to": "remote", "either": "either"}
_TO_SAYS: dict[str, Initiator] = {"from": "remote", "to": "local", "either": "either"}
# In a permit both mean the ICMP of the pair's own IP version.
_ICMP = {4: "icmp", 6: "icmpv6"}


@dataclass(frozen=True)
class _Side:
    """One end of pairs: what it is called, its subnet, and the sites that have it, best first."""

    label: str
    subnet: Subnet
    sites: tuple[str, ...]


def pairs_of(network: Network, addresses: Allocation) -> dict[str, list[Pair]]:
    """Site -> its pairs, in the file's order."""
    found: dict[str, list[Pair]] = {site.name: [] for site in network.sites}
    known = _Known(network, addresses)
    for permit in network.permits:
        sides = _Sides(known, permit)
        done: set[tuple[_Side, _Side]] = set()
        paired: set[tuple[str, str | None]] = set()
        for end in permit.ends:
            for target in sides.targets:
                side = sides.of(end, target)
                if side is None or side.subnet.version != target.subnet.version:
                    continue
                paired.add((end.site, end.lan))
                if (side, target) not in done:
                    done.add((side, target))
                    _add(found, permit, side, target)
        sides.refuse_silence(paired, {target for _, target in done})
    return found


class _Known:
    """What the network has, by name."""

    def __init__(self, network: Network, addresses: Allocation) -> None:
        self.network = network
        self.sites = {site.name: site for site in network.sites}
        self.lans = {(site.name, lan.name): lan for site in network.sites for lan in site.lans}
        self.routers = {site.name: ipaddress.ip_network(addresses[site.name]["site"]) for site in network.sites}
        self._orders: dict[Subnet, set[tuple[str, ...]]] = {}

    def is_hub(self, site: str) -> bool:
        return isinstance(self.sites[site], Hub)

    def orders(self, subnet: Subnet) -> set[tuple[str, ...]]:
        """The hubs that have this LAN, best first: as its services say, or else in the file's order. More than one
        if its services do not agree."""
        if subnet not in self._orders:
            said = {
                service.at
                for service in self.network.services
                if any(values.overlap(subnet, served) for served in service.subnets)
            }
            having = tuple(hub.name for hub in self.network.hubs if any(lan.subnet == subnet for lan in hub.lans))
            self._orders[subnet] = said or {having}
        return self._orders[subnet]


class _Sides:
    """The sides of one permit."""

    def __init__(self, known: _Known, permit: Permit) -> None:
        self._known = known
        self._permit = permit
        self._named = {(end.site, known.lans[end.site, end.lan].subnet) for end in permit.ends if end.lan}
        self._at_home: set[str] = set()  # sites of which something was left out because the target has it too
        self.targets: list[_Side] = []
        if permit.service is not None:
            service = permit.service
            self.targets = [_Side(service.name, subnet, service.at) for subnet in service.subnets]
        self.targets += [_Side(f"{site}.router", known.routers[site], (site,)) for site in permit.routers]

    def of(self, end: End, target: _Side) -> _Side | None:
        """The end as the target sees it; None if it is left out, because the target has the same."""
        if not self._known.is_hub(end.site) and not self._known.is_hub(target.sites[0]):
            if end.site != target.sites[0]:
                raise self._error("from", f"{end.site} and {target.sites[0]} are both branches; one end must be a hub")
            return self._left_out(end, f"{end.site} would talk to itself")
        if end.lan is None:
            if end.site in target.sites:
                return self._left_out(end, f"{end.site} has {target.subnet} itself")
            return _Side(f"{end.site}.router", self._known.routers[end.site], (end.site,))
        lan = self._known.lans[end.site, end.lan]
        if not self._known.is_hub(end.site):
            return _Side(f"{end.site}.{end.lan}", lan.subnet, (end.site,))
        for site in target.sites:
            for theirs in self._known.sites[site].lans:
                if values.overlap(theirs.subnet, lan.subnet):
                    return self._left_out(end, f"{site} has {theirs.subnet} itself")
        return self._shared(end, lan)

    def refuse_silence(self, paired: set[tuple[str, str | None]], targets: set[_Side]) -> None:
        """Whatever the permit names must have come to something."""
        sites = {site for site, _ in paired}
        for end in self._permit.ends:
            if end.named == "lan" and (end.site, end.lan) not in paired:
                raise self._error("from", f"{end.site}.{end.lan} is {self._version_of(end)}; {self._wanted()}")
            if end.named != "lan" and end.site not in sites:
                if end.site not in self._at_home:
                    raise self._error("from", f"{end.site} has {self._version_of(end)} only; {self._wanted()}")
                if end.named == "site":
                    raise self._error("from", f"{end.site} has all of `to` itself; name another site")
        for target in self.targets:
            if self._permit.routers and target not in targets and target.sites[0] not in sites:
                raise self._error("to", f"no LAN of `from` can reach {target.label}, which is {target.subnet}")

    def _shared(self, end: End, lan: Lan) -> _Side:
        """A hub's LAN together with the other hubs that have it."""
        orders = self._known.orders(lan.subnet)
        if len(orders) > 1:
            raise self._error("from", f"{lan.subnet} is split among services with different hubs; give them the same")
        (order,) = orders
        if end.site not in order:
            raise self._error("from", f"{lan.subnet} is served at {', '.join(order)}, not at {end.site}; see services")
        missing = [hub for hub in order if (hub, lan.subnet) not in self._named]
        if missing:
            others = [f"{end.site}.{each.name}" for each in self._known.sites[end.site].lans if each is not lan]
            instead = f", or only {' and '.join(others)}" if others else ""
            reason = f"{lan.subnet} is at {', '.join(missing)} too; name every hub that has it{instead}"
            raise self._error("from", reason)
        name = next(each.name for each in self._known.sites[order[0]].lans if each.subnet == lan.subnet)
        return _Side(f"{order[0]}.{name}", lan.subnet, order)

    def _left_out(self, end: End, reason: str) -> _Side | None:
        if end.named == "lan":
            raise self._error("from", f"{reason}, so {end.site}.{end.lan} cannot be joined with it; leave it out")
        self._at_home.add(end.site)
        return None

    def _version_of(self, end: End) -> str:
        lans = [lan.subnet for lan in self._known.sites[end.site].lans if end.named != "lan" or lan.name == end.lan]
        subnets = [self._known.routers[end.site]] if end.lan is None else lans
        return " and ".join(f"IPv{version}" for version in sorted({subnet.version for subnet in subnets}))

    def _wanted(self) -> str:
        versions = " and ".join(f"IPv{version}" for version in sorted({side.subnet.version for side in self.targets}))
        what = self.targets[0].label if len(self.targets) == 1 or self._permit.service else "the other end"
        return f"{what} is {versions}: add a LAN of that version, or name only the sites that have one"

    def _error(self, key: str, reason: str) -> NetworkError:
        return self._known.network.error_at(f"{self._permit.field}.{key}", reason)


def _add(found: dict[str, list[Pair]], permit: Permit, side: _Side, target: _Side) -> None:
    """The pair at every site of both sides."""
    pair_id = f"{side.label}>{target.label}{permit.label}"
    # The server is behind `to`, so only the other end has something to probe.
    probe = permit.service.probe if permit.service else None
    for site in side.sites:
        found[site].append(_pair(permit, pair_id, side, target, _FROM_SAYS[permit.starts], probe))
    for site in target.sites:
        found[site].append(_pair(permit, pair_id, target, side, _TO_SAYS[permit.starts], None))


def _askable(permit: Permit, probe: ServiceProbe, subnet: Subnet) -> bool:
    """Does this permit let the site ask what the service's probe asks, at an address of this IP version?"""
    starts = _FROM_SAYS[permit.starts]
    there = probe.address is None or ipaddress.ip_address(probe.address) in subnet
    return there and admits(permit.protocol, permit.ports, starts, probe)


def _pair(
    permit: Permit, pair_id: str, mine: _Side, theirs: _Side, initiator: Initiator, probe: ServiceProbe | None
) -> Pair:
    protocol = permit.protocol
    return Pair(
        id=pair_id,
        local=str(mine.subnet),
        remote=str(theirs.subnet),
        initiator=initiator,
        peers=theirs.sites,
        protocol=_ICMP[mine.subnet.version] if protocol in _ICMP.values() else protocol,
        ports=permit.ports,
        class_=permit.class_,
        probe=probe if probe is not None and _askable(permit, probe, theirs.subnet) else None,
        log=permit.log,
    )
