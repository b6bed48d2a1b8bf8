"""Without a document: is there a way out by every link, and is nothing taken away or opened?"""

from __future__ import annotations

from cpe_agent.core.bootstrap import addresses, routing
from cpe_agent.core.compile import compile_dataplane
from cpe_agent.core.routes import diff
from cpe_agent.model.dataplane import Route, Routes, Rule
from cpe_agent.model.ops import AddRoute, AddRule
from tests.core.documents import BRANCH, IPSEC, LAN, LINKS, LTE, WIRED, branch, link, links


def test_each_address_leaves_by_its_own_link() -> None:
    there = links(WIRED, LTE, LAN, IPSEC)
    assert addresses(there) == ("203.0.113.18", "2001:db8:1::2", "100.64.1.10")
    wanted = routing(there, Routes())
    assert wanted.rules == {
        Rule(4, 145, 15600, source="203.0.113.18"),
        Rule(6, 145, 15600, source="2001:db8:1::2"),
        Rule(4, 145, 15601, source="100.64.1.10"),
    }
    assert wanted.routes == {
        Route(15600, "203.0.113.16/28", "wired", "", 100),
        Route(15600, "0.0.0.0/0", "wired", "203.0.113.17", 100),
        Route(15600, "2001:db8:1::/64", "wired", "", 100),
        Route(15600, "::/0", "wired", "2001:db8:1::1", 100),
        Route(15601, "0.0.0.0/0", "wwan0", "", 100),
    }
    assert not wanted.forwarding and not wanted.addresses


def test_nothing_that_lives_is_taken_away() -> None:
    living = compile_dataplane(branch(), LINKS, BRANCH)[0].routes
    ops = diff(routing(LINKS, living), living)
    assert all(isinstance(op, AddRule | AddRoute) for op in ops)


def test_another_lease_takes_the_place_of_the_old_one() -> None:
    before = routing(links(WIRED), Routes())
    after = routing(links(link("wired", "203.0.113.20/28", gateways=("203.0.113.30",))), before)
    assert Route(15600, "0.0.0.0/0", "wired", "203.0.113.30", 100) in after.routes
    assert Route(15600, "0.0.0.0/0", "wired", "203.0.113.17", 100) not in after.routes
    assert Rule(4, 145, 15600, source="203.0.113.20") in after.rules


def test_a_lan_without_a_default_route_is_left_alone() -> None:
    assert routing(links(LAN, IPSEC), Routes()) == Routes()
