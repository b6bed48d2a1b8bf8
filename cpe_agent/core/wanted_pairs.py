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

Places = Mapping[Range, Mapping[Range, tuple[Box, ...]]]


class Cut(msgspec.Struct, frozen=True):
    """Boxes of one IP version, and what is left of each once wider ones are cut out of it.

    `at`: boxes by their source, then by their destination. `tags`: element as nft writes it -> tag of its box.
    """

    at: Places = {}
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
    touched = {Box(box.version, box.source, box.destination, (0, 0), (0, 0)) for box in gone | new}
    lost = {box for box in touched if _has_any(old, box) and not _has_any(now, box)}
    come = {box for box in touched if _has_any(now, box) and not _has_any(old, box)}
    return PairSet(flows, _advanced(before.nets, lost, come, address_pair))


def _has_any(at: Places, box: Box) -> bool:
    """Is there a box of these addresses?"""
    return box.destination in at.get(box.source, ())


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
    if not gone and not new:
        return before
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


def _anew(at: Places, text: Callable[[Box], str]) -> Cut:
    pieces = cut(box for row in at.values() for boxes in row.values() for box in boxes)
    return Cut(at, pieces, {text(piece): piece.tag for rest in pieces.values() for piece in rest})


def _placed(before: Places, gone: set[Box], new: set[Box]) -> Places:
    """Boxes of other sources stay where they are, the same objects."""
    changed = {box.source for box in gone | new}
    rows = {source: {to: list(boxes) for to, boxes in before.get(source, {}).items()} for source in changed}
    for box in gone:
        rows[box.source][box.destination].remove(box)
    for box in new:
        rows[box.source].setdefault(box.destination, []).append(box)
    left = {source: {to: tuple(boxes) for to, boxes in row.items() if boxes} for source, row in rows.items()}
    kept = {source: row for source, row in before.items() if source not in changed}
    return kept | {source: row for source, row in left.items() if row}


def _touching(at: Places, box: Box) -> list[Box]:
    (first, last), (low, high) = box.source, box.destination
    # Written out: this looks at every subnet that a hub knows, for every box that changed.
    rows = [row for near, row in at.items() if near[0] <= last and first <= near[1]]
    found = [boxes for row in rows for far, boxes in row.items() if far[0] <= high and low <= far[1]]
    return [other for boxes in found for other in boxes if touch(box, other)]
