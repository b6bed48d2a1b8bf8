"""By which uplink does the router's own traffic leave?

Pure. The router asks its controller, DNS and time servers over the internet itself. What DHCP leaves behind are several
default routes, and the first may lead into a link that is up and dead. The paths know better: an uplink over which any
hub answers works. In: paths' health and budgets. Out: an uplink, and the routes of table OWN for it.

| what is known                                | the choice                                                       |
|----------------------------------------------|------------------------------------------------------------------|
| nothing yet (the agent has just started)     | what the living table says stays                                 |
| some uplinks have a path that is up          | the best of them: those with bytes left first, then by priority  |
| none has, or the site dials nobody           | none: the kernel's own default routes decide                     |

Path health has its own hysteresis, so this needs none. Other packets than the router's own never come here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cpe_agent.core.budget import Budget
from cpe_agent.core.health import State, Track
from cpe_agent.model.dataplane import OWN, UPLINK_TABLES, Path, Route, Routes
from cpe_agent.model.document import Document

_DEFAULTS = ("0.0.0.0/0", "::/0")
_ORDER = list(Budget)


def choose(
    document: Document, tracks: Mapping[Path, Track], budgets: Mapping[str, Budget], link_up: Mapping[str, bool]
) -> str | None:
    """The uplink's name; "" for none; None while nothing is known."""
    dials = any(peer.dial for peer in document.peers.values())
    if dials and all(track.state is State.UNKNOWN for track in tracks.values()):
        return None
    works = {path.uplink for path, track in tracks.items() if track.state is State.UP}
    usable = [name for name in document.uplinks if name in works and link_up.get(name, False)]

    def rank(name: str) -> tuple[int, int, str]:
        return _ORDER.index(budgets.get(name, Budget.FREE)), document.uplinks[name].priority, name

    return min(usable, key=rank, default="")


def routes(wanted: Routes, document: Document, uplink: str) -> frozenset[Route]:
    """Table OWN for this uplink: the default routes of the uplink's own table; empty for ""."""
    if uplink not in document.uplinks:
        return frozenset()
    return _of_table(wanted.routes, UPLINK_TABLES + sorted(document.uplinks).index(uplink))


def kept(wanted: Routes, living: Routes) -> frozenset[Route]:
    """What table OWN holds now, as far as it is a choice that could be made: all default routes of one uplink."""
    found = frozenset(route for route in living.routes if route.table == OWN)
    tables = {route.table for route in wanted.routes if route.table >= UPLINK_TABLES}
    return found if any(found == _of_table(wanted.routes, table) for table in tables) else frozenset()


def _of_table(found: Iterable[Route], table: int) -> frozenset[Route]:
    return frozenset(
        Route(OWN, route.destination, route.device, route.gateway, route.metric)
        for route in found
        if route.table == table and route.destination in _DEFAULTS and route.device
    )
