"""What must the living system hold, with all that the daemon may decide for itself?

In: a document, the links, who we are, whether an operator has drained this hub, and what lives. Out: the wanted data
plane. Pure. A document leaves some things open, and the daemon measures or watches for them: whether a hub is willing
to serve, whom it carries, how large a packet its paths take, by which uplink the router's own packets leave. Whoever
compares without the daemon's memory takes these from what lives, as far as the document allows them.

Whose monthly bytes are spent is no choice: it follows from what was counted. A bundle must then not be on such an
uplink, and need not be anywhere if charon has no path on another. Whether one that charon has is good enough, only the
daemon knows: that a bundle is not carried although charon has such a path is told.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from cpe_agent.core import own_way
from cpe_agent.core.compile import Site, compile_dataplane
from cpe_agent.core.pathmtu import LADDER, with_mtus
from cpe_agent.core.readiness import checks
from cpe_agent.core.return_routes import return_routes
from cpe_agent.core.wanted_ruleset import answers
from cpe_agent.model.condition import Condition
from cpe_agent.model.dataplane import (
    MAIN,
    METRIC_RETURN,
    PROBE_CHILD,
    Bundle,
    Dataplane,
    Path,
    Route,
    Routes,
    Ruleset,
    stem_of,
)
from cpe_agent.model.document import Document
from cpe_agent.model.observed import Charon, Links

_SIZES = frozenset({0, *LADDER})


def expected(
    document: Document,
    links: Links,
    site: Site,
    drained: bool,
    living: Routes,
    table: Ruleset | None,
    charon: Charon | None,
    spent: Collection[str] = (),
) -> tuple[Dataplane, tuple[Condition, ...]]:
    """The wanted data plane and what is in its way. `charon` None: nobody knows whom this hub carries, and what it
    announces may stay. `spent`: uplinks without bytes left. Raises `DocumentError` where the document contradicts
    itself."""
    ready = not drained and _may_serve(document, links, table)
    dataplane, conditions = compile_dataplane(document, links, site, ready)
    # No size is wanted that the daemon does not try.
    possible = msgspec.structs.replace(living, routes=frozenset(r for r in living.routes if r.mtu in _SIZES))
    routes = with_mtus(dataplane.routes, document, {}, site.backend.device, possible)
    if charon is not None:
        announced = return_routes(document, charon, links, site.backend)
    else:
        announced = _announced(document, living)
    routes = msgspec.structs.replace(routes, routes=routes.routes | announced | own_way.kept(routes, living))
    bundles = tuple(_within_budget(bundle, spent) for bundle in dataplane.bundles)
    barred = {
        bundle.child
        for full, bundle in zip(dataplane.bundles, bundles, strict=True)
        if charon is not None and bundle.paths != full.paths and not _may_be_carried(bundle, charon)
    }
    tunnels = msgspec.structs.replace(dataplane.tunnels, barred=frozenset(barred))
    return msgspec.structs.replace(dataplane, routes=routes, bundles=bundles, tunnels=tunnels), conditions


def _within_budget(bundle: Bundle, spent: Collection[str]) -> Bundle:
    if bundle.needs.metered == "always" or not spent:
        return bundle
    paths = tuple(path for path in bundle.paths if path.uplink not in spent)
    return bundle if paths == bundle.paths else msgspec.structs.replace(bundle, paths=paths)


def _may_be_carried(bundle: Bundle, charon: Charon) -> bool:
    """Is there a path left that charon believes in?"""
    return any(
        sa.established and Path.parse(stem_of(sa.connection)) in bundle.paths
        for sa in charon.ike_sas
        if any(child.name == PROBE_CHILD and child.installed for child in sa.children)
    )


def _may_serve(document: Document, links: Links, table: Ruleset | None) -> bool:
    """A LAN without carrier forbids it, one that is asked by echo leaves it open: then what lives is right."""
    if document.role != "hub":
        return False
    asked = checks(document, links)
    if any(check.fault for check in asked):
        return False
    if any(check.target for check in asked):
        return table is not None and any(answers(table, endpoint.ready_address) for endpoint in document.endpoints)
    return True


def _announced(document: Document, living: Routes) -> frozenset[Route]:
    if document.role != "hub":
        return frozenset()
    return frozenset(route for route in living.routes if (route.table, route.metric) == (MAIN, METRIC_RETURN))
