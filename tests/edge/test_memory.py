"""Does glibc do as the daemon tells it?"""

from __future__ import annotations

from tests.edge.malloc_seen import seen


def test_threads_share_the_heap_and_large_blocks_stay_out_of_it() -> None:
    assert seen(frugal=True) == ["heap", "elsewhere"]


def test_that_needs_to_be_told() -> None:
    assert seen(frugal=False) == ["elsewhere", "heap"]
