"""Which single changes can be made to charon, nftables and netlink?

Decided by core's diffs, carried out by the edges, printed by `plan`. Each is idempotent.
"""

from __future__ import annotations

import msgspec

from cpe_agent.model.dataplane import BlockPolicy, Connection, NftChain, NftSet, Route, Rule, Ruleset


class ReplaceTable(msgspec.Struct, frozen=True):
    """Delete our table if it is there and build this one, in one transaction."""

    ruleset: Ruleset


class AddElements(msgspec.Struct, frozen=True):
    """Add elements to a set that exists."""

    set_name: str
    set_type: str
    elements: frozenset[str]


class DeleteElements(msgspec.Struct, frozen=True):
    """Delete elements that were read from the set."""

    set_name: str
    set_type: str
    elements: frozenset[str]


class ReplaceSet(msgspec.Struct, frozen=True):
    """Put another set in the place of one that exists, without a packet lost or let through: a new set beside it, then
    the rules of `chains` (all that look into it) moved to the new one, then the old one deleted. Three transactions.
    The new set's counters start at zero."""

    new: NftSet
    chains: tuple[NftChain, ...]


class DeleteTable(msgspec.Struct, frozen=True):
    """Delete our table, if it is there."""


FirewallOp = ReplaceTable | ReplaceSet | AddElements | DeleteElements | DeleteTable


class AddDevice(msgspec.Struct, frozen=True):
    """Create a dummy device and set it up."""

    name: str


class DeleteDevice(msgspec.Struct, frozen=True):
    name: str


class AddAddress(msgspec.Struct, frozen=True):
    """Put an address ("10.255.0.1/32") on `lo`, marked as ours."""

    address: str


class DeleteAddress(msgspec.Struct, frozen=True):
    address: str


class AddRule(msgspec.Struct, frozen=True):
    rule: Rule


class DeleteRule(msgspec.Struct, frozen=True):
    rule: Rule


class AddRoute(msgspec.Struct, frozen=True):
    route: Route


class DeleteRoute(msgspec.Struct, frozen=True):
    route: Route


class AddPolicy(msgspec.Struct, frozen=True):
    policy: BlockPolicy


class DeletePolicy(msgspec.Struct, frozen=True):
    policy: BlockPolicy


class SetForwarding(msgspec.Struct, frozen=True):
    """Turn forwarding of one IP version (4 or 6) on or off."""

    family: int
    on: bool


class SetLenient(msgspec.Struct, frozen=True):
    """Let connection tracking take up TCP flows that went another way for a while."""


RouteOp = (
    AddDevice
    | DeleteDevice
    | AddAddress
    | DeleteAddress
    | AddRule
    | DeleteRule
    | AddRoute
    | DeleteRoute
    | AddPolicy
    | DeletePolicy
    | SetForwarding
    | SetLenient
)


class LoadCredentials(msgspec.Struct, frozen=True):
    """Load our certificate and key and the authorities."""


class LoadConnection(msgspec.Struct, frozen=True):
    """Load or replace a connection."""

    connection: Connection


class UnloadConnection(msgspec.Struct, frozen=True):
    name: str


class Initiate(msgspec.Struct, frozen=True):
    """Start a child (and the IKE_SA under it, if there is none). Returns at once; events follow."""

    connection: str
    child: str


class TerminateChild(msgspec.Struct, frozen=True):
    unique_id: int


class TerminateIke(msgspec.Struct, frozen=True):
    """`force`: do not wait for the peer's answer."""

    unique_id: int
    force: bool


TunnelOp = LoadCredentials | LoadConnection | UnloadConnection | Initiate | TerminateChild | TerminateIke
