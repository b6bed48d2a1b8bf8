"""What should the kernel and charon hold, given the document and the links as they are?

In: a `Document`, `Links`, our identity, the backend, and whether this hub is willing to serve. Out: a `Dataplane`
without active paths (those are steering's: `with_active` puts them in) and conditions about what is in the way.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cpe_agent.core import wanted_tunnels
from cpe_agent.core.uplinks import resolve
from cpe_agent.core.wanted_routes import routes
from cpe_agent.core.wanted_ruleset import ruleset
from cpe_agent.model.condition import Condition
from cpe_agent.model.dataplane import Backend, Bundle, Dataplane, Path, Tunnels
from cpe_agent.model.document import Document
from cpe_agent.model.observed import Links


class Site(msgspec.Struct, frozen=True):
    """What this box is, apart from its document: who its certificate says it is, and who does its ESP."""

    identity: str
    backend: Backend


def compile_dataplane(
    document: Document, links: Links, site: Site, ready: bool = True
) -> tuple[Dataplane, tuple[Condition, ...]]:
    """The wanted data plane and what is in its way. Raises `DocumentError` where bundles contradict each other."""
    uplinks, conditions = resolve(document, links)
    missing = [
        Condition("LanMissing", lan.name, f"there is no interface {lan.interface}")
        for lan in document.lans
        if lan.interface and lan.interface not in links.by_name
    ]
    dataplane = Dataplane(
        tunnels=Tunnels(wanted_tunnels.connections(document, uplinks, site.identity, site.backend)),
        ruleset=ruleset(document, site.backend),
        routes=routes(document, uplinks, links, site.backend, ready and document.role == "hub" and not document.drain),
        probes=wanted_tunnels.probes(document, uplinks),
        bundles=wanted_tunnels.bundles(document, uplinks),
    )
    return dataplane, (*conditions, *missing)


def with_active(
    tunnels: Tunnels, bundles: tuple[Bundle, ...], active: Mapping[str, Path | None], dead: frozenset[int]
) -> Tunnels:
    """The tunnels with each bundle's child on its active path, and the IKE_SAs that are to be replaced."""
    children: dict[Path, frozenset[str]] = {}
    for bundle in bundles:
        path = active.get(bundle.name)
        if path is not None:
            children[path] = children.get(path, frozenset()) | {bundle.child}
    return Tunnels(tunnels.connections, children, dead)
