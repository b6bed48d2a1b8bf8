"""How does a router that was never told anything reach its controller by any link that works?

Pure. In: the links. Out: the addresses to try, and a routing table for each link, so that what is sent from an address
leaves by its link: the kernel's own default routes are one order of preference, and the first link may be up and dead.
Nothing is forwarded, and nothing that lives is taken away: this only adds, until there is a document.
"""

from __future__ import annotations

import ipaddress

import msgspec

from cpe_agent.core.uplinks import found_uplinks
from cpe_agent.core.wanted_routes import ANYWHERE
from cpe_agent.model import dataplane as dp
from cpe_agent.model.dataplane import Route, Routes, Rule
from cpe_agent.model.observed import Link, Links


def addresses(links: Links) -> tuple[str, ...]:
    """Where from the controller can be asked: every address of every link that looks like an uplink."""
    return tuple(address.address for link in _found(links) for address in link.addresses)


def routing(links: Links, living: Routes) -> Routes:
    """What lives, and a way out for each of these addresses by its own link."""
    rules: set[Rule] = set()
    ways: set[Route] = set()
    for index, link in enumerate(_found(links)):
        table = dp.FOUND_TABLES + index
        for address in link.addresses:
            version = ipaddress.ip_address(address.address).version
            gateway = next((g for g in link.gateways if not g or ipaddress.ip_address(g).version == version), None)
            if gateway is None or not link.up:
                continue
            rules.add(Rule(version, dp.PRIORITY_FOUND_FROM, table, source=address.address))
            subnet = ipaddress.ip_network(f"{address.address}/{address.prefix_length}", strict=False)
            if subnet.num_addresses > 1:
                ways.add(Route(table, str(subnet), link.name, metric=dp.METRIC_TUNNEL))
            ways.add(Route(table, ANYWHERE[version], link.name, gateway, dp.METRIC_TUNNEL))
    taken = {_place(way) for way in ways}
    kept = {route for route in living.routes if _place(route) not in taken}
    return msgspec.structs.replace(living, rules=living.rules | rules, routes=frozenset(kept | ways))


def _found(links: Links) -> list[Link]:
    return [links.by_name[name] for name in found_uplinks(links, ())]


def _place(route: Route) -> tuple[int, str, int]:
    return route.table, route.destination, route.metric
