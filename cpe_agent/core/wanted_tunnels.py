"""Which connections, bundles and probes does a document ask for?

Pure. A dialled peer gives one connection per path (uplink x endpoint), with a probe child and one traffic child per
bundle that this peer can carry. A peer that dials us gives one answering connection: its LANs and ours, which charon
narrows to what the dialler asks. Bundles are pairs with the same ordered peers and class; no two may claim the same
packet.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterable, Mapping

from cpe_agent.core.addresses import host
from cpe_agent.core.selectors import covers, outermost
from cpe_agent.core.uplinks import ResolvedUplink
from cpe_agent.model.dataplane import (
    PROBE_CHILD,
    TRAFFIC_CHILD,
    TRIAL_CHILD,
    Backend,
    Bundle,
    Child,
    Connection,
    Ike,
    Path,
    Probe,
    Service,
)
from cpe_agent.model.document import Class, Document, DocumentError, Endpoint, Pair, Peer

# suite -> (IKE proposal, ESP proposal). ESP keys are refreshed with a key exchange of their own (forward secrecy).
SUITES = {
    "aes256gcm-ecp256": ("aes256gcm16-prfsha384-ecp256", "aes256gcm16-ecp256"),
    "aes128gcm-ecp256": ("aes128gcm16-prfsha256-ecp256", "aes128gcm16-ecp256"),
}
METERED = "cellular"
# A lost probe is not yet a reason to ask.
DPD_INTERVALS = 1.5
# Protocol ("" for any), the ports here, the ports there.
Claim = tuple[str, tuple[int, int], tuple[int, int]]
# Bundle name -> (local, remote) traffic selectors.
Claims = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
# As charon prints them, whichever way the document writes them.
PROTOCOL_NAMES = {"1": "icmp", "6": "tcp", "17": "udp", "58": "ipv6-icmp", "icmpv6": "ipv6-icmp"}


def connections(
    document: Document,
    uplinks: Iterable[ResolvedUplink],
    identity: str,
    backend: Backend,
    claims: Claims | None = None,
    services: Iterable[Service] = (),
) -> tuple[Connection, ...]:
    """One per dialled path and one per peer that dials us, sorted by stem. `claims`: `selectors`, if known already."""
    trials = _trials(document, services)
    found: list[Connection] = []
    claims = selectors(document) if claims is None else claims
    here = outermost(_own_subnets(document))
    for name, peer in document.peers.items():
        if not peer.dial:
            found.append(_answering(document, here, name, peer, identity, backend))
            continue
        for uplink in uplinks:
            for endpoint in peer.endpoints:
                source = _source(uplink, endpoint.address)
                # Without one, charon would take any address, and the path another uplink.
                if source is not None:
                    found.append(_dialled(document, uplink, source, name, peer, endpoint, identity, claims, trials))
    return tuple(sorted(found, key=lambda connection: connection.stem))


def bundles(document: Document, uplinks: Iterable[ResolvedUplink]) -> tuple[Bundle, ...]:
    """Bundles of pairs that need a peer we dial, with their paths: best peer first, then best uplink (as the class
    prefers them, then by priority), then endpoint."""
    uplinks = tuple(uplinks)
    found = []
    for (peers, class_), pairs in grouped(document).items():
        paths = [
            Path(uplink.name, peer, endpoint.name)
            for peer in peers
            if document.peers[peer].dial
            for uplink in _preferred(document, class_, uplinks)
            if _may_use(document, class_, uplink)
            for endpoint in document.peers[peer].endpoints
            if _source(uplink, endpoint.address) is not None
        ]
        if any(document.peers[peer].dial for peer in peers):
            name = bundle_name(peers, class_)
            ids = tuple(sorted(pair.id for pair in pairs))
            needs = document.classes.get(class_, Class())
            found.append(Bundle(name, f"{TRAFFIC_CHILD}-{name}", tuple(paths), ids, needs))
    return tuple(sorted(found, key=lambda bundle: bundle.name))


def probes(document: Document, uplinks: Iterable[ResolvedUplink]) -> tuple[Probe, ...]:
    """How each dialled path is probed."""
    found = []
    for uplink in uplinks:
        pace = document.uplinks[uplink.name].probe
        for name, peer in document.peers.items():
            for endpoint in peer.endpoints if peer.dial else ():
                if _source(uplink, endpoint.address) is None:
                    continue
                found.append(
                    Probe(
                        Path(uplink.name, name, endpoint.name),
                        uplink.path_address,
                        endpoint.probe_address,
                        endpoint.ready_address,
                        pace.active_interval_ms / 1000,
                        pace.standby_interval_ms / 1000,
                        pace.misses,
                        _metered(document, uplink),
                    )
                )
    return tuple(sorted(found))


def grouped(document: Document) -> dict[tuple[tuple[str, ...], str], list[Pair]]:
    """Pairs that need a peer which we dial, by (ordered peers, class). Who dials us makes bundles of its own."""
    dialled = frozenset(name for name, peer in document.peers.items() if peer.dial)
    found: dict[tuple[tuple[str, ...], str], list[Pair]] = {}
    for pair in document.pairs if dialled else ():
        if not dialled.isdisjoint(pair.peers):
            found.setdefault((pair.peers, pair.class_), []).append(pair)
    return found


def _may_use(document: Document, class_: str, uplink: ResolvedUplink) -> bool:
    asked = document.classes.get(class_)
    return not (asked and asked.metered == "never" and _metered(document, uplink))


def _metered(document: Document, uplink: ResolvedUplink) -> bool:
    return uplink.kind == METERED or document.uplinks[uplink.name].monthly_bytes is not None


def _preferred(document: Document, class_: str, uplinks: Iterable[ResolvedUplink]) -> list[ResolvedUplink]:
    """The uplinks that the class names, by name or kind, come first."""
    order = document.classes.get(class_, Class()).uplinks

    def place(uplink: ResolvedUplink) -> int:
        return min((order.index(name) for name in (uplink.name, uplink.kind) if name in order), default=len(order))

    return sorted(uplinks, key=place)


def bundle_name(peers: tuple[str, ...], class_: str) -> str:
    """ "centre+cloud", or "centre+cloud/voice" for a class of its own."""
    return "+".join(peers) + ("" if class_ == "default" else f"/{class_}")


def selectors(document: Document) -> Claims:
    """What each bundle claims. A subnet that several bundles claim is told apart by protocol
    and port, and only one may claim all of it; otherwise `DocumentError`."""
    groups = grouped(document)
    claimed: dict[str, list[str]] = {}
    for (peers, class_), pairs in groups.items():
        for subnet in {pair.remote for pair in pairs}:
            claimed.setdefault(subnet, []).append(bundle_name(peers, class_))
    wide: dict[str, str] = {}
    found: Claims = {}
    for (peers, class_), pairs in groups.items():
        name = bundle_name(peers, class_)
        remote: set[str] = set()
        local: set[str] = set()
        own = _claimed_here(document, pairs)
        for pair in pairs:
            tail = _tails(pair) if len(claimed[pair.remote]) > 1 else [("", "")]
            if tail == [("", "")]:
                other = wide.setdefault(pair.remote, name)
                if other != name:
                    index = document.pairs.index(pair)
                    reason = (
                        f"{pair.remote} is claimed whole by {other} and by {name}: same peers, class, or a protocol"
                    )
                    raise DocumentError(f"pairs[{index}].remote", reason)
            for here, there in tail:
                remote.add(f"{pair.remote}{there}")
                local |= {f"{subnet}{here}" for subnet in own}
        found[name] = (outermost(local), outermost(remote))
    for subnet, names in claimed.items():
        _refuse_ties(document, subnet, {name: _claims(subnet, *found[name]) for name in names})
    return found


def _refuse_ties(document: Document, subnet: str, claims: Mapping[str, list[Claim]]) -> None:
    """Of two bundles that claim a packet one must be the more specific."""
    names = list(claims)
    for number, name in enumerate(names):
        for other in names[:number]:
            tie = next((c for c in claims[name] for o in claims[other] if _tied(c, o)), None)
            if tie is None:
                continue
            index = next(
                i
                for i, pair in enumerate(document.pairs)
                if pair.remote == subnet and bundle_name(pair.peers, pair.class_) == name
            )
            raise DocumentError(
                f"pairs[{index}].remote",
                f"the same packets to {subnet} ({tie[0]}) are claimed by {other} and by {name}",
            )


def _claims(subnet: str, local: Iterable[str], remote: Iterable[str]) -> list[Claim]:
    """What a bundle's selectors for `subnet` claim: charon joins each local with each remote one."""
    here = {_parsed(selector) for selector in local}
    there = {_parsed(selector) for selector in remote if selector.partition("[")[0] == subnet}
    return [
        (near or far, near_ports, far_ports)
        for near, near_ports in sorted(here)
        for far, far_ports in sorted(there)
        if near == far or not near or not far
    ]


