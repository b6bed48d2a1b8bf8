"""By which operations does the living routing become the wanted one?

In: wanted and observed `Routes` (observed holds only what carries our protocol number). Out: operations in order. Add
before delete; rules that lock come before the routes that open; forwarding goes off first and on last.
"""

from __future__ import annotations

from cpe_agent.model.dataplane import PRIORITY_UPLINK_FROM, Routes
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


def diff(wanted: Routes, observed: Routes) -> tuple[RouteOp, ...]:
    """Ordered operations; empty when all is as wanted."""
    ops: list[RouteOp] = []
    ops += [SetForwarding(family, False) for family in sorted(observed.forwarding - wanted.forwarding)]
    ops += [AddPolicy(policy) for policy in sorted(wanted.policies - observed.policies)]
    ops += [AddDevice(name) for name in sorted(wanted.devices - observed.devices)]
    # An unreachable route must be there before a rule leads into its table, or the packet falls through to main.
    new_routes = sorted(wanted.routes - observed.routes, key=lambda route: (route.device != "", route))
    locks = [route for route in new_routes if not route.device]
    ways = [route for route in new_routes if route.device]
    new_rules = sorted(wanted.rules - observed.rules)
    ops += [AddRoute(route) for route in locks]
    ops += [AddRule(rule) for rule in new_rules if rule.priority < PRIORITY_UPLINK_FROM]
    ops += [AddRoute(route) for route in ways]
    ops += [AddRule(rule) for rule in new_rules if rule.priority >= PRIORITY_UPLINK_FROM]
    # With an address comes the first packet from it: only now does every way lead where it should.
    ops += [AddAddress(address) for address in sorted(wanted.addresses - observed.addresses)]
    ops += [DeleteRule(rule) for rule in sorted(observed.rules - wanted.rules)]
    ops += [
        DeleteRoute(route)
        for route in sorted(observed.routes - wanted.routes, key=lambda route: (not route.device, route))
    ]
    ops += [DeleteAddress(address) for address in sorted(observed.addresses - wanted.addresses)]
    ops += [DeleteDevice(name) for name in sorted(observed.devices - wanted.devices)]
    ops += [DeletePolicy(policy) for policy in sorted(observed.policies - wanted.policies)]
    if wanted.lenient and not observed.lenient:
        ops.append(SetLenient())
    ops += [SetForwarding(family, True) for family in sorted(wanted.forwarding - observed.forwarding)]
    return tuple(ops)
