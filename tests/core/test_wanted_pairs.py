"""Do pairs that are compiled from the document before come to the same as compiled from nothing?"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpe_agent.core import wanted_pairs
from cpe_agent.core.disjoint import Box, Range
from cpe_agent.core.wanted_pairs import PairSets, pair_sets
from cpe_agent.model.document import Pair
from tests.core.documents import pair

# Few and nested, so that pairs meet in all ways.
HERE = ["10.1.0.0/16", "10.1.0.0/24", "10.1.0.128/25", "10.1.0.7/32"]
THERE = ["10.2.0.0/24", "10.2.0.0/25", "10.0.0.0/8", "10.3.0.5/32"]
initiators: st.SearchStrategy[Literal["local", "remote", "either"]] = st.sampled_from(["local", "remote", "either"])
ports = st.lists(st.sampled_from(["80", "443", "80-500", "1-65535", "400-600"]), max_size=2).map(tuple)


@st.composite
def edits(draw: st.DrawFn) -> list[tuple[Pair, ...]]:
    """Documents' pairs, one after the other; each keeps most of the one before."""
    documents: list[tuple[Pair, ...]] = []
    listed: list[Pair] = []
    for number in range(draw(st.integers(1, 8))):
        for index in range(draw(st.integers(0, 3))):
            protocol = draw(st.sampled_from([None, "tcp", "udp", "icmp"]))
            one = pair(
                f"p{number}-{index}",
                draw(st.sampled_from([*THERE, "fd00:2::/64"])),
                "centre",
                local=draw(st.sampled_from(HERE)),
                initiator=draw(initiators),
                protocol=protocol,
                ports=draw(ports) if protocol in ("tcp", "udp") else (),
            )
            if one.remote.startswith("fd"):
                one = pair(one.id, one.remote, "centre", local="fd00:1::/64", initiator=one.initiator)
            listed.insert(draw(st.integers(0, len(listed))), one)
        for _ in range(draw(st.integers(0, min(2, len(listed))))):
            listed.pop(draw(st.integers(0, len(listed) - 1)))
        if draw(st.booleans()) and listed:
            # The same pair, otherwise.
            index = draw(st.integers(0, len(listed) - 1))
            old = listed[index]
            listed[index] = pair(old.id, old.remote, "centre", local=old.local, initiator=draw(initiators))
        documents.append(tuple(listed))
    return documents


def plain(found: PairSets) -> dict[tuple[str, int], object]:
    """Elements with whose they are; and how the boxes lie, for the next step."""
    return {
        key: [(c.tags, c.pieces, {near: _sets(row) for near, row in c.at.items()}) for c in (one.flows, one.nets)]
        for key, one in found.by_side.items()
    }


def _sets(row: Mapping[Range, tuple[Box, ...]]) -> dict[Range, set[Box]]:
    return {far: set(boxes) for far, boxes in row.items()}


@pytest.mark.parametrize("one_by_one", [2, 1000])
def test_step_by_step_is_as_from_nothing(one_by_one: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wanted_pairs, "ONE_BY_ONE", one_by_one)

    @settings(max_examples=200, deadline=None)
    @given(edits())
    def check(documents: list[tuple[Pair, ...]]) -> None:
        found = None
        for pairs in documents:
            found = pair_sets(pairs, found)
            assert found.pairs == pairs
            # Down to which box covers what: by cutting them all.
            monkeypatch.setattr(wanted_pairs, "ONE_BY_ONE", -1)
            anew = pair_sets(pairs)
            monkeypatch.setattr(wanted_pairs, "ONE_BY_ONE", one_by_one)
            assert plain(found) == plain(anew)

    check()


def many() -> tuple[Pair, ...]:
    return tuple(
        pair(
            f"p{i}",
            f"10.{128 + i // 10240}.{i // 40 % 256}.0/24",
            "centre",
            protocol="tcp",
            ports=(f"{1000 + i % 40}",),
        )
        for i in range(10_000)
    )


def test_an_edit_among_ten_thousand_costs_the_edit() -> None:
    pairs = many()
    before = pair_sets(pairs)
    assert len(before.by_side["local", 4].flows.tags) == 10_000
    one = pair("new", "10.128.7.0/24", "centre", protocol="tcp", ports=("900-1100",))
    began = time.process_time()
    found = pair_sets((*pairs, one), before)
    took = time.process_time() - began
    # It covers forty of them.
    assert len(found.by_side["local", 4].flows.tags) == 9_961
    assert took < 0.1, took
    assert plain(pair_sets(pairs, found)) == plain(before)


def test_nothing_changed_is_nothing_done() -> None:
    pairs = many()[:100]
    before = pair_sets(pairs)
    assert pair_sets(pairs, before) is before
    assert pair_sets(pairs[::-1], before).by_side is before.by_side