def _parsed(selector: str) -> tuple[str, tuple[int, int]]:
    protocol, _, ports = selector.partition("[")[2].removesuffix("]").partition("/")
    first, _, last = ports.partition("-")
    return protocol, (int(first), int(last or first)) if ports else (0, 65535)


def _tied(one: Claim, other: Claim) -> bool:
    if one[0] != other[0] and one[0] and other[0]:
        return False
    axes = list(zip(one[1:], other[1:], strict=True))
    if not all(a[0] <= b[1] and b[0] <= a[1] for a, b in axes):
        return False
    # Ports that overlap without one range lying in the other belong to nobody.
    crossed = any((a[0] < b[0]) == (a[1] < b[1]) and a[0] != b[0] and a[1] != b[1] for a, b in axes)
    return one == other or crossed


def _tails(pair: Pair) -> list[tuple[str, str]]:
    """Selector suffixes (local, remote) of a pair: the port is the responder's."""
    if pair.protocol is None:
        return [("", "")]
    protocol = PROTOCOL_NAMES.get(pair.protocol, pair.protocol)
    plain = f"[{protocol}]"
    if not pair.ports or pair.initiator == "either":
        return [(plain, plain)]
    ports = [f"[{protocol}/{ports}]" for ports in pair.ports]
    return [(plain, port) if pair.initiator == "local" else (port, plain) for port in ports]


