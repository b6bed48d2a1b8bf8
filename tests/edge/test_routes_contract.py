"""What must every `RoutePort` do? One suite, on the fake and on the kernel of this process's network namespace."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from cpe_agent.core.routes import diff
from cpe_agent.edge.netlink import Netlink
from cpe_agent.edge.ourroutes import LENIENT
from cpe_agent.model.dataplane import Route, Routes, Rule
from cpe_agent.model.observed import Link, Links
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
from cpe_agent.model.words import describe
from cpe_agent.ports import EdgeError, RoutePort
from tests.edge.route_bed import ADDRESSES, PEER, WAN, Bed, FakeWorld, KernelWorld, bed_of, ip, kernel_has_dummy
from tests.fakes.routes import FakeRoutes

UNREACHABLE_4 = Route(15500, "0.0.0.0/0")
UNREACHABLE_6 = Route(15500, "::/0")
WANTED = Routes(
    addresses=frozenset({"10.255.0.1/32", "fd0a::1/128"}),
    rules=frozenset(
        {
            Rule(4, 110, 15501, iif=WAN),
            Rule(6, 110, 15501, iif=WAN),
            Rule(4, 120, 15500, source="10.255.0.1"),
            Rule(6, 120, 15500, source="fd0a::1"),
            Rule(4, 130, 15500, iif="not-there"),
            Rule(4, 140, 15510, source="10.5.0.1"),
            Rule(4, 150, 254, iif="lo", near=True),
            Rule(6, 150, 254, iif="lo", near=True),
            Rule(4, 160, 15502, iif="lo"),
        }
    ),
    routes=frozenset(
        {
            UNREACHABLE_4,
            UNREACHABLE_6,
            Route(15500, "10.9.0.0/24", metric=1000),
            Route(15500, "10.9.0.0/24", WAN, metric=100),
            Route(15500, "fd09::/64", WAN, metric=100),
            Route(15500, "fd09::/64", metric=1000),
            Route(15510, "0.0.0.0/0", WAN, "10.5.0.2", 100),
            Route(15510, "::/0", WAN, "fd05::2", 100),
        }
    ),
    forwarding=frozenset({4, 6}),
)


@pytest.fixture(params=["fake", "kernel"])
def bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    with bed_of(request.param) as made:
        yield made


async def settle(port: RoutePort, wanted: Routes) -> None:
    """Apply the difference; then there must be none."""
    await port.apply(diff(wanted, await port.read()))
    assert await port.read() == wanted
    assert diff(wanted, await port.read()) == ()


def changes_of(port: RoutePort) -> AsyncGenerator[frozenset[str], None]:
    changes = port.changes()
    assert isinstance(changes, AsyncGenerator)
    return changes


async def eventually(port: RoutePort, up: bool) -> Links:
    """The kernel decides about carrier a moment after the event: follow changes() as the loops do."""
    with trio.fail_after(10):
        async with aclosing(changes_of(port)) as changes:
            async for _ in changes:
                links = await port.links()
                if links.by_name[WAN].up is up:
                    return links
    raise AssertionError("changes() ended")


async def test_wanted_is_reached_and_left_again(bed: Bed) -> None:
    bed.world.add_wan()
    before = bed.world.foreign()
    assert await bed.port.read() == Routes()
    await settle(bed.port, WANTED)
    assert bed.world.foreign() == before
    await settle(bed.port, Routes())
    assert bed.world.foreign() == before


async def test_everything_is_idempotent(bed: Bed) -> None:
    bed.world.add_wan()
    ops = diff(WANTED, Routes())
    await bed.port.apply(ops)
    await bed.port.apply(ops)
    assert await bed.port.read() == WANTED
    ops = diff(Routes(), WANTED)
    await bed.port.apply(ops)
    await bed.port.apply(ops)
    assert await bed.port.read() == Routes()
    await bed.port.apply([DeleteRoute(Route(15500, "10.1.0.0/24", "not-there"))])
    await bed.port.apply([])


@pytest.mark.parametrize("gateways", [("", "10.5.0.2"), ("10.5.0.2", ""), ("10.5.0.2", "10.5.0.3")])
async def test_a_route_is_replaced_in_its_place(bed: Bed, gateways: tuple[str, str]) -> None:
    bed.world.add_wan()
    six = {"": "", "10.5.0.2": "fd05::2", "10.5.0.3": "fd05::3"}
    old, new = (
        {Route(15510, "0.0.0.0/0", WAN, gateway, 100), Route(15510, "::/0", WAN, six[gateway], 100)}
        for gateway in gateways
    )
    await settle(bed.port, Routes(routes=frozenset(old)))
    await settle(bed.port, Routes(routes=frozenset(new)))
    # What is not there any more does not take with it what came in its place.
    await bed.port.apply([DeleteRoute(route) for route in sorted(old)])
    assert (await bed.port.read()).routes == new
    locks = frozenset({Route(15510, "0.0.0.0/0", metric=100), Route(15510, "::/0", metric=100)})
    await settle(bed.port, Routes(routes=locks))
    await settle(bed.port, Routes(routes=frozenset(new)))


async def test_only_the_asked_rule_is_deleted(bed: Bed) -> None:
    narrow = Rule(4, 120, 15500, iif=WAN, source="10.255.0.1")
    wide = Rule(4, 120, 15500, source="10.255.0.1")
    await settle(bed.port, Routes(rules=frozenset({narrow, wide})))
    await settle(bed.port, Routes(rules=frozenset({narrow})))
    await bed.port.apply([DeleteRule(wide)])
    assert (await bed.port.read()).rules == {narrow}
    # The kernel says that the wider one is there already.
    wider = Rule(4, 120, 15500, iif=WAN)
    await settle(bed.port, Routes(rules=frozenset({narrow, wider})))


async def test_what_others_hold_is_left_to_them(bed: Bed) -> None:
    bed.world.add_wan()
    theirs = Route(15500, "10.9.0.0/24", WAN, metric=100)
    bed.world.add_foreign_route(theirs)
    bed.world.add_foreign_address("10.77.0.1/32")
    before = bed.world.foreign()
    ours = Route(15500, "10.9.0.0/24", metric=100)
    for op in (AddRoute(ours), AddRoute(theirs), AddAddress("10.77.0.1/32")):
        with pytest.raises(EdgeError, match="another program"):
            await bed.port.apply([op])
    await bed.port.apply([DeleteRoute(theirs), DeleteRoute(ours), DeleteAddress("10.77.0.1/32")])
    assert await bed.port.read() == Routes()
    assert bed.world.foreign() == before
    if bed.real:
        assert "10.77.0.1/32" in ip("address", "show", "lo")


async def test_a_refusal_does_not_stop_the_others(bed: Bed) -> None:
    bed.world.add_wan()
    refused = [
        AddRoute(Route(15500, "10.1.0.0/24", "not-there")),
        AddRoute(Route(15510, "::/0", WAN, "2001:db8::1")),
    ]
    with pytest.raises(EdgeError) as caught:
        await bed.port.apply([AddAddress("10.255.0.1/32"), *refused, AddRoute(UNREACHABLE_4)])
    assert caught.value.target == "netlink"
    assert caught.value.cause == "there is no device not-there (and 1 more of 4 refused)"
    assert await bed.port.read() == Routes(addresses=frozenset({"10.255.0.1/32"}), routes=frozenset({UNREACHABLE_4}))


async def test_a_lost_carrier_is_seen_and_keeps_routes(bed: Bed) -> None:
    bed.world.add_wan()
    await eventually(bed.port, True)
    await settle(bed.port, WANTED)
    bed.world.set_carrier(False)
    links = await eventually(bed.port, False)
    assert links.by_name[WAN].addresses == ADDRESSES
    assert await bed.port.read() == WANTED
    bed.world.set_carrier(True)
    await eventually(bed.port, True)
    assert await bed.port.read() == WANTED


@pytest.mark.parametrize("lose", ["carrier", "admin", "device"])
async def test_a_lost_link_is_told_by_name(bed: Bed, lose: str) -> None:
    """And nothing else is, nor is one that comes."""
    bed.world.add_wan()
    await eventually(bed.port, True)
    with trio.fail_after(10):
        async with aclosing(changes_of(bed.port)) as changes:
            assert await anext(changes) == frozenset()
            match lose:
                case "carrier":
                    bed.world.set_carrier(False)
                case "admin":
                    bed.world.set_wan_down()
                case _:
                    bed.world.remove_wan()
            lost: frozenset[str] = frozenset()
            while not lost:
                lost = await anext(changes)
            # The other end of a real wire goes down with it.
            assert WAN in lost <= {WAN, PEER}
            if lose == "carrier":
                bed.world.set_carrier(True)
                while not (await bed.port.links()).by_name[WAN].up:
                    assert WAN not in await anext(changes)


async def test_connection_tracking_is_made_lenient_and_read_back(bed: Bed) -> None:
    assert not (await bed.port.read()).lenient
    try:
        await settle(bed.port, Routes(lenient=True))
        await bed.port.apply([SetLenient()])
        assert (await bed.port.read()).lenient
    finally:
        # What is not wanted is left alone: here it is this test's own doing.
        if bed.real:
            LENIENT.write_text("0")
    assert not bed.real or not (await bed.port.read()).lenient, "a change by somebody else is seen"


@pytest.mark.parametrize(
    "op",
    [
        AddAddress("10.255.0.1/32"),
        AddAddress("fd0a::1/128"),
        AddRule(Rule(4, 110, 15501, iif=WAN)),
        AddRule(Rule(6, 110, 15501, iif=WAN)),
        AddRoute(UNREACHABLE_4),
        AddRoute(UNREACHABLE_6),
        SetForwarding(4, True),
        SetForwarding(6, True),
    ],
    ids=describe,
)
async def test_changes_wake_a_waiting_reader(bed: Bed, op: RouteOp) -> None:
    yielded = 0
    woken = trio.Event()

    async def count() -> None:
        nonlocal yielded
        async with aclosing(changes_of(bed.port)) as changes:
            async for _ in changes:
                yielded += 1
                woken.set()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            # The first yield, and whatever an earlier test set going, has come: only `op` can wake us again.
            # (Carriers are looked at 20 times a second: longer than between two looks no task is ever idle.)
            await wait_all_tasks_blocked(0.01)
            assert yielded >= 1
            woken = trio.Event()
            await bed.port.apply([op])
            await woken.wait()
            nursery.cancel_scope.cancel()


async def test_a_device_takes_its_routes_with_it(bed: Bed) -> None:
    bed.world.add_wan()
    await settle(bed.port, WANTED)
    left = {route for route in WANTED.routes if not route.device}
    bed.world.set_wan_down()
    assert (await bed.port.read()).routes == left
    with pytest.raises(EdgeError):
        await bed.port.apply([AddRoute(Route(15500, "10.9.0.0/24", WAN, metric=100))])
    bed.world.remove_wan()
    assert (await bed.port.read()).routes == left
    assert (await bed.port.read()).rules == WANTED.rules
    bed.world.add_wan()
    await settle(bed.port, WANTED)


async def test_links_are_facts_about_others(bed: Bed) -> None:
    bed.world.add_wan()
    await settle(bed.port, WANTED)
    await bed.port.apply([AddRoute(Route(254, "0.0.0.0/0", WAN, "10.5.0.9", 5))])
    links = await eventually(bed.port, True)
    assert links.by_name[WAN] == Link(WAN, True, ADDRESSES, ("10.5.0.2", ""))
    assert links.by_name["lo"] == Link("lo", True)


async def test_a_dummy_device_comes_and_goes(bed: Bed) -> None:
    if bed.real and not kernel_has_dummy():
        with pytest.raises(EdgeError) as caught:
            await bed.port.apply([AddDevice("cpe0")])
        assert caught.value.op == "add device cpe0"
        pytest.skip("this kernel has no dummy device")
    wanted = Routes(devices=frozenset({"cpe0"}), routes=frozenset({Route(15500, "10.9.0.0/24", "cpe0", metric=100)}))
    await settle(bed.port, wanted)
    await bed.port.apply([AddDevice("cpe0")])
    await bed.port.apply([DeleteDevice("cpe0"), DeleteDevice("cpe0")])
    assert await bed.port.read() == Routes()


async def test_links_are_read_quickly_beside_many_routes() -> None:
    """Decoding 2,000 routes in full takes more than 100 ms of a processor."""
    lines = [f"route add unreachable 10.{number >> 8}.{number & 255}.0/24 table 254" for number in range(2000)]
    await trio.run_process(["ip", "-batch", "-"], stdin="\n".join(lines).encode())
    try:
        port = Netlink()
        await port.links()
        spent_s = []
        for _ in range(5):
            began = time.process_time()
            await port.links()
            spent_s.append(time.process_time() - began)
        assert min(spent_s) < 0.05
    finally:
        ip("route", "flush", "table", "254", "type", "unreachable")


versions = st.sampled_from([4, 6])
networks = {4: ["10.1.0.0/24", "10.2.0.0/24", "0.0.0.0/0"], 6: ["fd01::/64", "fd02::/64", "::/0"]}
sources = {4: ["", "10.5.0.1", "10.255.0.1"], 6: ["", "fd05::1", "fd0a::1"]}
gateways_of = {4: ["", "10.5.0.2"], 6: ["", "fd05::2"]}
routes = versions.flatmap(
    lambda version: st.one_of(
        st.builds(
            Route,
            st.sampled_from([15500, 15510]),
            st.sampled_from(networks[version]),
            st.just(WAN),
            st.sampled_from(gateways_of[version]),
            st.sampled_from([100, 1000]),
        ),
        st.builds(Route, st.just(15500), st.sampled_from(networks[version]), metric=st.just(1000)),
    )
)
rules = versions.flatmap(
    lambda version: st.builds(
        Rule,
        st.just(version),
        st.sampled_from([110, 120]),
        st.sampled_from([15500, 15501]),
        st.sampled_from(["", WAN]),
        st.sampled_from(sources[version]),
    )
)
# Without a selector a rule would send the kernel's own look-up of a gateway into our tables.
rules = rules.filter(lambda rule: bool(rule.iif or rule.source))
wanted_routes = st.builds(
    Routes,
    addresses=st.frozensets(st.sampled_from(["10.255.0.1/32", "10.255.0.2/32", "fd0a::1/128"])),
    rules=st.frozensets(rules, max_size=8),
    routes=st.lists(routes, max_size=8, unique_by=lambda route: (route.table, route.destination, route.metric)).map(
        frozenset
    ),
    forwarding=st.frozensets(versions),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(wanted_routes, min_size=1, max_size=4))
def test_any_sequence_of_wishes_is_reached_by_the_fake(wishes: list[Routes]) -> None:
    async def reach() -> None:
        fake = FakeRoutes()
        FakeWorld(fake).add_wan()
        for wanted in wishes:
            await settle(fake, wanted)

    trio.run(reach)


@settings(max_examples=15, deadline=None)
@given(st.lists(wanted_routes, min_size=1, max_size=3))
def test_any_sequence_of_wishes_is_reached_by_the_kernel(wishes: list[Routes]) -> None:
    async def reach() -> None:
        port = Netlink()
        for wanted in [*wishes, Routes()]:
            await settle(port, wanted)

    KernelWorld().add_wan()
    try:
        trio.run(reach)
    finally:
        ip("link", "delete", WAN)
