"""How is the kernel told to change our addresses, rules and routes?

In: operations of `core.routes`, done in order, each tried. Out: those that were refused, with the error. Idempotent:
what is there already and what is gone already are no errors. The kernel's own matching is loose (a delete takes the
first that has what is asked for, and perhaps more; a replace takes anybody's), so we look before we delete or replace,
and leave alone what another program holds.
"""

from __future__ import annotations

import errno
import itertools
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import trio

from cpe_agent.edge import ourroutes, routebatch, routetable, xfrm
from cpe_agent.edge.linkwatch import LOOPBACK_INDEX
from cpe_agent.edge.rtnetlink import NetlinkDumpInterrupted, NetlinkError
from cpe_agent.model.dataplane import ROUTE_PROTOCOL, Route, Rule
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

_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_GONE = frozenset({errno.ESRCH, errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.EADDRNOTAVAIL})
_THERE = frozenset({errno.EEXIST})
# An operation that looked at a list which changed meanwhile is tried again.
_ATTEMPTS = 5
# Fewer are not worth it.
TOGETHER_FROM = 8


def apply(kernel: Any, ops: Sequence[RouteOp]) -> list[tuple[RouteOp, Exception]]:
    """Do `ops` on an open pyroute2 IPRoute, in a trio worker thread. Returns what was refused."""
    batch = _Batch(kernel)
    refused: list[tuple[RouteOp, Exception]] = []
    for op in _one_by_one(batch, ops):
        for attempt in range(_ATTEMPTS):
            try:
                batch.do(op)
            except NetlinkDumpInterrupted as error:
                if attempt == _ATTEMPTS - 1:
                    refused.append((op, OSError(errno.EAGAIN, f"the kernel's lists change while read: {error}")))
            except (NetlinkError, OSError) as error:
                refused.append((op, error))
                break
            else:
                break
    return refused


def _one_by_one(batch: _Batch, ops: Sequence[RouteOp]) -> Iterator[RouteOp]:
    """The operations in order, but without the additions of routes that could be made together."""
    for together, group in itertools.groupby(ops, lambda op: isinstance(op, AddRoute)):
        rest = list(group)
        while rest:
            # A hub's thousands of routes take seconds: whoever is cancelled does not wait for the end.
            trio.from_thread.check_cancelled()
            if together and len(rest) >= TOGETHER_FROM:
                now, rest = rest[: routebatch.TOGETHER], rest[routebatch.TOGETHER :]
                yield from batch.add_together([op.route for op in now if isinstance(op, AddRoute)])
            else:
                yield rest.pop(0)


class _Slot:
    """A place for a route, by destination and metric: our routes in it, and whether another program has one there."""

    def __init__(self) -> None:
        self.ours: set[Route] = set()
        self.foreign = False