def _claimed_here(document: Document, pairs: Iterable[Pair]) -> tuple[str, ...]:
    """Our side of a bundle. A branch claims all it has, so that a pair more touches no SA. Of a hub's LANs the other
    hub may have one too (a subnet served by both), and would narrow the claim: there only those that the pairs name."""
    own = _own_subnets(document)
    if document.role != "hub":
        return own
    named = {pair.local for pair in pairs}
    return tuple(one for one in own if any(covers(one, local) for local in named) or one == host(document.site_address))


def _own_subnets(document: Document) -> tuple[str, ...]:
    return (*(lan.subnet for lan in document.lans), host(document.site_address))


def _dialled(
    document: Document,
    uplink: ResolvedUplink,
    source: str,
    name: str,
    peer: Peer,
    endpoint: Endpoint,
    identity: str,
    claims: Claims,
    trials: Mapping[str, Child],
) -> Connection:
    probe = Child(
        PROBE_CHILD,
        (host(uplink.path_address),),
        tuple(sorted({host(endpoint.probe_address), host(endpoint.ready_address)})),
    )
    carried = [
        bundle_name(peers, class_)
        for peers, class_ in grouped(document)
        if name in peers and _may_use(document, class_, uplink)
    ]
    traffic = [Child(f"{TRAFFIC_CHILD}-{bundle}", *claims[bundle]) for bundle in carried]
    traffic += [trials[bundle] for bundle in carried if bundle in trials]
    ike_proposal, esp_proposal = SUITES[document.ipsec.suite]
    ike = Ike(
        local_addrs=(source,),
        remote_addrs=(endpoint.address,),
        remote_port=peer.port,
        local_id=identity,
        remote_id=peer.identity,
        proposal=ike_proposal,
        esp_proposal=esp_proposal,
        dpd_s=dpd_s(document, uplink.name),
        rekey_s=document.ipsec.rekey_s,
        reauth_s=document.ipsec.max_age_s,
    )
    return Connection(str(Path(uplink.name, name, endpoint.name)), ike, (probe, *sorted(traffic)))


