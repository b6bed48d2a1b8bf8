"""Do the kernel and charon still agree about IPsec, and what is to be done if not?

Pure; kernel backend only. charon installs SAs and policies in the kernel and never looks at them again. In: charon's
account before and after the kernel was listed, and that list. Out: IKE_SAs that no longer have in the kernel what they
need, and what of the kernel's to delete. Theory of operation:

| in the kernel                          | meaning                               | decision                          |
|----------------------------------------|---------------------------------------|-----------------------------------|
| a CHILD_SA's SA or policy is missing   | somebody flushed them                 | its IKE_SA is broken: end it, and |
|                                        |                                       | the dialler dials anew            |
| an SA that charon does not know        | a charon that was killed has left it  | see below                         |
| a policy that no CHILD_SA has and that | somebody's: it could let a packet out | delete it                         |
| no SA in the kernel serves             | (or its SA has gone)                  |                                   |
| a policy without ESP in the place of a | somebody's: it lets packets out as    | delete it; the IKE_SA is broken   |
| CHILD_SA's                             | they are                              |                                   |
| a policy for packets with a mark that  | a killed charon has left it; the next | delete it                         |
| no SA with this policy's reqid makes   | one counts its marks from 1 again     |                                   |

Leftover SAs still carry traffic, and answer probes, so a dialler takes IKE_SAs for alive that its hub has lost. So a
hub first deletes the SA that its replies to probes leave by: on paths without traffic at once (or on one, if all have
some), on the others once that site has dialled anew or has had its time. The dialler notices, dials anew and moves. All
other leftovers are deleted when that is long over.

Nothing is decided by one look: what charon is just setting up is not in its account yet, or not in the kernel.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

import msgspec

from cpe_agent.core.addresses import host, network
from cpe_agent.core.wanted_policies import protected
from cpe_agent.core.wanted_tunnels import PROTOCOL_NAMES
from cpe_agent.model.dataplane import BLOCK_PRIORITY, PROBE_CHILD, stem_of
from cpe_agent.model.difference import Kind
from cpe_agent.model.document import Document
from cpe_agent.model.observed import Charon, ChildSa, IkeSa, KernelIpsec, KernelPolicy, KernelSa

# charon's port for IKE and ESP: SAs of others use others.
IKE_PORT = 4500
# charon needs some 10 ms between an SA in the kernel and one in its account; wall time, which may step.
YOUNG_S = 3.0
# An orphan is one that is so at two looks. A failover may wait for it.
CONFIRM_S = 0.25
# A dialler rebuilds a path in two round trips after its probes have failed.
MOVE_S = 3.0
# By then every dialler has moved or is away.
PRUNE_S = 30.0
DIRECTIONS = ("in", "fwd", "out")

_PROTOCOLS = {name: int(number) for number, name in PROTOCOL_NAMES.items() if number.isdigit()}
# What a policy selects, but for ports: direction, source, destination, protocol.
Claim = tuple[str, str, str, int]
# One side of a path, as the kernel's outbound SAs know it.
Way = tuple[str, str, int]


class Seen(msgspec.Struct, frozen=True):
    """Since when (the caller's clock) an SA is unknown to charon, a policy nobody's, and a site's first leftover path
    silent."""

    orphans: Mapping[KernelSa, float] = {}
    strays: Mapping[KernelPolicy, float] = {}
    silenced: Mapping[str, float] = {}


class Step(msgspec.Struct, frozen=True):
    """`broken`: unique ids of IKE_SAs. `wake_at`: when to look again at the latest, None: when something happens."""

    seen: Seen
    broken: frozenset[int] = frozenset()
    sas: frozenset[KernelSa] = frozenset()
    policies: frozenset[KernelPolicy] = frozenset()
    wake_at: float | None = None


def step(
    seen: Seen, document: Document, before: Charon, kernel: KernelIpsec, after: Charon, now: float, wall_s: float
) -> Step:
    """Compare once. `wall_s` is only compared with when SAs were added."""
    known = _spis(before) | _spis(after)
    orphans = {
        sa: seen.orphans.get(sa, now)
        for sa in kernel.sas
        if sa.spi not in known
        and IKE_PORT in (sa.source_port, sa.destination_port)
        and not 0 <= wall_s - sa.added < YOUNG_S
    }
    strays = {policy: seen.strays.get(policy, now) for policy in _strays(document, before, kernel, after)}
    confirmed = {sa: since for sa, since in orphans.items() if now - since >= CONFIRM_S}
    deleted = {sa for sa, since in confirmed.items() if now - since >= PRUNE_S}
    silent, silenced = _silenced(document, confirmed, kernel, after, seen.silenced, now)
    deleted |= silent
    gone = {policy for policy, since in strays.items() if now - since >= CONFIRM_S}
    again = [since + wait for since in orphans.values() for wait in (CONFIRM_S, PRUNE_S)]
    again += [since + MOVE_S for since in silenced.values()]
    again += [since + CONFIRM_S for since in strays.values()]
    return Step(
        Seen(orphans, strays, silenced),
        broken(before, kernel, after),
        frozenset(deleted),
        frozenset(gone),
        min((at for at in again if at > now), default=None),
    )


def broken(before: Charon, kernel: KernelIpsec, after: Charon) -> frozenset[int]:
    """IKE_SAs of which a CHILD_SA was there before and after the kernel was listed, and is not whole in the kernel."""
    still = {child.unique_id for _, child in _children(after) if child.state == "INSTALLED"}
    spis = {sa.spi for sa in kernel.sas}
    claims = {_claim(policy) for policy in kernel.policies if policy.reqid}
    found = set()
    for sa, child in _children(before):
        # One that is being replaced has given its policies to its successor.
        if child.state == "INSTALLED" and child.unique_id in still and child.spi_in:
            whole = {child.spi_in, child.spi_out} <= spis and claimed(child) <= claims
            if not whole:
                found.add(sa.unique_id)
    return frozenset(found)


def differences(document: Document, charon: Charon, kernel: KernelIpsec) -> list[tuple[Kind, str]]:
    """What differs, in words: for `verify`, which reports what it sees at one look."""
    found: list[tuple[Kind, str]] = []
    spis = {sa.spi for sa in kernel.sas}
    claims = {_claim(policy) for policy in kernel.policies if policy.reqid}
    for sa, child in _children(charon):
        if child.state != "INSTALLED" or not child.spi_in:
            continue
        where = f"{stem_of(sa.connection)}, CHILD_SA {child.name}"
        for spi, direction in ((child.spi_in, "in"), (child.spi_out, "out")):
            if spi not in spis:
                found.append((Kind.MISSING, f"{where}: the kernel has no SA {direction}"))
        for direction, source, to, protocol in sorted(claimed(child) - claims):
            found.append((Kind.MISSING, f"{where}: the kernel has no policy {_words(direction, source, to, protocol)}"))
    known = _spis(charon)
    for each in sorted(kernel.sas):
        if each.spi not in known and IKE_PORT in (each.source_port, each.destination_port):
            found.append((Kind.FOREIGN, f"SA {each.source} to {each.destination} that charon does not know"))
    for policy in sorted(_strays(document, charon, kernel, charon)):
        found.append((Kind.FOREIGN, f"policy {_words(*_claim(policy))}"))
    return found


def claimed(child: ChildSa) -> set[Claim]:
    """The policies that a CHILD_SA needs in the kernel."""
    found: set[Claim] = set()
    for local in child.local_ts:
        for remote in child.remote_ts:
            here, there = _parsed(local), _parsed(remote)
            if network(here[0]).version != network(there[0]).version:
                continue
            protocol = here[1] or there[1]
            found.add(("out", here[0], there[0], protocol))
            found |= {(direction, there[0], here[0], protocol) for direction in ("in", "fwd")}
    return found


def _strays(document: Document, before: Charon, kernel: KernelIpsec, after: Charon) -> Iterable[KernelPolicy]:
    """Policies about protected subnets that are neither ours, nor a CHILD_SA's, nor served by an SA."""
    wanted = {claim for charon in (before, after) for _, child in _children(charon) for claim in claimed(child)}
    served = {sa.reqid for sa in kernel.sas}
    marked = {(sa.reqid, sa.mark) for sa in kernel.sas}
    subnets = protected(document)
    for policy in kernel.policies:
        if policy.priority == BLOCK_PRIORITY:
            continue
        if policy.mask:
            charons = (policy.reqid, policy.mark) in marked
        else:
            charons = bool(policy.reqid) and (_claim(policy) in wanted or policy.reqid in served)
        if charons:
            continue
        source, to = ipaddress.ip_network(policy.source), ipaddress.ip_network(policy.destination)
        if any(part.overlaps(side) for part in subnets for side in (source, to) if part.version == side.version):
            yield policy


def _silenced(
    document: Document,
    confirmed: Mapping[KernelSa, float],
    kernel: KernelIpsec,
    charon: Charon,
    before: Mapping[str, float],
    now: float,
) -> tuple[set[KernelSa], dict[str, float]]:
    """Leftover SAs by which a hub answers probes and need not any more; by site, since when one has fallen silent."""
    sites = {
        host(address): name for name, peer in document.peers.items() if not peer.dial for address in peer.path_addresses
    }
    served: dict[int, set[str]] = {}
    for policy in kernel.policies if sites else ():
        if policy.direction == "out" and policy.spi:
            served.setdefault(policy.spi, set()).add(policy.destination)
    answering: dict[str, list[KernelSa]] = {}
    for sa in sorted(confirmed):
        for to in served.get(sa.spi, set()) & set(sites):
            answering.setdefault(sites[to], []).append(sa)
    busy: set[Way] = {_way(sa) for sa in confirmed if served.get(sa.spi, set()) - set(sites)}
    back = {
        stem_of(sa.connection)
        for sa, child in _children(charon)
        if sa.established and child.name == PROBE_CHILD and child.installed
    }
    found: set[KernelSa] = set()
    since = {site: at for site, at in before.items() if site in answering}
    for site, sas in answering.items():
        if site not in since:
            since[site] = now
            # Without a path to spare one has to go first all the same.
            found |= {sa for sa in sas if _way(sa) not in busy} or {sas[0]}
        elif site in back or now - since[site] >= MOVE_S:
            found |= set(sas)
    return found, since


def _way(sa: KernelSa) -> Way:
    return sa.source, sa.destination, sa.destination_port


def _children(charon: Charon) -> Iterable[tuple[IkeSa, ChildSa]]:
    return ((sa, child) for sa in charon.ike_sas for child in sa.children)


def _spis(charon: Charon) -> set[int]:
    return {spi for _, child in _children(charon) for spi in (child.spi_in, child.spi_out)}


def _claim(policy: KernelPolicy) -> Claim:
    return policy.direction, policy.source, policy.destination, policy.protocol


def _parsed(selector: str) -> tuple[str, int]:
    subnet, _, tail = selector.partition("[")
    name = tail.removesuffix("]").partition("/")[0]
    return subnet, int(name) if name.isdigit() else _PROTOCOLS.get(name, 0)


def _words(direction: str, source: str, to: str, protocol: int) -> str:
    return f"{direction} {source} to {to}" + (f" protocol {protocol}" if protocol else "")
