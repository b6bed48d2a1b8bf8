"""What would nftables do? In memory, for loops' tests; held to nftables by tests/edge/test_firewall_contract.py.

Refuses what nftables refuses: a missing table, set or chain, an element deleted that is not there, elements that
overlap. Stricter where nftables is silently wrong, so that nobody comes to lean on it: a part of an element cannot be
deleted (nftables deletes the whole), overlaps are refused in any order, text that nftables would print otherwise
("10.0.0.1/32", "tcp") is refused, and a base chain that drops needs a final drop rule.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from itertools import pairwise

import msgspec
import trio

from cpe_agent.model.dataplane import NftChain, NftSet, Ruleset
from cpe_agent.model.ops import AddElements, DeleteElements, DeleteTable, FirewallOp, ReplaceSet, ReplaceTable
from cpe_agent.ports import EdgeError

Box = tuple[tuple[int | str, int | str], ...]

_LIMITS = {"inet_proto": 255, "inet_service": 65535}
_DROP_REASON = re.compile(r'\bcounter drop comment "([^"]*)"$')
# "@th,64,32" are bytes of a packet, and no set.
_REFERENCES = re.compile(r"@([A-Za-z0-9_]+)\b(?!,\d)|\b(?:jump|goto) ([A-Za-z0-9_]+)")


class FirewallFake:
    """A `FirewallPort`. `counts` are the counters' values by name (0 where absent), `applied` what was done so far."""

    def __init__(self, table: Ruleset | None = None) -> None:
        self.table = table
        self.counts: dict[str, tuple[int, int]] = {}
        self.applied: list[tuple[FirewallOp, ...]] = []
        self.refusal: str | None = None
        self._generation = 0
        self._changed = trio.Event()

    async def read(self) -> Ruleset | None:
        await trio.lowlevel.checkpoint()
        return self.table

    async def apply(self, ops: Sequence[FirewallOp]) -> None:
        await trio.lowlevel.checkpoint()
        if not ops:
            return
        if self.refusal is not None:
            raise EdgeError("nftables", "apply", self.refusal)
        table = self.table
        # Swaps take transactions of their own, after the others.
        for op in sorted(ops, key=lambda op: isinstance(op, ReplaceSet)):
            table = _done(table, op)
        self.applied.append(tuple(ops))
        self.change(table)

    async def counters(self) -> dict[str, tuple[int, int]]:
        await trio.lowlevel.checkpoint()
        if self.table is None:
            return {}
        names = [f"{s.name} {element}" for s in self.table.sets if s.counter for element in s.elements]
        reasons = (_DROP_REASON.search(rule) for chain in self.table.chains for rule in chain.rules)
        names += [f"drop {found[1]}" for found in reasons if found]
        return {name: self.counts.get(name, (0, 0)) for name in names}

    async def changes(self) -> AsyncGenerator[None, None]:
        seen = self._generation
        yield
        while True:
            while seen == self._generation:
                await self._changed.wait()
            seen = self._generation
            yield

    def change(self, table: Ruleset | None) -> None:
        """Put `table` in place, as anybody may, and tell it."""
        self.table = table
        self._generation += 1
        self._changed.set()
        self._changed = trio.Event()


def _done(table: Ruleset | None, op: FirewallOp) -> Ruleset | None:
    if isinstance(op, ReplaceTable):
        _check_table(op.ruleset)
        return op.ruleset
    if isinstance(op, DeleteTable):
        return None
    if isinstance(op, ReplaceSet):
        return _swapped(table, op)
    nft_set = next((s for s in table.sets if s.name == op.set_name), None) if table else None
    if table is None or nft_set is None:
        raise EdgeError("nftables", op.set_name, "No such file or directory")
    if nft_set.type != op.set_type:
        raise EdgeError("nftables", op.set_name, f"it holds {nft_set.type}, not {op.set_type}")
    if isinstance(op, AddElements):
        elements = nft_set.elements | op.elements
        _check_elements(nft_set, elements)
    else:
        assert isinstance(op, DeleteElements)
        if missing := op.elements - nft_set.elements:
            raise EdgeError("nftables", op.set_name, f"element does not exist: {min(missing)}")
        elements = nft_set.elements - op.elements
    changed = msgspec.structs.replace(nft_set, elements=elements)
    return msgspec.structs.replace(table, sets=tuple(changed if s is nft_set else s for s in table.sets))


