"""How does an operation, a route or a rule read to a person?

One line each, for errors, for `cpe-agent plan` and for `cpe-agent verify`. Routes and rules read as in iproute2.
"""

from __future__ import annotations

from typing import assert_never

from cpe_agent.model.dataplane import BlockPolicy, Route, Rule, stem_of
from cpe_agent.model.ops import (
    AddAddress,
    AddDevice,
    AddElements,
    AddPolicy,
    AddRoute,
    AddRule,
    DeleteAddress,
    DeleteDevice,
    DeleteElements,
    DeletePolicy,
    DeleteRoute,
    DeleteRule,
    DeleteTable,
    FirewallOp,
    Initiate,
    LoadConnection,
    LoadCredentials,
    ReplaceSet,
    ReplaceTable,
    RouteOp,
    SetForwarding,
    SetLenient,
    TerminateChild,
    TerminateIke,
    TunnelOp,
    UnloadConnection,
)


def describe(op: FirewallOp | RouteOp | TunnelOp) -> str:
    """`op` in a few words, as in "add route 10.1.0.0/24 dev ipsec0 table 15500 metric 100"."""
    match op:
        case ReplaceTable() | ReplaceSet() | AddElements() | DeleteElements() | DeleteTable():
            return _firewall(op)
        case SetForwarding():
            return f"turn v{op.family} forwarding {'on' if op.on else 'off'}"
        case SetLenient():
            return "let TCP flows that come back from another hub go on"
        case AddDevice():
            return f"add device {op.name}"
        case DeleteDevice():
            return f"delete device {op.name}"
        case AddAddress():
            return f"add address {op.address}"
        case DeleteAddress():
            return f"delete address {op.address}"
        case AddRule():
            return f"add {rule_words(op.rule)}"
        case DeleteRule():
            return f"delete {rule_words(op.rule)}"
        case AddRoute():
            return f"add {route_words(op.route)}"
        case DeleteRoute():
            return f"delete {route_words(op.route)}"
        case AddPolicy():
            return f"add {policy_words(op.policy)}"
        case DeletePolicy():
            return f"delete {policy_words(op.policy)}"
        case _:
            return _tunnel(op)


def route_words(route: Route) -> str:
    """ "route 10.1.0.0/24 via 192.0.2.1 dev wan table 15510 metric 100"."""
    gateway = f" via {route.gateway}" if route.gateway else ""
    way = f"{gateway} dev {route.device}" if route.device else " unreachable"
    size = f" mtu {route.mtu}" if route.mtu else ""
    return f"route {route.destination}{way} table {route.table} metric {route.metric}{size}"


def rule_words(rule: Rule) -> str:
    """ "v4 rule 110 iif wan table 15501"."""
    selector = f" from {rule.source}" if rule.source else ""
    selector += f" iif {rule.iif}" if rule.iif else ""
    return f"v{rule.family} rule {rule.priority}{selector} table {rule.table}"


def policy_words(policy: BlockPolicy) -> str:
    """ "policy out block 0.0.0.0/0 to 10.1.0.0/24"."""
    return f"policy {policy.direction} block {policy.source} to {policy.destination}"


def _firewall(op: FirewallOp) -> str:
    match op:
        case ReplaceTable():
            return "replace the table"
        case ReplaceSet():
            return f"replace set {op.new.name} by one of {_elements(len(op.new.elements))}"
        case AddElements():
            return f"add {_elements(len(op.elements))} to set {op.set_name}"
        case DeleteElements():
            return f"delete {_elements(len(op.elements))} from set {op.set_name}"
        case DeleteTable():
            return "delete the table"
        case _:
            assert_never(op)


def _elements(count: int) -> str:
    return f"{count} element" if count == 1 else f"{count} elements"


def _tunnel(op: TunnelOp) -> str:
    match op:
        case LoadCredentials():
            return "load our key, our certificates and the authorities"
        case LoadConnection():
            return f"load connection {op.connection.stem}"
        case UnloadConnection():
            return f"unload connection {op.name}"
        case Initiate():
            return f"start {op.child} on {stem_of(op.connection)}"
        case TerminateChild():
            return f"end CHILD_SA {op.unique_id}"
        case TerminateIke():
            return f"end IKE_SA {op.unique_id}{' by force' if op.force else ''}"
        case _:
            assert_never(op)
