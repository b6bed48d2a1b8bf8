"""A `RoutePort` in memory that refuses what the kernel refuses.

Tests set the facts (`set_link`, `remove_link`, `foreign_...`); each such change and each `apply` wakes `changes()`.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import AsyncGenerator, Sequence

import msgspec
import trio

from cpe_agent.model.dataplane import INBOUND, OVERLAY, Backend, BlockPolicy, Route, Routes, Rule
from cpe_agent.model.observed import Link, LinkBytes, LinkCounters, Links
from cpe_agent.model.ops import (
    AddAddress,
    AddDevice,
    AddPolicy,
    AddRoute,
    AddRule,
    DeleteAddress,
    DeleteDevice,
    DeletePolicy,
    DeleteRoute,
    DeleteRule,
    RouteOp,
    SetForwarding,
    SetLenient,
)
from cpe_agent.ports import EdgeError


class RefusedError(Exception):
    """The kernel would not do this."""


class FakeRoutes:
    """`versions`: IP versions of this kernel; `has_dummy`: whether it can make dummy devices; `boot`: which this is."""

    def __init__(self, *, versions: tuple[int, ...] = (4, 6), has_dummy: bool = True) -> None:
        self.versions = versions
        self.has_dummy = has_dummy
        self.boot = "boot-1"
        self.ops: list[RouteOp] = []
        self.foreign_routes: set[Route] = set()
        self.foreign_addresses: set[str] = set()
        self._addresses: set[str] = set()
        self._rules: set[Rule] = set()
        self._routes: set[Route] = set()
        self._devices: set[str] = set()
        self._forwarding: set[int] = set()
        self._lenient = False
        self._policies: set[BlockPolicy] = set()
        self._links: dict[str, Link] = {"lo": Link("lo", True)}
        # Administratively down is more than without carrier: routes go.
        self._admin_down: set[str] = set()
        self._counted: dict[str, LinkBytes] = {}
        self._indices = itertools.count(2)
        self._changes = 0
        self._changed = trio.Event()

    def set_link(self, link: Link, *, admin_up: bool = True) -> None:
        """This is the interface `link.name` now."""
        assert admin_up or not link.up, "a link that is administratively down is not up"
        self._links[link.name] = link
        if link.name not in self._counted:
            self._counted[link.name] = LinkBytes(next(self._indices), 0, 0)
        self._admin_down.discard(link.name)
        if not admin_up:
            self._admin_down.add(link.name)
            self._drop_routes(link.name)
        self._change()

    def set_carrier(self, name: str, up: bool) -> None:
        self._links[name] = msgspec.structs.replace(self._links[name], up=up)
        self._change()

    def remove_link(self, name: str) -> None:
        del self._links[name]
        self._counted.pop(name, None)
        self._devices.discard(name)
        self._drop_routes(name)
        self._change()

    def carry(self, name: str, received: int, sent: int = 0) -> None:
        """So many bytes more have passed."""
        counted = self._counted[name]
        self._counted[name] = LinkBytes(counted.index, counted.received + received, counted.sent + sent)

    def reboot(self) -> None:
        """All interfaces are there again, and count from 0."""
        self.boot += "+"
        self._counted = {name: LinkBytes(counted.index, 0, 0) for name, counted in self._counted.items()}

    async def read(self) -> Routes:
        await trio.lowlevel.checkpoint()
        return Routes(
            addresses=frozenset(self._addresses),
            rules=frozenset(self._rules),
            routes=frozenset(self._routes),
            devices=frozenset(self._devices),
            forwarding=frozenset(self._forwarding),
            policies=frozenset(self._policies),
            lenient=self._lenient,
        )

    async def strangers(self) -> tuple[str, ...]:
        await trio.lowlevel.checkpoint()
        ours = (OVERLAY, INBOUND)
        return tuple(sorted(f"route {r.destination} table {r.table}" for r in self.foreign_routes if r.table in ours))

    async def apply(self, ops: Sequence[RouteOp]) -> None:
        await trio.lowlevel.checkpoint()
        refused: list[tuple[RouteOp, RefusedError]] = []
        for op in ops:
            self.ops.append(op)
            try:
                self._do(op)
            except RefusedError as error:
                refused.append((op, error))
        if len(refused) < len(ops):
            self._change()
        if refused:
            op, cause = refused[0]
            more = f" (and {len(refused) - 1} more of {len(ops)} refused)" if len(refused) > 1 else ""
            raise EdgeError("netlink", str(op), f"{cause}{more}") from cause

    async def links(self) -> Links:
        await trio.lowlevel.checkpoint()
        return Links(dict(self._links))

    async def counters(self) -> LinkCounters:
        await trio.lowlevel.checkpoint()
        return LinkCounters(self.boot, dict(self._counted))

    async def changes(self) -> AsyncGenerator[frozenset[str], None]:
        seen, told = self._changes, self._up()
        await trio.lowlevel.checkpoint()
        yield frozenset()
        while True:
            while self._changes == seen:
                await self._changed.wait()
            before, seen, told = told, self._changes, self._up()
            yield before - told

    def _up(self) -> frozenset[str]:
        return frozenset(name for name, link in self._links.items() if link.up)

    def _change(self) -> None:
        self._changes += 1
        self._changed.set()
        self._changed = trio.Event()

    def _drop_routes(self, name: str) -> None:
        self._routes = {route for route in self._routes if route.device != name}
        self.foreign_routes = {route for route in self.foreign_routes if route.device != name}

    def _do(self, op: RouteOp) -> None:
        match op:
            case AddDevice():
                self._add_device(op.name)
            case DeleteDevice():
                if op.name in self._devices:
                    self.remove_link(op.name)
            case AddAddress():
                self._need(6 if ":" in op.address else 4)
                if op.address in self.foreign_addresses:
                    raise RefusedError("another program has put this address on lo")
                self._addresses.add(op.address)
            case DeleteAddress():
                self._addresses.discard(op.address)
            case AddRule():
                self._need(op.rule.family)
                self._rules.add(op.rule)
            case DeleteRule():
                self._rules.discard(op.rule)
            case AddRoute():
                self._add_route(op.route)
            case DeleteRoute():
                self._routes.discard(op.route)
            case AddPolicy():
                self._policies.add(op.policy)
            case DeletePolicy():
                self._policies.discard(op.policy)
            case SetForwarding():
                if op.on:
                    self._need(op.family)
                    self._forwarding.add(op.family)
                else:
                    self._forwarding.discard(op.family)
            case SetLenient():
                self._lenient = True

    def _need(self, version: int) -> None:
        if version not in self.versions:
            raise RefusedError("Address family not supported by protocol")

    def _add_device(self, name: str) -> None:
        if name not in self._devices and name in self._links:
            raise RefusedError("a device of this name is there and is no dummy device")
        if not self.has_dummy:
            raise RefusedError("Operation not supported")
        self._links[name] = Link(name, True)
        # Like the real one, which looks for this name only.
        if name == Backend.KERNEL.device:
            self._devices.add(name)

    def _add_route(self, route: Route) -> None:
        network = ipaddress.ip_network(route.destination)
        self._need(network.version)
        if route.device:
            if route.device not in self._links:
                raise RefusedError(f"there is no device {route.device}")
            if route.device in self._admin_down:
                raise RefusedError("Network is down")
            if route.gateway and not self._is_neighbour(route.device, route.gateway):
                raise RefusedError("Network is unreachable")
        place = (route.table, route.destination, route.metric)
        if any((other.table, other.destination, other.metric) == place for other in self.foreign_routes):
            raise RefusedError("another program has a route in this place")
        self._routes = {other for other in self._routes if (other.table, other.destination, other.metric) != place} | {
            route
        }

    def _is_neighbour(self, device: str, gateway: str) -> bool:
        address = ipaddress.ip_address(gateway)
        return address.is_link_local or any(
            address in ipaddress.ip_network(f"{own.address}/{own.prefix_length}", strict=False)
            for own in self._links[device].addresses
        )
