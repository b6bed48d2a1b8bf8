"""What does each site need to know?

In: a `Network`, its addresses, and who is trusted. Out: one `Document` per site, checked as the agents will check it.
Pure: the same network gives the same documents. Version, epoch and times are the publisher's (`Stamp`).
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from cpe_agent.model import document
from cpe_agent.model.document import Document, Endpoint, Pair, Peer
from cpe_agent.model.document_check import check
from cpe_controller.addresses import Allocation, allocate
from cpe_controller.network import Hub, Network, Site, identity
from cpe_controller.pairs import pairs_of

# As agents have it for the paths that they dial: a lost probe is not yet a reason to ask.
DPD_INTERVALS = 1.5


@dataclass(frozen=True)
class Stamp:
    """What is in a document beside its content."""

    epoch: int
    version: int
    issued_at: dt.datetime


@dataclass(frozen=True)
class Orders:
    """What operators said of single sites, beside the network: sites that are `revoked` (nobody knows them any more) or
    `drained`, the `generations` of boxes that took another's place, and whether most pairs may go at once."""

    revoked: frozenset[str] = frozenset()
    drained: frozenset[str] = frozenset()
    generations: Mapping[str, int] = field(default_factory=dict)
    allow_mass_removal: bool = False


NO_ORDERS = Orders()


def compile_network(
    network: Network,
    addresses: Allocation,
    trust: document.Trust,
    stamps: Mapping[str, Stamp],
    orders: Orders = NO_ORDERS,
) -> dict[str, Document]:
    """One document per site that is not revoked. Raises `NetworkError` where a site's document would be refused."""
    pairs = pairs_of(network, addresses)
    documents: dict[str, Document] = {}
    for site in network.sites:
        if site.name in orders.revoked:
            continue
        stamp = stamps[site.name]
        compiled = Document(
            schema=document.SCHEMA,
            network=network.name,
            site=site.name,
            role="hub" if isinstance(site, Hub) else "branch",
            epoch=stamp.epoch,
            version=stamp.version,
            issued_at=stamp.issued_at,
            expires_at=stamp.issued_at + dt.timedelta(days=network.lifetime_days),
            on_expiry=network.on_expiry,
            controllers=network.controllers,
            trust=trust,
            site_address=addresses[site.name]["site"],
            endpoints=_endpoints(site, addresses),
            lans=tuple(
                document.Lan(lan.name, str(lan.subnet), interface=lan.interface, via=lan.via, check=lan.check)
                for lan in site.lans
            ),
            uplinks=_uplinks(site, addresses),
            peers=_peers(network, site, addresses, orders),
            pairs=tuple(still_served(pairs[site.name], orders.revoked)),
            classes=dict(network.classes),
            ipsec=_ipsec(network, site),
            policy=network.policy,
            management=site.management,
            drain=isinstance(site, Hub) and (site.drain or site.name in orders.drained),
            hub_nat=isinstance(site, Hub) and site.hub_nat,
            allow_mass_removal=orders.allow_mass_removal,
        )
        try:
            check(compiled)
        except document.DocumentError as error:
            raise network.error(site, error.path, error.reason) from None
        documents[site.name] = compiled
    return documents


def rehearse(network: Network, now: dt.datetime) -> dict[str, Document]:
    """As if `network` were the first to be applied: raises what applying it would raise."""
    stamp = Stamp(epoch=0, version=1, issued_at=now)
    stamps = {site.name: stamp for site in network.sites}
    return compile_network(network, allocate(network, {}), document.Trust(), stamps)


def stamped(compiled: Document, stamp: Stamp) -> Document:
    """The same content under another stamp, with the same lifetime."""
    lifetime = compiled.expires_at - compiled.issued_at
    return msgspec.structs.replace(
        compiled,
        epoch=stamp.epoch,
        version=stamp.version,
        issued_at=stamp.issued_at,
        expires_at=stamp.issued_at + lifetime,
    )


def _uplinks(site: Site, addresses: Allocation) -> dict[str, document.Uplink]:
    return {
        uplink.name: document.Uplink(
            kind=uplink.kind,
            priority=uplink.priority,
            path_address=addresses[site.name][f"path/{uplink.name}"],
            interface=uplink.interface,
            mtu=uplink.mtu,
            monthly_bytes=uplink.monthly_bytes,
            budget_day=uplink.budget_day,
            probe=uplink.probe,
        )
        for uplink in site.uplinks
    }


def _ipsec(network: Network, site: Site) -> document.Ipsec:
    """A hub asks a silent branch for life no sooner than that branch's slowest standby path says something by itself:
    charon knows one pace for all paths of a peer, and on a metered uplink DPD would cost more than the probes."""
    if not isinstance(site, Hub):
        return network.ipsec
    slowest_ms = max(uplink.probe.standby_interval_ms for other in network.sites for uplink in other.uplinks)
    patient = math.ceil(DPD_INTERVALS * slowest_ms / 1000)
    return msgspec.structs.replace(network.ipsec, dpd_s=max(network.ipsec.dpd_s, patient))


def _endpoints(site: Site, addresses: Allocation) -> tuple[Endpoint, ...]:
    if not isinstance(site, Hub):
        return ()
    own = addresses[site.name]
    return tuple(
        Endpoint(name, address, own[f"probe/{name}"], own[f"ready/{name}"]) for name, address in site.endpoints
    )


def still_served(pairs: Iterable[Pair], revoked: frozenset[str]) -> Iterator[Pair]:
    for pair in pairs:
        if not revoked.intersection(pair.peers):
            yield pair
        elif peers := tuple(peer for peer in pair.peers if peer not in revoked):
            yield msgspec.structs.replace(pair, peers=peers)


def _peers(network: Network, site: Site, addresses: Allocation, orders: Orders) -> dict[str, Peer]:
    """A branch's peers are the hubs; a hub's are the branches and the other hubs."""

    def peer(other: Site, dial: bool) -> Peer:
        return _peer(network, site, other, dial, addresses, orders.generations.get(other.name, 1))

    hubs = [hub for hub in network.hubs if hub.name != site.name and hub.name not in orders.revoked]
    if not isinstance(site, Hub):
        return {hub.name: peer(hub, True) for hub in hubs}
    found = {hub.name: peer(hub, hub.name in site.dials) for hub in hubs}
    return found | {each.name: peer(each, False) for each in network.branches if each.name not in orders.revoked}


def _peer(network: Network, site: Site, other: Site, dial: bool, addresses: Allocation, generation: int) -> Peer:
    theirs = addresses[other.name]
    # What a site has itself it does not look for elsewhere: of a subnet that both hubs serve, each has its own.
    own = {lan.subnet for lan in site.lans}
    return Peer(
        identity=identity(other.name, network.name, generation),
        dial=dial,
        site_address=theirs["site"],
        lans=tuple(str(lan.subnet) for lan in other.lans if lan.subnet not in own),
        endpoints=_endpoints(other, addresses) if dial else (),
        path_addresses=() if dial else tuple(theirs[f"path/{uplink.name}"] for uplink in other.uplinks),
    )