def dpd_s(document: Document, uplink: str) -> int:
    """Answered probes keep DPD silent, so it must wait longer than they do: an exchange of it costs as much as one of
    them, and on a metered uplink there would be several for each."""
    standby_s = document.uplinks[uplink].probe.standby_interval_ms / 1000
    return max(document.ipsec.dpd_s, math.ceil(DPD_INTERVALS * standby_s))


def _trials(document: Document, services: Iterable[Service]) -> dict[str, Child]:
    """By bundle, the child in which its servers are tried on a path that does not carry it: what the asking addresses
    ask and no other packet. It is more specific than any bundle, so it takes just that. It names the servers' whole
    subnet: in user space charon refuses a child at whose end the router has no address, as a hub has none of a
    server's."""
    subnets = {pair.id: pair.remote for pair in document.pairs if pair.probe is not None}
    found: dict[str, tuple[set[str], set[str]]] = {}
    for service in services:
        sources, servers = found.setdefault(service.bundle, (set(), set()))
        protocol = "tcp" if service.port else "ipv6-icmp" if ":" in service.server else "icmp"
        port = f"/{service.port}" if service.port else ""
        sources.add(f"{host(service.source)}[{protocol}]")
        servers.add(f"{subnets[service.pair]}[{protocol}{port}]")
    return {
        bundle: Child(f"{TRIAL_CHILD}-{bundle}", tuple(sorted(sources)), tuple(sorted(servers)))
        for bundle, (sources, servers) in found.items()
    }


def _source(uplink: ResolvedUplink, remote: str) -> str | None:
    """The uplink's address of the endpoint's IP version (None: it has none); for a name, IPv4 first."""
    try:
        version = ipaddress.ip_address(remote).version
    except ValueError:
        version = 4 if 4 in uplink.addresses else 6
    found = uplink.addresses.get(version)
    return found.address if found else None


def _answering(
    document: Document, here: tuple[str, ...], name: str, peer: Peer, identity: str, backend: Backend
) -> Connection:
    own = {a for endpoint in document.endpoints for a in (endpoint.probe_address, endpoint.ready_address)}
    children = [
        Child(
            TRAFFIC_CHILD,
            here,
            outermost((*peer.lans, host(peer.site_address))),
            # In the kernel both the old and the new SA must be accepted while a bundle moves.
            unique_marks=backend is Backend.KERNEL,
        )
    ]
    if own and peer.path_addresses:
        there = tuple(sorted(host(address) for address in peer.path_addresses))
        children.append(Child(PROBE_CHILD, tuple(sorted(host(address) for address in own)), there))
    ike_proposal, esp_proposal = SUITES[document.ipsec.suite]
    ike = Ike(
        local_addrs=(),
        remote_addrs=(),
        remote_port=0,
        local_id=identity,
        remote_id=peer.identity,
        proposal=ike_proposal,
        esp_proposal=esp_proposal,
        # Only the dialler rekeys and replaces: a stale SA here must never become the newest.
        dpd_s=document.ipsec.dpd_s,
        rekey_s=0,
        reauth_s=0,
    )
    return Connection(name, ike, tuple(sorted(children)))
