"""Is an outage of a bundle as long as its traffic was away, and is a planned move none?"""

from __future__ import annotations

import pytest

from cpe_agent.core import outages
from cpe_agent.core.health import State, Track
from cpe_agent.core.outages import Watch
from cpe_agent.model.condition import OUTAGE_BOUNDS_S, Outages
from cpe_agent.model.dataplane import Path

HERE, THERE = Path("wired", "centre", "a"), Path("lte", "centre", "a")
UP = Track(3, State.UP, ike=1, ready=True, window=((9.7, 0.02), (9.8, 0.02), (9.9, None)))
DOWN = Track(3, State.DOWN, since=10.2, reason="probes", window=((9.7, 0.02), (9.8, 0.02), (9.9, None), (10.0, None)))
Look = tuple[float, Path | None, dict[Path, Track]]


def looks(*seen: Look, bundles: tuple[str, ...] = ("web",)) -> Watch:
    watch = Watch()
    for now, carrier, tracks in seen:
        watch = outages.step(watch, bundles, {} if carrier is None else {"web": carrier}, tracks, now)
    return watch


def count(watch: Watch) -> int:
    return sum(watch.seen.counts)


def test_a_failover_lasts_from_the_last_answer_until_the_other_path_carries() -> None:
    found = looks(
        (9.9, HERE, {HERE: UP, THERE: UP}),
        (10.2, HERE, {HERE: DOWN, THERE: UP}),
        (10.25, None, {HERE: DOWN, THERE: UP}),
        (10.3, THERE, {HERE: DOWN, THERE: UP}),
    )
    assert found.seen.sum_s == pytest.approx(10.3 - 9.82)
    assert dict(zip((*OUTAGE_BOUNDS_S, "more"), found.seen.counts, strict=True))[0.5] == 1 and count(found) == 1


def test_a_path_that_comes_back_ends_it_too() -> None:
    found = looks(
        (9.9, HERE, {HERE: UP}), (10.2, HERE, {HERE: DOWN}), (90.0, HERE, {HERE: UP}), (91.0, HERE, {HERE: UP})
    )
    assert found.seen.sum_s == pytest.approx(90.0 - 9.82) and count(found) == 1


def test_a_planned_move_is_none() -> None:
    both = {HERE: UP, THERE: UP}
    assert count(looks((1.0, HERE, both), (2.0, THERE, both), (3.0, HERE, both))) == 0


def test_the_start_is_none_and_one_that_goes_on_is_not_counted_yet() -> None:
    assert count(looks((1.0, None, {}), (5.0, HERE, {HERE: UP}))) == 0
    assert count(looks((9.9, HERE, {HERE: UP}), (10.2, HERE, {HERE: DOWN}), (500.0, None, {}))) == 0


def test_a_path_that_is_no_longer_listed_counts_from_when_it_was_missed() -> None:
    found = looks((5.0, HERE, {HERE: UP}), (6.0, None, {}), (7.5, THERE, {THERE: UP}))
    assert found.seen.sum_s == pytest.approx(1.5)


def test_a_bundle_that_goes_takes_its_outage_with_it() -> None:
    watch = looks((9.9, HERE, {HERE: UP}), (10.2, HERE, {HERE: DOWN}))
    watch = outages.step(watch, (), {}, {}, 11.0)
    watch = outages.step(watch, ("web",), {"web": HERE}, {HERE: UP}, 12.0)
    assert watch.seen == Outages()


@pytest.mark.parametrize(("length_s", "place"), [(0.05, 0), (0.1, 0), (0.11, 1), (1800.0, 10), (1801.0, 11)])
def test_each_has_one_place(length_s: float, place: int) -> None:
    down = Track(3, State.DOWN, since=100.0)
    found = looks((99.0, HERE, {HERE: UP}), (100.0, HERE, {HERE: down}), (100.0 + length_s, THERE, {THERE: UP}))
    # The last answer of UP's window is older than this test's outage: a path without a window began when it fell.
    assert found.seen.counts[place] == 1
