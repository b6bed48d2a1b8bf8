"""Where does a packet go by the wanted rules and routes, also while somebody has emptied one of our tables?

`_led` looks a packet up as the kernel does: rule by rule, the longest prefix of a table, the least metric of that.
"""

from __future__ import annotations

import ipaddress

import pytest

from cpe_agent.core.compile import Site, compile_dataplane
from cpe_agent.core.wanted_routes import own_addresses
from cpe_agent.model import dataplane as dp
from cpe_agent.model.dataplane import Backend, Route, Routes
from cpe_agent.model.document import Document
from cpe_agent.model.observed import Links
from tests.core.documents import CENTRE_LAN, HUB_LINKS, LINKS, OWN_LAN, branch, hub, link

NOWHERE, ON = "nowhere", "on to the main table"
OF_OURS = (dp.OVERLAY, dp.OVERLAY_SHUT, dp.INBOUND, dp.INBOUND_SHUT, dp.OWN)
INTERNET = {4: "198.51.100.202", 6: "2001:db8::202"}

BRANCH = pytest.param(branch(), LINKS, id="branch")
HUB = pytest.param(hub(), HUB_LINKS, id="hub")


def _routes(document: Document, found: Links, backend: Backend) -> Routes:
    if backend is Backend.KERNEL:
        found = Links({**found.by_name, "cpe0": link("cpe0")})
    return compile_dataplane(document, found, Site("anybody", backend))[0].routes


def _led(routes: Routes, to: str, iif: str = "lo", emptied: int = 0) -> str:
    """By which device it leaves, NOWHERE, or ON. What pins a packet to an uplink's address is not asked for."""
    address = ipaddress.ip_address(to)
    for rule in sorted(routes.rules):
        if rule.family != address.version or rule.source or rule.iif not in ("", iif) or rule.table == dp.MAIN:
            continue
        fitting = [
            (ipaddress.ip_network(route.destination).prefixlen, -route.metric, route)
            for route in routes.routes
            if route.table == rule.table != emptied and address in ipaddress.ip_network(route.destination)
        ]
        if fitting:
            route: Route = max(fitting)[2]
            return route.device or NOWHERE
    return ON


def _protected(document: Document) -> list[str]:
    """An address in each subnet behind tunnels."""
    own = {lan.subnet for lan in document.lans}
    subnets = [lan for peer in document.peers.values() for lan in peer.lans if lan not in own]
    inner = [peer.site_address for peer in document.peers.values()]
    inner += [e.probe_address for peer in document.peers.values() for e in peer.endpoints]
    inner += [address for peer in document.peers.values() for address in peer.path_addresses]
    return [str(ipaddress.ip_network(subnet)[10]) for subnet in subnets] + inner


@pytest.mark.parametrize("backend", list(Backend))
@pytest.mark.parametrize(("document", "found"), [BRANCH, HUB])
class TestWhateverIsEmptied:
    @pytest.mark.parametrize("emptied", [0, *OF_OURS])
    def test_what_is_protected_leads_into_a_tunnel_or_nowhere(
        self, document: Document, found: Links, backend: Backend, emptied: int
    ) -> None:
        routes = _routes(document, found, backend)
        into = {NOWHERE} if emptied == dp.OVERLAY else {backend.device}
        for to in _protected(document):
            for iif in ("lo", "lan0", "eth9"):
                assert {_led(routes, to, iif, emptied)} == into, (to, iif)
        gone = Links({name: each for name, each in found.by_name.items() if name != backend.device})
        if backend is Backend.USERLAND:
            for to in _protected(document):
                assert _led(_routes(document, gone, backend), to, emptied=emptied) == NOWHERE, to

    def test_an_inner_address_that_the_router_has_lost_leads_nowhere(
        self, document: Document, found: Links, backend: Backend
    ) -> None:
        routes = _routes(document, found, backend)
        for address in own_addresses(document):
            assert _led(routes, address) == NOWHERE

    @pytest.mark.parametrize("emptied", [0, *OF_OURS])
    def test_a_lan_and_a_tunnel_lead_to_nothing_else(
        self, document: Document, found: Links, backend: Backend, emptied: int
    ) -> None:
        routes = _routes(document, found, backend)
        for to in INTERNET.values():
            assert _led(routes, to, "lan0", emptied) == NOWHERE
            if backend is Backend.USERLAND:
                assert _led(routes, to, backend.device, emptied) == NOWHERE

    @pytest.mark.parametrize("emptied", [0, *OF_OURS])
    def test_an_uplink_leads_to_nothing(self, document: Document, found: Links, backend: Backend, emptied: int) -> None:
        """But for what was decrypted on it, with the kernel's ESP: that is for the LANs alone."""
        routes = _routes(document, found, backend)
        lan = str(ipaddress.ip_network(document.lans[0].subnet)[10])
        for uplink in (name for name, each in found.by_name.items() if each.gateways):
            for to in (*INTERNET.values(), *_protected(document)):
                assert _led(routes, to, uplink, emptied) == NOWHERE, (to, uplink)
            for_lan = "lan0" if backend is Backend.KERNEL and emptied != dp.INBOUND else NOWHERE
            assert _led(routes, lan, uplink, emptied) == for_lan

    def test_nothing_is_held_up_while_all_is_there(self, document: Document, found: Links, backend: Backend) -> None:
        routes = _routes(document, found, backend)
        lan = str(ipaddress.ip_network(document.lans[0].subnet)[10])
        came = ["lo", "lan0", backend.device] if backend is Backend.USERLAND else ["lo", "lan0"]
        assert {_led(routes, lan, iif) for iif in came} == {"lan0"}
        assert {_led(routes, to) for to in INTERNET.values()} == {ON}, "the router asks its controller"


def test_the_sample_is_of_what_the_sites_have() -> None:
    assert str(ipaddress.ip_network(CENTRE_LAN)[10]) in _protected(branch())
    assert str(ipaddress.ip_network(OWN_LAN)[10]) in _protected(hub())
