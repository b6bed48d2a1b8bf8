"""Are routes that are added together the same as routes that are added one by one?"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest

from cpe_agent.core.routes import diff
from cpe_agent.edge import routechange
from cpe_agent.edge.netlink import Netlink
from cpe_agent.model.dataplane import Route, Routes
from cpe_agent.model.ops import AddRoute
from cpe_agent.ports import EdgeError

TABLE = 15500
MIXED = (
    Route(TABLE, "0.0.0.0/0"),
    Route(TABLE, "::/0"),
    *(Route(TABLE, f"10.{n}.0.0/16") for n in range(30)),
    *(Route(TABLE, f"10.{n}.0.0/16", "batch0", metric=100) for n in range(30)),
    *(Route(TABLE, f"fd00:{n}::/64", "batch0", metric=100, mtu=1300) for n in range(1, 31)),
    Route(15510, "0.0.0.0/0", "batch0", "10.5.0.2", 100, 1280),
    Route(15510, "::/0", "batch0", "fd05::2", 100),
)


def ip(command: str) -> str:
    return subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True).stdout


@pytest.fixture(autouse=True)
def link() -> Iterator[None]:
    for command in (
        "link add batch0 type veth peer name batch1",
        "link set batch1 up",
        "link set batch0 up",
        "address add 10.5.0.1/24 dev batch0",
        "-6 address add fd05::1/64 dev batch0 nodad",
    ):
        ip(command)
    yield
    ip("link del batch0")
    for version in ("-4", "-6"):
        for table in (TABLE, 15510):
            subprocess.run(["ip", version, "route", "flush", "table", str(table)], check=False, capture_output=True)


async def test_together_is_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    port = Netlink()
    wanted = Routes(routes=frozenset(MIXED))
    await port.apply(diff(wanted, Routes()))
    assert (await port.read()).routes == wanted.routes
    await port.apply([AddRoute(route) for route in MIXED])  # all are there
    assert (await port.read()).routes == wanted.routes
    await port.apply(diff(Routes(), await port.read()))
    assert not (await port.read()).routes
    monkeypatch.setattr(routechange, "TOGETHER_FROM", 10**6)
    await port.apply(diff(wanted, Routes()))
    assert (await port.read()).routes == wanted.routes


async def test_what_is_refused_stops_nobody_and_what_is_others_stays() -> None:
    port = Netlink()
    ip(f"route add 10.7.0.0/16 dev batch0 table {TABLE} metric 100")
    nowhere = Route(TABLE, "10.99.0.0/16", "not-there", metric=100)
    with pytest.raises(EdgeError) as caught:
        await port.apply([AddRoute(route) for route in (nowhere, *MIXED)])
    assert caught.value.cause == "there is no device not-there (and 1 more of 95 refused)"
    theirs = Route(TABLE, "10.7.0.0/16", "batch0", metric=100)
    assert (await port.read()).routes == frozenset(MIXED) - {theirs}
    shown = ip(f"route show table {TABLE} 10.7.0.0/16").splitlines()
    assert "proto 155" not in next(line for line in shown if "metric 100" in line)


async def test_what_stands_in_a_place_of_ours_is_replaced() -> None:
    port = Netlink()
    await port.apply([AddRoute(Route(TABLE, f"10.{n}.0.0/16", metric=100)) for n in range(20)])
    asked = [Route(TABLE, f"10.{n}.0.0/16", "batch0", metric=100) for n in range(20)]
    await port.apply([AddRoute(route) for route in asked])
    assert (await port.read()).routes == frozenset(asked)


async def test_ten_thousand_take_no_time(capsys: pytest.CaptureFixture[str]) -> None:
    many = [Route(TABLE, f"10.{n >> 8}.{n & 255}.0/24", "batch0", metric=100) for n in range(10_000)]
    port = Netlink()
    began, spent = time.perf_counter(), time.process_time()
    await port.apply([AddRoute(route) for route in many])
    took, cost = time.perf_counter() - began, time.process_time() - spent
    assert len((await port.read()).routes) == 10_000
    with capsys.disabled():
        print(f"\n10,000 routes: {took:.2f} s, {cost:.2f} s of a processor")
    assert cost < 2