class _Batch:
    """One `apply`. Rules and tables are looked at when first needed, once, and followed from there."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._tables: dict[tuple[int, int], dict[tuple[str, int], _Slot]] = {}
        self._rules: dict[int, set[Rule]] = {}

    def do(self, op: RouteOp) -> None:
        match op:
            case AddDevice():
                self._add_device(op.name)
            case DeleteDevice():
                self._delete_device(op.name)
            case AddAddress():
                self._add_address(op.address)
            case DeleteAddress():
                self._delete_address(op.address)
            case AddRule():
                self._add_rule(op.rule)
            case DeleteRule():
                self._delete_rule(op.rule)
            case AddRoute():
                self._add_route(op.route)
            case DeleteRoute():
                self._delete_route(op.route)
            case AddPolicy():
                xfrm.add_block_policy(op.policy)
            case DeletePolicy():
                xfrm.delete_block_policy(op.policy)
            case SetForwarding():
                _set_forwarding(op.family, op.on)
            case SetLenient():
                ourroutes.LENIENT.write_text("1")

    def add_together(self, routes: Sequence[Route]) -> list[RouteOp]:
        """Returns what must be looked at by itself."""
        left = set(routebatch.add(routes))
        for route in routes:
            known = self._tables.get(_table_of(route))
            if known is not None and route not in left:
                known.setdefault(_place_of(route), _Slot()).ours.add(route)
        return [AddRoute(route) for route in routes if route in left]

    def _add_device(self, name: str) -> None:
        with _no_error(_THERE):
            self._kernel.link("add", ifname=name, kind="dummy")
        (message,) = self._kernel.link("get", ifname=name)
        if not ourroutes.is_dummy(message):
            raise OSError(errno.EEXIST, "a device of this name is there and is no dummy device")
        self._kernel.link("set", index=message["index"], state="up")

    def _delete_device(self, name: str) -> None:
        with _no_error(_GONE):
            (message,) = self._kernel.link("get", ifname=name)
            if ourroutes.is_dummy(message):
                self._kernel.link("del", index=message["index"])

    def _add_address(self, text: str) -> None:
        try:
            self._kernel.addr("add", **_address_request(text), proto=ROUTE_PROTOCOL)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
            if text not in ourroutes.addresses(self._kernel):
                raise OSError(errno.EEXIST, "another program has put this address on lo") from error

    def _delete_address(self, text: str) -> None:
        if text in ourroutes.addresses(self._kernel):
            with _no_error(_GONE):
                self._kernel.addr("del", **_address_request(text))

    def _add_rule(self, rule: Rule) -> None:
        try:
            self._kernel.rule("add", **_rule_request(rule))
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
            if rule not in self._held_rules(rule.family):
                self._add_rule_before_narrower(rule)
        if rule.family in self._rules:
            self._rules[rule.family].add(rule)

    def _add_rule_before_narrower(self, rule: Rule) -> None:
        """The kernel calls a rule without source "there" if one with a source is; in the other order it takes both."""
        narrower = self._take_rules(rule)
        self._kernel.rule("add", **_rule_request(rule))
        for other in sorted(narrower):
            self._add_rule(other)

    def _take_rules(self, rule: Rule) -> set[Rule]:
        """Delete all rules that a delete of `rule` may take, since the kernel does not let us choose. Returns them."""
        held = self._held_rules(rule.family)
        taken = {other for other in held if _would_take(rule, other)}
        for _ in taken:
            with _no_error(_GONE):
                self._kernel.rule("del", **_rule_request(rule))
        held -= taken
        return taken

    def _held_rules(self, version: int) -> set[Rule]:
        if version not in self._rules:
            self._rules[version] = set(ourroutes.rules(self._kernel, version))
        return self._rules[version]

    def _delete_rule(self, rule: Rule) -> None:
        if rule in self._held_rules(rule.family):
            for other in sorted(self._take_rules(rule) - {rule}):
                self._add_rule(other)

    def _add_route(self, route: Route) -> None:
        known = self._tables.get(_table_of(route))
        try:
            self._kernel.route("add", **_route_request(route))
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
            self._take_slot(route)
        else:
            if known is not None:
                known.setdefault(_place_of(route), _Slot()).ours.add(route)

    def _take_slot(self, route: Route) -> None:
        """Make `route` the only one in its place, which is taken."""
        slot = self._slot(route)
        if slot.foreign:
            raise OSError(errno.EEXIST, "another program has a route in this place")
        if slot.ours == {route}:
            return
        if len(slot.ours) > 1:
            # Never made by us. Which of several a replacement would take differs by IP version.
            self._empty(slot)
            self._kernel.route("add", **_route_request(route))
        else:
            self._kernel.route("replace", **_route_request(route))
        slot.ours = {route}

    def _delete_route(self, route: Route) -> None:
        slot = self._slot(route)
        if route not in slot.ours:
            return
        others = slot.ours - {route}
        self._empty(slot)
        for other in sorted(others):
            self._kernel.route("append", **_route_request(other))
            slot.ours.add(other)

    def _empty(self, slot: _Slot) -> None:
        # With a gateway first: a delete without one takes those too.
        for route in sorted(slot.ours, reverse=True):
            with _no_error(_GONE):
                self._kernel.route("del", **_route_request(route))
        slot.ours = set()

    def _slot(self, route: Route) -> _Slot:
        key = _table_of(route)
        if key not in self._tables:
            self._tables[key] = _look_at(*key)
        return self._tables[key].setdefault(_place_of(route), _Slot())


def _look_at(version: int, table: int) -> dict[tuple[str, int], _Slot]:
    slots: dict[tuple[str, int], _Slot] = {}
    names = ourroutes.Names()
    for raw in routetable.dump(version, table=table):
        if raw.special:
            continue  # stands in another place, whatever its metric
        slot = slots.setdefault((raw.destination, raw.metric), _Slot())
        ours = set(ourroutes.routes(raw, names)) if raw.protocol == ROUTE_PROTOCOL else set()
        slot.ours |= ours
        slot.foreign = slot.foreign or not ours
    return slots


def _table_of(route: Route) -> tuple[int, int]:
    return 6 if ":" in route.destination else 4, route.table


def _place_of(route: Route) -> tuple[str, int]:
    return route.destination, route.metric


def _would_take(asked: Rule, held: Rule) -> bool:
    """A delete of `asked` may take `held`: to the kernel, what is not asked for is not compared."""
    return (
        (asked.priority, asked.table) == (held.priority, held.table)
        and asked.iif in ("", held.iif)
        and asked.source in ("", held.source)
        and (held.near or not asked.near)
    )


def _address_request(text: str) -> dict[str, Any]:
    address, _, length = text.partition("/")
    return {"index": LOOPBACK_INDEX, "address": address, "prefixlen": int(length)}


def _rule_request(rule: Rule) -> dict[str, Any]:
    request: dict[str, Any] = {
        "family": ourroutes.FAMILIES[rule.family],
        "priority": rule.priority,
        "table": rule.table,
        "protocol": ROUTE_PROTOCOL,
    }
    if rule.iif:
        request["iifname"] = rule.iif
    if rule.near:
        request["FRA_SUPPRESS_PREFIXLEN"] = 0
    if rule.source:
        address, _, length = rule.source.partition("/")
        request["src"] = address
        request["src_len"] = int(length) if length else {4: 32, 6: 128}[rule.family]
    return request


def _route_request(route: Route) -> dict[str, Any]:
    version, _ = _table_of(route)
    request: dict[str, Any] = {
        "family": ourroutes.FAMILIES[version],
        "dst": route.destination,
        "table": route.table,
        "priority": route.metric,
        "proto": ROUTE_PROTOCOL,
        "type": "unicast" if route.device else "unreachable",
    }
    if route.device:
        try:
            request["oif"] = socket.if_nametoindex(route.device)
        except OSError as error:
            raise OSError(errno.ENODEV, f"there is no device {route.device}") from error
    if route.gateway:
        request["gateway"] = route.gateway
    if route.mtu:
        request["metrics"] = {"mtu": route.mtu}
    # Other routes' gateways may only be looked up among routes of link scope (v6 has no scopes).
    request["scope"] = _SCOPE_LINK if version == 4 and route.device and not route.gateway else _SCOPE_UNIVERSE
    return request


def _set_forwarding(version: int, on: bool) -> None:
    path = ourroutes.FORWARDING[version]
    if not on and not path.exists():
        return  # a kernel without this IP version forwards nothing of it
    try:
        path.write_text("1" if on else "0")
    except FileNotFoundError as error:
        raise OSError(errno.EAFNOSUPPORT, f"the kernel has no IPv{version}") from error


@contextmanager
def _no_error(codes: frozenset[int]) -> Iterator[None]:
    """What the kernel refuses for one of `codes` is as wanted."""
    try:
        yield
    except NetlinkError as error:
        if error.code not in codes:
            raise
    except OSError as error:
        if error.errno not in codes:
            raise
