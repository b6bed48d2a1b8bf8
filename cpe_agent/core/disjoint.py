"""How do overlapping pairs become elements that do not overlap?

nftables refuses, or worse resolves by order, overlapping elements of a concatenated interval set, and deleting one may
delete what covers it. So pairs are boxes in (source, destination, protocol, port), and what an earlier, wider box
covers already is cut out of the later ones. In: boxes. Out: disjoint boxes with the same union, each with the tag
of the box it comes from (the widest one that covers it).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache
from operator import attrgetter

import msgspec

Range = tuple[int, int]

_AXES = ("source", "destination", "protocol", "port")
# Texts of addresses that are kept: all subnets of a large hub, in both directions of the translation.
_KEPT = 1 << 15


class Box(msgspec.Struct, frozen=True, order=True, gc=False):
    """Closed integer ranges: source and destination addresses of `version`, protocol, port; `tag` says whose it is."""

    version: int
    source: Range
    destination: Range
    protocol: Range
    port: Range
    tag: str = ""

    @property
    def ranges(self) -> tuple[Range, Range, Range, Range]:
        return (self.source, self.destination, self.protocol, self.port)


@lru_cache(_KEPT)
def network_range(text: str) -> tuple[int, Range]:
    """ "10.1.0.0/24" -> (4, (first, last))."""
    network = ipaddress.ip_network(text)
    return network.version, (int(network.network_address), int(network.broadcast_address))


def disjoint(boxes: Iterable[Box]) -> tuple[Box, ...]:
    """Boxes without overlap that admit exactly what `boxes` admit. Wider boxes are kept whole, so edits stay small."""
    return tuple(sorted(piece for pieces in cut(boxes).values() for piece in pieces))


def cut(boxes: Iterable[Box]) -> dict[Box, tuple[Box, ...]]:
    """What is left of each box once all wider ones that touch it are cut out (`remains`); nothing, for many."""
    found: dict[Box, tuple[Box, ...]] = dict.fromkeys(boxes, ())
    work: list[tuple[list[Box], list[Box]]] = [(sorted(found), [])]
    while work:
        # Only boxes that touch in every axis are compared: among thousands of pairs few do, once the widest is out.
        group, wider = work.pop()
        parts = _parts(group) if len(group) > 1 else [group]
        if len(parts) > 1:
            for part in parts:
                work.append((part, [hole for hole in wider if any(touch(box, hole) for box in part)]))
            continue
        if not group:
            continue
        widest = max(group, key=width) if len(group) > 1 else group[0]
        found[widest] = remains(widest, wider)
        if len(group) > 1:
            work.append(([box for box in group if not _within(box, widest)], [*wider, widest]))
    return found


def remains(box: Box, wider: Iterable[Box]) -> tuple[Box, ...]:
    """`box` without `wider` (the widest first): disjoint, and none if they cover it. Boxes that touch it not change
    nothing, nor do those that lie within another one of `wider`."""
    pieces = [box]
    for hole in wider:
        pieces = [rest for piece in pieces for rest in subtract(piece, hole)]
    return tuple(pieces)


def width(box: Box) -> tuple[int, Box]:
    """Orders boxes by what they admit; of two equals one comes first all the same."""
    size = 1
    for first, last in box.ranges:
        size *= last - first + 1
    return size, box


def _parts(boxes: list[Box]) -> list[list[Box]]:
    """Groups such that boxes of different groups do not overlap."""
    groups = [boxes]
    single: list[list[Box]] = []
    before = 0
    # Parted in one axis, a group may fall apart in another where it held together before.
    while len(groups) + len(single) != before:
        before = len(groups) + len(single)
        for axis in _AXES:
            groups = [part for group in groups for part in _split(group, axis)]
            single += [group for group in groups if len(group) == 1]
            groups = [group for group in groups if len(group) > 1]
    return single + groups


def _split(boxes: list[Box], axis: str) -> list[list[Box]]:
    """Groups such that boxes of different groups do not overlap in `axis`."""
    groups: list[list[Box]] = []
    reach = (-1, -1)
    place = attrgetter("version", axis)
    for box in sorted(boxes, key=place):
        version, (first, last) = place(box)
        if (version, first) > reach:
            groups.append([])
            reach = (version, last)
        groups[-1].append(box)
        reach = max(reach, (version, last))
    return groups


def _overlap(one: Range, other: Range) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def touch(box: Box, other: Box) -> bool:
    return box.version == other.version and all(
        _overlap(mine, theirs) for mine, theirs in zip(box.ranges, other.ranges, strict=True)
    )


def _within(box: Box, wide: Box) -> bool:
    return box.version == wide.version and all(
        outer[0] <= inner[0] and inner[1] <= outer[1] for inner, outer in zip(box.ranges, wide.ranges, strict=True)
    )


def subtract(box: Box, hole: Box) -> list[Box]:
    """`box` without `hole`: at most eight boxes, disjoint."""
    if not touch(box, hole):
        return [box]
    rest: list[Box] = []
    ranges = list(box.ranges)
    for axis, (first, last) in enumerate(hole.ranges):
        low, high = ranges[axis]
        for side in ((low, first - 1), (last + 1, high)):
            if max(side[0], low) <= min(side[1], high):
                piece = list(ranges)
                piece[axis] = side
                rest.append(Box(box.version, piece[0], piece[1], piece[2], piece[3], box.tag))
        ranges[axis] = (max(low, first), min(high, last))
    return rest


def element(box: Box) -> str:
    """The box as nft writes it: "10.1.0.0/24 . 10.2.0.0/24 . 6 . 443"."""
    parts = [_addresses(box.version, box.source), _addresses(box.version, box.destination)]
    return " . ".join([*parts, _numbers(box.protocol), _numbers(box.port)])


def address_pair(box: Box) -> str:
    """The box's addresses alone: "10.1.0.0/24 . 10.2.0.0/24"."""
    return f"{_addresses(box.version, box.source)} . {_addresses(box.version, box.destination)}"


@lru_cache(_KEPT)
def _addresses(version: int, bounds: Range) -> str:
    kind = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
    first, last = kind(bounds[0]), kind(bounds[1])
    if first == last:
        return str(first)
    networks = list(ipaddress.summarize_address_range(first, last))
    return str(networks[0]) if len(networks) == 1 else f"{first}-{last}"


def _numbers(bounds: Range) -> str:
    return str(bounds[0]) if bounds[0] == bounds[1] else f"{bounds[0]}-{bounds[1]}"
