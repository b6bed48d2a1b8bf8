"""Do the router's own packets leave by the best uplink that works, and nobody else's?"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpe_agent.core.budget import Budget
from cpe_agent.core.compile import compile_dataplane
from cpe_agent.core.expected import expected
from cpe_agent.core.health import State, Track
from cpe_agent.core.own_way import choose, kept, routes
from cpe_agent.model.dataplane import MAIN, OWN, Path, Route, Routes, Rule
from cpe_agent.model.observed import Links
from tests.core.documents import BRANCH, HUB, HUB_LINKS, IPSEC, LAN, LINKS, LTE, WIRED, branch, hub, link, links

UP, DOWN, UNKNOWN = (Track(3, state=state) for state in (State.UP, State.DOWN, State.UNKNOWN))
BOTH_UP = {"wired": True, "lte": True}
PLAN = compile_dataplane(branch(), LINKS, BRANCH)[0]
BY_WIRED = {Route(OWN, "0.0.0.0/0", "wired", "203.0.113.17", 100), Route(OWN, "::/0", "wired", "2001:db8:1::1", 100)}
BY_LTE = {Route(OWN, "0.0.0.0/0", "wwan0", "", 100)}


def tracks(**states: Track) -> dict[Path, Track]:
    """wired_centre=UP -> {wired.centre.a: UP}."""
    named = ((name.partition("_"), track) for name, track in states.items())
    return {Path(uplink, peer, "a"): track for (uplink, _, peer), track in named}


@pytest.mark.parametrize(
    ("found", "budgets", "link_up", "chosen"),
    [
        ({}, {}, BOTH_UP, None),
        (tracks(wired_centre=UNKNOWN, lte_centre=UNKNOWN), {}, BOTH_UP, None),
        (tracks(wired_centre=UP, lte_centre=UP), {}, BOTH_UP, "wired"),
        # A hub that is dead says nothing of the uplink while another answers.
        (tracks(wired_centre=DOWN, wired_cloud=UP, lte_centre=UP), {}, BOTH_UP, "wired"),
        (tracks(wired_centre=DOWN, wired_cloud=DOWN, lte_centre=UP), {}, BOTH_UP, "lte"),
        (tracks(wired_centre=UNKNOWN, lte_centre=UP), {}, BOTH_UP, "lte"),
        (tracks(wired_centre=DOWN, lte_centre=DOWN), {}, BOTH_UP, ""),
        (tracks(wired_centre=UP, lte_centre=UP), {}, {"wired": False, "lte": True}, "lte"),
        (tracks(wired_centre=UP, lte_centre=UP), {"wired": Budget.NEAR}, BOTH_UP, "lte"),
        (tracks(wired_centre=UP, lte_centre=UP), {"wired": Budget.SPENT, "lte": Budget.SPENT}, BOTH_UP, "wired"),
        (tracks(wired_centre=DOWN, lte_centre=UP), {"lte": Budget.SPENT}, BOTH_UP, "lte"),
    ],
)
def test_the_best_that_works(
    found: Mapping[Path, Track], budgets: Mapping[str, Budget], link_up: Mapping[str, bool], chosen: str | None
) -> None:
    assert choose(branch(), found, budgets, link_up) == chosen


def test_a_hub_that_dials_nobody_leaves_it_to_the_kernel() -> None:
    assert choose(hub(), {}, {}, {"wan": True}) == ""


def test_its_routes_are_the_uplinks_own() -> None:
    assert routes(PLAN.routes, branch(), "wired") == BY_WIRED
    assert routes(PLAN.routes, branch(), "lte") == BY_LTE
    assert routes(PLAN.routes, branch(), "") == frozenset() == routes(PLAN.routes, branch(), "gone")


@pytest.mark.parametrize("living", [BY_WIRED, BY_LTE, set()])
def test_what_lives_is_kept_if_it_could_be_chosen(living: set[Route]) -> None:
    there = msgspec.structs.replace(PLAN.routes, routes=PLAN.routes.routes | living)
    assert kept(PLAN.routes, there) == living
    # ... and then there is nothing that `verify` could complain of.
    assert expected(branch(), LINKS, BRANCH, False, there, None, None)[0].routes == there


@pytest.mark.parametrize(
    "living",
    [
        {Route(OWN, "0.0.0.0/0", "lan0", "10.101.0.9", 100)},
        {Route(OWN, "0.0.0.0/0", "wired", "203.0.113.20", 100)},
        BY_WIRED | BY_LTE,
        {Route(OWN, "10.10.0.0/24", "wired", "203.0.113.17", 100), *BY_WIRED},
    ],
)
def test_what_could_not_be_chosen_is_a_difference(living: set[Route]) -> None:
    there = msgspec.structs.replace(PLAN.routes, routes=PLAN.routes.routes | living)
    wanted = expected(branch(), LINKS, BRANCH, False, there, None, None)[0].routes
    assert not {route for route in wanted.routes if route.table == OWN}


def test_an_uplink_that_lost_its_gateway_is_no_way_out() -> None:
    plan = compile_dataplane(branch(), links(link("wired", "203.0.113.18/28"), LTE, LAN, IPSEC), BRANCH)[0]
    assert routes(plan.routes, branch(), "wired") == frozenset()
    assert kept(plan.routes, Routes(routes=frozenset(BY_WIRED))) == frozenset()


def lookup(held: Routes, version: int, destination: str, iif: str, source: str = "") -> Route | None:
    """What the kernel's policy routing says: the first rule whose table has a route; None: as main says."""
    target = ipaddress.ip_address(destination)
    for rule in sorted(held.rules, key=lambda rule: rule.priority):
        if rule.family != version or rule.iif not in ("", iif) or rule.source not in ("", source):
            continue
        fitting = [
            route
            for route in held.routes
            if route.table == rule.table
            and (network := ipaddress.ip_network(route.destination)).version == version
            and target in network
            and not (rule.near and network.prefixlen == 0)
        ]
        if fitting:
            return min(fitting, key=lambda route: (-ipaddress.ip_network(route.destination).prefixlen, route.metric))
    return None