def _swapped(table: Ruleset | None, op: ReplaceSet) -> Ruleset:
    """The table with `op.new` in the place of the set of its name, and `op.chains` in the place of theirs."""
    name = op.new.name
    if table is None or name not in {s.name for s in table.sets}:
        raise EdgeError("nftables", name, "No such file or directory")
    moved = {chain.name: chain for chain in op.chains}
    if strange := moved.keys() - {chain.name for chain in table.chains}:
        raise EdgeError("nftables", name, f"there is no chain {min(strange)}")
    for chain in table.chains:
        if chain.name not in moved and any(name == found for rule in chain.rules for found, _ in _references(rule)):
            raise EdgeError("nftables", name, f"Device or resource busy: {chain.name} looks into it")
    sets = tuple(op.new if s.name == name else s for s in table.sets)
    changed = msgspec.structs.replace(table, sets=sets, chains=tuple(moved.get(c.name, c) for c in table.chains))
    _check_table(changed)
    return changed


def _check_table(ruleset: Ruleset) -> None:
    names: list[Callable[[], Iterable[str]]] = [
        lambda: (s.name for s in ruleset.sets),
        lambda: (c.name for c in ruleset.chains),
    ]
    for listed in names:
        if any(a >= b for a, b in pairwise(listed())):
            raise EdgeError("nftables", "replace the table", "names are not in order, or twice the same")
    for nft_set in ruleset.sets:
        _check_elements(nft_set, nft_set.elements)
    sets, chains = ({*listed()} for listed in names)
    for chain in ruleset.chains:
        _check_chain(chain, sets, chains)


def _check_chain(chain: NftChain, sets: set[str], chains: set[str]) -> None:
    for rule in chain.rules:
        for set_name, chain_name in _references(rule):
            if (set_name and set_name not in sets) or (chain_name and chain_name not in chains):
                raise EdgeError("nftables", f"{chain.name}: {rule}", "No such file or directory")
    if chain.hook.endswith("policy drop;") and not (chain.rules and _DROP_REASON.search(chain.rules[-1])):
        raise EdgeError("nftables", chain.name, "would accept while it is being replaced: no final drop rule")


def _references(rule: str) -> list[tuple[str, str]]:
    """(set, "") or ("", chain) for each that the rule names."""
    return [(set_name, chain_name) for set_name, chain_name in _REFERENCES.findall(rule)]


def _check_elements(nft_set: NftSet, elements: Iterable[str]) -> None:
    """Raise unless all are canonical, and disjoint: sorted by their first part, each against those still open there."""
    types = nft_set.type.split(" . ")
    open_boxes: list[tuple[Box, str]] = []
    for box, element in sorted((_box(nft_set, types, element), element) for element in elements):
        open_boxes = [(other, text) for other, text in open_boxes if not _is_less(other[0][1], box[0][0])]
        for other, text in open_boxes:
            if all(not _is_less(b[1], a[0]) and not _is_less(a[1], b[0]) for a, b in zip(box, other, strict=True)):
                raise EdgeError("nftables", nft_set.name, f"{element} overlaps {text}")
        open_boxes.append((box, element))


def _is_less(a: int | str, b: int | str) -> bool:
    # Both are of one part of one set's type: two numbers or two names.
    return a < b  # type: ignore[operator]


def _box(nft_set: NftSet, types: list[str], element: str) -> Box:
    parts = element.split(" . ")
    try:
        if len(parts) != len(types):
            raise ValueError("wrong number of parts")
        return tuple(_bounds(kind, part, "interval" in nft_set.flags) for kind, part in zip(types, parts, strict=True))
    except ValueError as error:
        raise EdgeError("nftables", nft_set.name, f"{element}: {error}") from None


def _bounds(kind: str, part: str, interval: bool) -> tuple[int | str, int | str]:
    """(lowest, highest) of one part of an element, if it is written as nftables would print it."""
    if kind == "ifname":
        if not re.fullmatch(r"[^\s\"*/]{1,15}", part):
            raise ValueError("no interface name")
        return part, part
    low, dash, high = part.partition("-")
    if (dash or "/" in part) and not interval:
        raise ValueError("a range, in a set without intervals")
    if kind in _LIMITS:
        first, last = int(low), int(high or low)
        written = f"{first}-{last}" if dash else str(first)
        if written != part or not first <= last <= _LIMITS[kind] or (dash and first == last):
            raise ValueError(f"{part} is not canonical")
        return first, last
    return _address_bounds(part, low, high)


def _address_bounds(part: str, low: str, high: str) -> tuple[int, int]:
    if high:
        networks = [*ipaddress.summarize_address_range(ipaddress.ip_address(low), ipaddress.ip_address(high))]
        if len(networks) == 1 or f"{networks[0][0]}-{networks[-1][-1]}" != part:
            raise ValueError(f"{part} is not canonical")
        return int(networks[0][0]), int(networks[-1][-1])
    network = ipaddress.ip_network(part)
    whole = network.num_addresses > 1
    if part != (str(network) if whole else str(network.network_address)):
        raise ValueError(f"{part} is not canonical")
    return int(network[0]), int(network[-1])
