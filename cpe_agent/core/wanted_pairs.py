"""Which elements of nftables' sets do the listed pairs come to?

Pure. In: pairs, and what the document before came to. Out: `PairSets`, the same as if compiled from nothing. A hub
lists ten thousand pairs and is told of one more: only boxes that touch what has changed are cut anew. What is left of a
box depends on nothing but the wider boxes that touch it (`disjoint.remains`), so

- a box that comes or goes changes itself and the narrower boxes that touch it, no other;
- each of these is cut again by all wider boxes that touch it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from cpe_agent.core.disjoint import Box, Range, address_pair, cut, element, network_range, remains, touch, width
from cpe_agent.model.document import Pair
from cpe_agent.model.document_check import port_range, protocol_number

# To look up what touches a box takes about 1 ms among 10,000, to cut them all anew 100 ms.
ONE_BY_ONE = 50
# Compared as slices, pairs take a third of the time that they take one by one.
TOGETHER = 256

Nets = tuple[Range, Range]  # from, to


class Cut(msgspec.Struct, frozen=True):
    """Boxes of one IP version, and what is left of each once wider ones are cut out of it.

    `at`: boxes by their addresses. `tags`: element as nft writes it -> tag of its box.
    """

    at: Mapping[Nets, tuple[Box, ...]] = {}
    pieces: Mapping[Box, tuple[Box, ...]] = {}
    tags: Mapping[str, str] = {}


class PairSet(msgspec.Struct, frozen=True):
    """Flows that one side may start: each with protocol and port, and their addresses alone."""

    flows: Cut = Cut()
    nets: Cut = Cut()


def _nothing() -> dict[tuple[str, int], PairSet]:
    return {(side, version): PairSet() for side in ("local", "remote") for version in (4, 6)}


class PairSets(msgspec.Struct, frozen=True):
    """`by_side`: ("local" or "remote", IP version) -> what that side may start."""

    pairs: tuple[Pair, ...] = ()
    by_side: Mapping[tuple[str, int], PairSet] = msgspec.field(default_factory=_nothing)

    def counter_names(self) -> dict[str, str]:
        """Counter name ("local_pairs4 ELEMENT") -> pair id."""
        return {
            f"{side}_pairs{version} {text}": tag
            for (side, version), found in self.by_side.items()
            for text, tag in found.flows.tags.items()
        }


def pair_sets(pairs: tuple[Pair, ...], before: PairSets | None = None) -> PairSets:
    """What `pairs` come to; quick if they differ little from those of `before`."""
    before = before or PairSets()
    gone, new = _changes(before.pairs, pairs)
    if not gone and not new:
        return before if before.pairs is pairs else PairSets(pairs, before.by_side)
    old, now = _boxes(gone), _boxes(new)
    by_side = {key: _pair_set(found, old[key] - now[key], now[key] - old[key]) for key, found in before.by_side.items()}
    return PairSets(pairs, by_side)


def _changes(before: tuple[Pair, ...], after: tuple[Pair, ...]) -> tuple[set[Pair], set[Pair]]:
    """Pairs that are in one only. What both begin and end with is passed over."""
    start = _alike(before, after)
    old, new = before[start:], after[start:]
    end = _alike(old[::-1], new[::-1])
    gone, come = set(old[: len(old) - end]), set(new[: len(new) - end])
    return gone - come, come - gone


def _alike(one: tuple[Pair, ...], other: tuple[Pair, ...]) -> int:
    """How many both begin with."""
    shorter = min(len(one), len(other))
    whole = 0
    while whole < shorter and one[whole : whole + TOGETHER] == other[whole : whole + TOGETHER]:
        whole += TOGETHER
    return next((i for i in range(whole, shorter) if one[i] != other[i]), shorter)


def _pair_set(before: PairSet, gone: set[Box], new: set[Box]) -> PairSet:
    if not gone and not new:
        return before
    flows = _advanced(before.flows, gone, new, element)
    # Of addresses only those matter at which there was no box before, or is none now.
    old, now = before.flows.at, flows.at
    touched = {(box.source, box.destination): box.version for box in gone | new}
    lost = {_flat(version, nets) for nets, version in touched.items() if nets in old and nets not in now}
    come = {_flat(version, nets) for nets, version in touched.items() if nets in now and nets not in old}
    return PairSet(flows, _advanced(before.nets, lost, come, address_pair))


def _flat(version: int, nets: Nets) -> Box:
    return Box(version, *nets, (0, 0), (0, 0))


def _boxes(pairs: Iterable[Pair]) -> dict[tuple[str, int], set[Box]]:
    """Boxes of flows that each side may start: from its subnet to the other's, on the responder's ports."""
    found: dict[tuple[str, int], set[Box]] = {key: set() for key in _nothing()}
    for pair in pairs:
        version, here = network_range(pair.local)
        _, there = network_range(pair.remote)
        number = None if pair.protocol is None else protocol_number("protocol", pair.protocol)
        protocol = (0, 255) if number is None else (number, number)
        for ports in [port_range("ports", text) for text in pair.ports] or [(0, 65535)]:
            if pair.initiator != "remote":
                found["local", version].add(Box(version, here, there, protocol, ports, pair.id))
            if pair.initiator != "local":
                found["remote", version].add(Box(version, there, here, protocol, ports, pair.id))
    return found


def _advanced(before: Cut, gone: set[Box], new: set[Box], text: Callable[[Box], str]) -> Cut:
    at = _placed(before.at, gone, new)
    if len(gone) + len(new) > ONE_BY_ONE:
        return _anew(at, text)
    affected = set(new)
    for changed in gone | new:
        own = width(changed)
        affected |= {box for box in _touching(at, changed) if width(box) < own}
    if len(affected) > ONE_BY_ONE:
        return _anew(at, text)
    pieces, tags = dict(before.pieces), dict(before.tags)
    for box in gone | affected:
        for piece in pieces.pop(box, ()):
            del tags[text(piece)]
    for box in affected:
        own = width(box)
        wider = sorted((w for other in _touching(at, box) if (w := width(other)) > own), reverse=True)
        pieces[box] = remains(box, [other for _, other in wider])
        tags |= {text(piece): piece.tag for piece in pieces[box]}
    return Cut(at, pieces, tags)


def _anew(at: Mapping[Nets, tuple[Box, ...]], text: Callable[[Box], str]) -> Cut:
    pieces = cut(box for boxes in at.values() for box in boxes)
    return Cut(at, pieces, {text(piece): piece.tag for rest in pieces.values() for piece in rest})


def _placed(before: Mapping[Nets, tuple[Box, ...]], gone: set[Box], new: set[Box]) -> dict[Nets, tuple[Box, ...]]:
    at = dict(before)
    for box in gone:
        nets = (box.source, box.destination)
        left = tuple(other for other in at.pop(nets) if other != box)
        if left:
            at[nets] = left
    come: dict[Nets, list[Box]] = {}
    for box in new:
        come.setdefault((box.source, box.destination), []).append(box)
    return at | {nets: (*at.get(nets, ()), *boxes) for nets, boxes in come.items()}


def _touching(at: Mapping[Nets, tuple[Box, ...]], box: Box) -> list[Box]:
    (first, last), (low, high) = box.source, box.destination
    # Written out: this looks at every subnet that a hub knows, for every box that changed.
    nets = [n for n in at if n[0][0] <= last and first <= n[0][1] and n[1][0] <= high and low <= n[1][1]]
    return [other for n in nets for other in at[n] if touch(box, other)]
