"""On what is a `RoutePort` tried? On the fake, or on the kernel of this process's network namespace. What others do."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import trio

from cpe_agent.core.routes import diff
from cpe_agent.edge.netlink import Netlink
from cpe_agent.model.dataplane import Route, Routes
from cpe_agent.model.observed import Link, LinkAddress
from cpe_agent.ports import RoutePort
from tests.fakes.routes import FakeRoutes

WAN, PEER = "wan0", "wan0-peer"
ADDRESSES = (LinkAddress("10.5.0.1", 24), LinkAddress("fd05::1", 64))


class World(Protocol):
    """Others' doings, on the fake or on the kernel."""

    def add_wan(self) -> None: ...
    def remove_wan(self) -> None: ...
    def set_carrier(self, up: bool) -> None: ...
    def set_wan_down(self) -> None: ...
    def add_foreign_route(self, route: Route) -> None: ...
    def add_foreign_address(self, address: str) -> None: ...
    def foreign(self) -> object:
        """All that is not ours, to be compared."""


class FakeWorld:
    def __init__(self, port: FakeRoutes) -> None:
        self.port = port

    def add_wan(self) -> None:
        self.port.set_link(Link(WAN, True, ADDRESSES, ("10.5.0.2", "")))

    def remove_wan(self) -> None:
        self.port.remove_link(WAN)

    def set_carrier(self, up: bool) -> None:
        self.port.set_carrier(WAN, up)

    def set_wan_down(self) -> None:
        self.port.set_link(Link(WAN, False), admin_up=False)

    def add_foreign_route(self, route: Route) -> None:
        self.port.foreign_routes.add(route)

    def add_foreign_address(self, address: str) -> None:
        self.port.foreign_addresses.add(address)

    def foreign(self) -> object:
        return frozenset(self.port.foreign_routes), frozenset(self.port.foreign_addresses)


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20).stdout


def kernel_has_dummy() -> bool:
    try:
        ip("link", "add", "cpe1", "type", "dummy")
    except subprocess.CalledProcessError:
        return False
    ip("link", "delete", "cpe1")
    return True


class KernelWorld:
    def add_wan(self) -> None:
        ip("link", "add", WAN, "type", "veth", "peer", "name", PEER)
        ip("link", "set", PEER, "up")
        ip("link", "set", WAN, "up")
        ip("address", "add", "10.5.0.1/24", "dev", WAN)
        ip("-6", "address", "add", "fd05::1/64", "dev", WAN, "nodad")
        ip("route", "add", "default", "via", "10.5.0.2", "dev", WAN, "metric", "50")
        ip("route", "add", "default", "dev", WAN, "metric", "60")

    def remove_wan(self) -> None:
        ip("link", "delete", WAN)

    def set_carrier(self, up: bool) -> None:
        ip("link", "set", PEER, "up" if up else "down")

    def set_wan_down(self) -> None:
        ip("link", "set", WAN, "down")

    def add_foreign_route(self, route: Route) -> None:
        way = ["dev", route.device] if route.device else []
        kind = [] if way else ["unreachable"]
        ip("route", "add", *kind, route.destination, *way, "table", str(route.table), "metric", str(route.metric))

    def add_foreign_address(self, address: str) -> None:
        ip("address", "add", address, "dev", "lo")

    def foreign(self) -> object:
        lines = []
        for version in ("-4", "-6"):
            for what in (["route", "show", "table", "all"], ["rule", "show"]):
                lines += ip(version, *what).splitlines()
        # "proto kernel": the kernel's own follow addresses, carrier and forwarding.
        return sorted(line for line in lines if "proto 155" not in line and "proto kernel" not in line)


class Bed:
    def __init__(self, port: RoutePort, world: World, real: bool) -> None:
        self.port = port
        self.world = world
        self.real = real


@contextmanager
def bed_of(kind: str) -> Iterator[Bed]:
    """`kind`: "fake" or "kernel". The kernel is left as it was."""
    if kind == "fake":
        fake = FakeRoutes()
        yield Bed(fake, FakeWorld(fake), False)
        return
    port = Netlink()
    yield Bed(port, KernelWorld(), True)

    async def clean() -> None:
        await port.apply(diff(Routes(), await port.read()))
        assert await port.read() == Routes()

    if WAN in ip("link", "show"):
        ip("link", "delete", WAN)
    trio.run(clean)
    for version in ("-4", "-6"):
        for table in ("15500", "15510"):
            subprocess.run(["ip", version, "route", "flush", "table", table], check=False, capture_output=True)
    ip("address", "flush", "dev", "lo", "scope", "global")
