"""What should the kernel and charon hold, given the document and the links as they are?

In: a `Document`, `Links`, our identity, the backend, and whether this hub is willing to serve. Out: a `Dataplane`
without active paths (those are steering's: `with_active` puts them in) and conditions about what is in the way.

What is compiled from the same inputs as before is taken from before: on a hub one pair more must not cost a look at two
thousand branches, nor a gateway that changes one at ten thousand pairs. The outcome is the same either way.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cpe_agent.core import lans, wanted_policies, wanted_tunnels
from cpe_agent.core.uplinks import ResolvedUplink, interfaces, resolve
from cpe_agent.core.wanted_pairs import PairSets, pair_sets
from cpe_agent.core.wanted_routes import routes
from cpe_agent.core.wanted_ruleset import ruleset, with_asked, with_pairs
from cpe_agent.core.wanted_services import services
from cpe_agent.model.condition import Condition
from cpe_agent.model.dataplane import TRIAL_CHILD, Backend, Bundle, Dataplane, Path, Tunnels
from cpe_agent.model.document import Document
from cpe_agent.model.observed import Links


class Site(msgspec.Struct, frozen=True):
    """What this box is, apart from its document: who its certificate says it is, and who does its ESP."""

    identity: str
    backend: Backend


class Compiled(msgspec.Struct, frozen=True):
    """A data plane, what is in its way, and what both were compiled from."""

    document: Document
    links: Links
    site: Site
    ready: bool
    bound: dict[str, str]
    uplinks: tuple[ResolvedUplink, ...]
    claims: wanted_tunnels.Claims
    pairs: PairSets
    dataplane: Dataplane
    obstacles: tuple[Condition, ...]  # whatever the pairs are
    unasked: tuple[Condition, ...]

    @property
    def conditions(self) -> tuple[Condition, ...]:
        return (*self.obstacles, *self.unasked)


def compile_dataplane(
    document: Document, links: Links, site: Site, ready: bool = True
) -> tuple[Dataplane, tuple[Condition, ...]]:
    """The wanted data plane and what is in its way. Raises `DocumentError` where bundles contradict each other."""
    compiled = compile_next(None, document, links, site, ready)
    return compiled.dataplane, compiled.conditions


def compile_next(before: Compiled | None, document: Document, links: Links, site: Site, ready: bool) -> Compiled:
    """The same, taking from `before` what has not changed. Raises `DocumentError`."""
    alike = before is not None and before.site == site and _alike_but_for_pairs(before.document, document)
    if before is not None and alike and before.links == links:
        uplinks, bound, obstacles = before.uplinks, before.bound, before.obstacles
    else:
        uplinks, conditions = resolve(document, links)
        bound = interfaces(document, links)
        obstacles = (*conditions, *_missing(document, links, site))
    pairs = pair_sets(document.pairs, before.pairs if before else None)
    same = before if before is not None and before.document is document else None
    claims = same.claims if same else wanted_tunnels.selectors(document)
    if same and _paths_alike(same.uplinks, uplinks):
        bundles, probes = same.dataplane.bundles, same.dataplane.probes
    else:
        bundles = wanted_tunnels.bundles(document, uplinks)
        probes = wanted_tunnels.probes(document, uplinks)
    asked, unasked = services(document, links, bundles)
    if before is None or not alike:
        table = ruleset(document, site.backend, pairs, ready and not document.drain, bound)
        before = None
    elif (before.ready, before.bound) != (ready, bound):
        table = ruleset(document, site.backend, pairs, ready and not document.drain, bound)
    else:
        table = before.dataplane.ruleset
        if pairs is not before.pairs:
            table = with_pairs(table, pairs)
    if before is None or before.ready != ready or before.dataplane.services != asked:
        table = with_asked(table, asked)
    known = (before.claims, before.dataplane.services) if before is not None else None
    if before is not None and known == (claims, asked) and _paths_alike(before.uplinks, uplinks):
        tunnels = before.dataplane.tunnels
    else:
        tunnels = Tunnels(wanted_tunnels.connections(document, uplinks, site.identity, site.backend, claims, asked))
    if before is not None and before.links == links:
        routing = before.dataplane.routes
    else:
        routing = routes(document, uplinks, links, site.backend)
        if site.backend is Backend.KERNEL:
            routing = msgspec.structs.replace(routing, policies=wanted_policies.block_policies(document))
    dataplane = Dataplane(tunnels, table, routing, probes, bundles, asked)
    return Compiled(document, links, site, ready, bound, uplinks, claims, pairs, dataplane, obstacles, unasked)


def _missing(document: Document, links: Links, site: Site) -> list[Condition]:
    missing = [*lans.conditions(document, links)]
    if site.backend is Backend.USERLAND and site.backend.device not in links.by_name:
        # charon makes it when it starts, and only then: a charon that lives on without it carries nothing.
        device = site.backend.device
        missing.append(Condition("TunnelDeviceMissing", device, f"there is no {device}: charon must be restarted"))
    return missing


def _paths_alike(before: tuple[ResolvedUplink, ...], now: tuple[ResolvedUplink, ...]) -> bool:
    """Do these uplinks make the same paths? Whether one is up, or by which gateway, is not asked."""
    same = [(one.name, one.kind, one.path_address, one.addresses) for one in before]
    return same == [(one.name, one.kind, one.path_address, one.addresses) for one in now]


def _alike_but_for_pairs(one: Document, other: Document) -> bool:
    if one is other:
        return True
    stamped = {name: getattr(other, name) for name in ("pairs", "epoch", "version", "issued_at", "expires_at")}
    return msgspec.structs.replace(one, **stamped) == other


def with_active(
    tunnels: Tunnels,
    bundles: tuple[Bundle, ...],
    active: Mapping[str, Path | None],
    dead: frozenset[int],
    trials: Mapping[str, Path] | None = None,
) -> Tunnels:
    """The tunnels with each bundle's child on its active path, the IKE_SAs that are to be replaced, and the children in
    which servers are tried on other paths."""
    children: dict[Path, frozenset[str]] = {}
    for bundle in bundles:
        path = active.get(bundle.name)
        if path is not None:
            children[path] = children.get(path, frozenset()) | {bundle.child}
    for name, path in (trials or {}).items():
        children[path] = children.get(path, frozenset()) | {f"{TRIAL_CHILD}-{name}"}
    return Tunnels(tunnels.connections, children, dead)
