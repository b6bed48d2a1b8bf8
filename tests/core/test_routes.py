"""Does the diff end at the wanted routing, locking before it opens?"""

from __future__ import annotations

from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpe_agent.core.routes import diff
from cpe_agent.model.dataplane import (
    METRIC_NOWHERE,
    METRIC_TUNNEL,
    PRIORITY_LAN_IN,
    PRIORITY_OVERLAY,
    PRIORITY_UPLINK_FROM,
    PRIORITY_UPLINK_IN,
    Route,
    Routes,
    Rule,
)
from cpe_agent.model.ops import (
    AddAddress,
    AddDevice,
    AddRoute,
    AddRule,
    DeleteAddress,
    DeleteDevice,
    DeleteRoute,
    DeleteRule,
    RouteOp,
    SetForwarding,
    SetLenient,
)

T = TypeVar("T")
PRIORITIES = (PRIORITY_UPLINK_IN, PRIORITY_OVERLAY, PRIORITY_LAN_IN, PRIORITY_UPLINK_FROM)
subnets = st.sampled_from(["0.0.0.0/0", "10.1.0.0/24", "10.2.0.0/24", "fd00::/64"])
rules = st.builds(
    Rule,
    st.sampled_from([4, 6]),
    st.sampled_from(PRIORITIES),
    st.sampled_from([15500, 15501]),
    st.sampled_from(["", "lan0"]),
)
some_routes = st.one_of(
    st.builds(Route, st.sampled_from([15500, 15501]), subnets, metric=st.just(METRIC_NOWHERE)),
    st.builds(
        Route,
        st.sampled_from([15500, 15501]),
        subnets,
        st.sampled_from(["cpe0", "lan0"]),
        st.just(""),
        st.just(METRIC_TUNNEL),
    ),
)
routings = st.builds(
    Routes,
    st.frozensets(st.sampled_from(["10.255.0.1/32", "10.255.0.2/32"])),
    st.frozensets(rules, max_size=4),
    st.frozensets(some_routes, max_size=6),
    st.frozensets(st.sampled_from(["cpe0", "lan0"])),
    st.frozensets(st.sampled_from([4, 6])),
)


class Kernel:
    """Sets, and the kernel's refusals."""

    def __init__(self, start: Routes) -> None:
        self.addresses, self.rules, self.routes = set(start.addresses), set(start.rules), set(start.routes)
        self.devices, self.forwarding = set(start.devices), set(start.forwarding)

    def apply(self, op: RouteOp) -> None:
        match op:
            case AddDevice(name):
                add(self.devices, name)
            case DeleteDevice(name):
                self.devices.remove(name)
            case AddAddress(address):
                add(self.addresses, address)
            case DeleteAddress(address):
                self.addresses.remove(address)
            case AddRule(rule):
                add(self.rules, rule)
            case DeleteRule(rule):
                self.rules.remove(rule)
            case AddRoute(route):
                add(self.routes, route)
            case DeleteRoute(route):
                self.routes.remove(route)
            case SetForwarding(family, on):
                add(self.forwarding, family) if on else self.forwarding.remove(family)

    def read(self) -> Routes:
        parts = (self.addresses, self.rules, self.routes, self.devices, self.forwarding)
        return Routes(*(frozenset(part) for part in parts))  # type: ignore[arg-type]


def add(where: set[T], what: T) -> None:
    assert what not in where
    where.add(what)


@given(routings, routings)
def test_the_diff_ends_at_the_wanted_routing(wanted: Routes, observed: Routes) -> None:
    kernel = Kernel(observed)
    for op in diff(wanted, observed):
        kernel.apply(op)
    assert kernel.read() == wanted
    assert diff(wanted, kernel.read()) == ()


def places(ops: tuple[RouteOp, ...], *kinds: type) -> list[int]:
    return [index for index, op in enumerate(ops) if isinstance(op, kinds)]


@given(routings, routings)
def test_forwarding_goes_off_first_and_on_last(wanted: Routes, observed: Routes) -> None:
    ops = diff(wanted, observed)
    off = [i for i, op in enumerate(ops) if isinstance(op, SetForwarding) and not op.on]
    on = [i for i, op in enumerate(ops) if isinstance(op, SetForwarding) and op.on]
    assert off == list(range(len(off)))
    assert on == list(range(len(ops) - len(on), len(ops)))


@pytest.mark.parametrize(("wanted", "observed"), [(True, False), (True, True), (False, False), (False, True)])
def test_that_only_a_strictness_that_harms_is_touched(wanted: bool, observed: bool) -> None:
    ops = diff(Routes(forwarding=frozenset({4}), lenient=wanted), Routes(lenient=observed))
    needed = (SetLenient(),) if wanted and not observed else ()
    assert ops == (*needed, SetForwarding(4, True)), "and before the first packet is forwarded"


@given(routings, routings)
def test_locks_come_before_ways_and_adds_before_deletes(wanted: Routes, observed: Routes) -> None:
    ops = diff(wanted, observed)
    locks = [i for i, op in enumerate(ops) if isinstance(op, AddRoute) and not op.route.device]
    ways = [i for i, op in enumerate(ops) if isinstance(op, AddRoute) and op.route.device]
    locking = [i for i, op in enumerate(ops) if isinstance(op, AddRule) and op.rule.priority < PRIORITY_UPLINK_FROM]
    adds = places(ops, AddDevice, AddAddress, AddRule, AddRoute)
    deletes = places(ops, DeleteDevice, DeleteAddress, DeleteRule, DeleteRoute)
    assert max(locks, default=-1) < min([*locking, *ways], default=len(ops))
    # A packet is led into our tables before a way out of them is opened.
    assert max(locking, default=-1) < min(ways, default=len(ops))
    assert max(adds, default=-1) < min(deletes, default=len(ops))
    # Taken down the other way round: the rule, the way, the lock.
    gone_rules = places(ops, DeleteRule)
    gone_ways = [i for i, op in enumerate(ops) if isinstance(op, DeleteRoute) and op.route.device]
    gone_locks = [i for i, op in enumerate(ops) if isinstance(op, DeleteRoute) and not op.route.device]
    assert [*gone_rules, *gone_ways, *gone_locks] == sorted([*gone_rules, *gone_ways, *gone_locks])
    assert max(places(ops, AddDevice), default=-1) < min(ways, default=len(ops))
