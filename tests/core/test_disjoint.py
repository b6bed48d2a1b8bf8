"""Are disjoint boxes disjoint, the same in sum, and written as nft writes them?"""

from __future__ import annotations

import ipaddress
import itertools
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpe_agent.core.disjoint import Box, Range, address_pair, disjoint, element, network_range, subtract

Point = tuple[int, int, int, int, int]
NET_4, NET_6 = network_range("10.1.0.0/24")[1], network_range("fd00::/64")[1]
TOP = {4: 2**32 - 1, 6: 2**128 - 1}


def ranges(low: int, high: int) -> st.SearchStrategy[Range]:
    return st.tuples(st.integers(low, high), st.integers(low, high)).map(lambda r: (min(r), max(r)))


# Small numbers, so that boxes meet in all ways.
boxes = st.builds(
    Box,
    st.sampled_from([4, 6]),
    ranges(0, 9),
    ranges(0, 9),
    ranges(0, 4),
    ranges(0, 6),
    st.sampled_from(["a", "b"]),
)
points = st.tuples(st.sampled_from([4, 6]), st.integers(0, 9), st.integers(0, 9), st.integers(0, 4), st.integers(0, 6))


def holds(box: Box, point: Point) -> bool:
    return box.version == point[0] and all(r[0] <= x <= r[1] for r, x in zip(box.ranges, point[1:], strict=True))


@settings(max_examples=120, deadline=None)
@given(st.lists(boxes, max_size=9), st.lists(points, min_size=20, max_size=60))
def test_every_point_is_in_exactly_one_box_or_none(given_boxes: list[Box], some: list[Point]) -> None:
    found = disjoint(given_boxes)
    for point in some:
        covering = [box for box in found if holds(box, point)]
        assert len(covering) == any(holds(box, point) for box in given_boxes)
        for box in covering:
            assert any(holds(source, point) and source.tag == box.tag for source in given_boxes)


@settings(max_examples=100, deadline=None)
@given(st.lists(boxes, max_size=8))
def test_corners_are_exact(given_boxes: list[Box]) -> None:
    found = disjoint(given_boxes)
    for box in given_boxes:
        for corner in itertools.product(*box.ranges):
            point = (box.version, *corner)
            assert sum(holds(f, point) for f in found) == 1
    for box in found:
        for corner in itertools.product(*box.ranges):
            assert any(holds(source, (box.version, *corner)) for source in given_boxes)


@settings(deadline=None)
@given(st.lists(boxes, max_size=8), st.randoms(use_true_random=False))
def test_order_does_not_matter_and_disjoint_stays_as_it_is(given_boxes: list[Box], random: object) -> None:
    found = disjoint(given_boxes)
    shuffled = list(given_boxes)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert disjoint(shuffled) == found
    assert disjoint(found) == found


def test_the_wider_box_stays_whole() -> None:
    wide = Box(4, (0, 255), (0, 255), (0, 255), (0, 65535), "wide")
    narrow = Box(4, (0, 7), (0, 511), (6, 6), (443, 443), "narrow")
    assert set(disjoint([narrow, wide])) == {wide, Box(4, (0, 7), (256, 511), (6, 6), (443, 443), "narrow")}


@given(boxes, boxes)
def test_subtract(box: Box, hole: Box) -> None:
    rest = subtract(box, hole)
    for a, b, c, d in itertools.product(*(range(r[0], r[1] + 1) for r in box.ranges)):
        point = (box.version, a, b, c, d)
        assert sum(holds(piece, point) for piece in rest) == (not holds(hole, point))


@pytest.mark.parametrize(
    ("box", "text"),
    [
        (Box(4, NET_4, NET_4, (6, 6), (443, 443)), "10.1.0.0/24 . 10.1.0.0/24 . 6 . 443"),
        (Box(4, (1, 1), (0, TOP[4]), (0, 255), (0, 65535)), "0.0.0.1 . 0.0.0.0/0 . 0-255 . 0-65535"),
        (Box(4, (1, 2), (0, 1), (17, 17), (1, 2)), "0.0.0.1-0.0.0.2 . 0.0.0.0/31 . 17 . 1-2"),
        (Box(6, NET_6, NET_6, (58, 58), (0, 65535)), "fd00::/64 . fd00::/64 . 58 . 0-65535"),
        (Box(6, (1, 1), (0, 2), (6, 6), (1, 1)), "::1 . ::-::2 . 6 . 1"),
    ],
)
def test_element(box: Box, text: str) -> None:
    assert element(box) == text
    assert address_pair(box) == " . ".join(text.split(" . ")[:2])


@given(
    version=st.sampled_from([4, 6]),
    data=st.data(),
    protocol=ranges(0, 255),
    port=ranges(0, 65535),
)
def test_element_is_canonical(version: int, data: st.DataObject, protocol: Range, port: Range) -> None:
    source, destination = (data.draw(ranges(0, TOP[version])) for _ in range(2))
    box = Box(version, source, destination, protocol, port)
    parts = element(box).split(" . ")
    for text, bounds in zip(parts[:2], (source, destination), strict=True):
        first, dash, last = text.partition("-")
        if dash:
            # A range that is a prefix is written as one.
            read = (int(ipaddress.ip_address(first)), int(ipaddress.ip_address(last)))
            summary = ipaddress.summarize_address_range(ipaddress.ip_address(first), ipaddress.ip_address(last))
            assert len(list(summary)) > 1
        else:
            read = network_range(text)[1]
            assert not text.endswith(("/32", "/128"))
            assert text in (str(ipaddress.ip_network(text)), str(ipaddress.ip_network(text).network_address))
        assert read == bounds
    for text, bounds in zip(parts[2:], (protocol, port), strict=True):
        assert re.fullmatch(r"\d+(-\d+)?", text)
        assert text == (str(bounds[0]) if bounds[0] == bounds[1] else f"{bounds[0]}-{bounds[1]}")


def _many(kind: str) -> list[Box]:
    hub = network_range("10.10.0.0/24")[1]
    lans = [(10 << 24) + (1 << 23) + (i << 8) for i in range(10_000)]
    found = [
        Box(4, (lan, lan + 255), hub, (6, 6), (443, 443), f"{i}")
        for i, lan in enumerate(lans[: 5000 if kind == "two each" else None])
    ]
    if kind == "two each":
        found += [Box(4, box.source, hub, (17, 17), (53, 53), box.tag) for box in found]
    if kind == "under a wide one":
        # Ping between all, and a wide pair that overlaps each of the others a little.
        found.append(Box(4, network_range("10.0.0.0/8")[1], hub, (1, 1), (0, 65535), "ping"))
        found += [Box(4, box.source, box.destination, (1, 1), (0, 65535), box.tag) for box in found[:-1]]
        found.append(Box(4, network_range("10.0.0.0/8")[1], network_range("10.10.0.0/25")[1], (6, 6), (1, 65535), "w"))
    return found


@pytest.mark.parametrize("kind", ["one each", "two each", "under a wide one"])
def test_ten_thousand_pairs_take_less_than_a_second(kind: str) -> None:
    many = _many(kind)
    began = time.process_time()
    found = disjoint(many)
    took = time.process_time() - began
    assert len(found) >= 10_000
    # "under a wide one" has twice as many.
    assert took < (1 if len(many) <= 10_000 else 2), took