@given(
    iif=st.sampled_from(["lan0", "wired", "wwan0", "ipsec0"]),
    destination=st.sampled_from(["198.51.100.10", "8.8.8.8", "203.0.113.17", "10.10.0.10", "10.7.0.1", "2001:db8::10"]),
    own=st.sampled_from([BY_WIRED, BY_LTE]),
)
def test_nothing_that_enters_by_an_interface_ever_gets_to_it(iif: str, destination: str, own: set[Route]) -> None:
    """The lock holds: what leaves for the internet this way was sent by the router itself."""
    held = msgspec.structs.replace(PLAN.routes, routes=PLAN.routes.routes | own)
    found = lookup(held, ipaddress.ip_address(destination).version, destination, iif)
    assert found is not None and found.table not in (OWN, MAIN) and found.device in ("", "lan0", "ipsec0")


def test_the_routers_own_go_by_it_but_for_what_is_near_or_protected() -> None:
    near = Route(MAIN, "192.168.7.0/24", "mgmt0", "", 0)
    held = msgspec.structs.replace(PLAN.routes, routes=PLAN.routes.routes | BY_LTE | {near})
    assert lookup(held, 4, "8.8.8.8", "lo") in BY_LTE
    assert lookup(held, 4, "192.168.7.9", "lo") == near
    assert lookup(held, 4, "8.8.8.8", "lo", source="203.0.113.18").device == "wired"  # type: ignore[union-attr]
    for protected in ("10.10.0.10", "10.255.1.1"):
        found = lookup(held, 4, protected, "lo")
        assert found is not None and found.device == "ipsec0"
    # Nobody knows: as main says.
    assert lookup(PLAN.routes, 4, "8.8.8.8", "lo") is None


def test_hubs_have_the_same_rules() -> None:
    plan = compile_dataplane(hub(), HUB_LINKS, HUB)[0]
    for version in (4, 6):
        assert {Rule(version, 150, MAIN, iif="lo", near=True), Rule(version, 160, OWN, iif="lo")} <= plan.routes.rules
    assert not {rule for rule in plan.routes.rules if rule.table == OWN and rule.iif != "lo"}


def test_a_link_that_is_gone_takes_its_way_with_it() -> None:
    plan = compile_dataplane(branch(), Links({k: v for k, v in LINKS.by_name.items() if k != WIRED.name}), BRANCH)[0]
    assert routes(plan.routes, branch(), "wired") == frozenset()
