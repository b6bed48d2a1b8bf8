"""Are losses and gaps counted rightly from what two ends noted?"""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.lab.container import Process
from tests.lab.flow import TWIN_FIRST, all_heard, all_sent, join
from tests.lab.lab import Lab

MS = 1_000_000


def _sender(count: int, start_ms: int = 1000) -> dict[str, Any]:
    last = (start_ms + 10 * (count - 1)) * MS
    return {"sent": count, "first_sent_ns": start_ms * MS, "last_sent_ns": last}


def _receiver(sequences: list[int], start_ms: int = 1000) -> dict[str, Any]:
    times = {sequence: (start_ms + 10 * sequence) * MS for sequence in sequences}
    return {"arrivals": [[sequence, times[sequence] + MS, times[sequence]] for sequence in sequences]}


def test_nothing_lost() -> None:
    seen = join(_sender(10), _receiver(list(range(10))))
    assert (seen.lost, seen.lost_ranges, seen.longest_gap_ms, seen.longest_delay_ms) == (0, (), 10.0, 1.0)


def test_a_hole_in_the_middle() -> None:
    seen = join(_sender(10), _receiver([0, 1, 2, 6, 7, 9]))
    assert (seen.sent, seen.received, seen.lost) == (10, 6, 4)
    assert seen.lost_ranges == ((3, 5), (8, 8))
    assert seen.longest_gap_ms == 40.0
    assert seen.longest_gap_at_s == 1.021


def test_a_direction_that_dies_shows_a_gap_until_the_end() -> None:
    seen = join(_sender(100), _receiver([0, 1]))
    assert (seen.longest_gap_ms, seen.longest_gap_at_s) == (979.0, 1.011)


def test_a_direction_that_never_lived_shows_nothing_but_gap() -> None:
    seen = join(_sender(100), {"arrivals": []})
    assert (seen.received, seen.lost_ranges, seen.longest_gap_ms) == (0, ((0, 99),), 990.0)


def test_gaps_that_were_over_before_do_not_count() -> None:
    seen = join(_sender(100), _receiver([0, *range(20, 50), *range(55, 90)]))
    assert seen.longest_gap_ms == 200.0
    assert seen.longest_gap_since_ms(1.1) == pytest.approx(200)  # it was not over
    assert seen.longest_gap_since_ms(1.202) == pytest.approx(99)  # until the last packet sent
    assert seen.longest_gap_since_ms(1.98) == pytest.approx(99)
    assert join(_sender(60), _receiver([*range(10), *range(20, 60)])).longest_gap_since_ms(1.3) == pytest.approx(10)


def test_a_server_that_was_never_spoken_to() -> None:
    seen = join({"sent": 0, "first_sent_ns": 0, "last_sent_ns": 0}, {"arrivals": []})
    assert (seen.lost, seen.longest_gap_ms) == (0, 0.0)


def test_duplicates_and_disorder_are_told_apart() -> None:
    seen = join(_sender(5), _receiver([0, 2, 1, 2, 3, 4]))
    assert (seen.received, seen.duplicates, seen.reordered) == (5, 1, 1)


def test_a_twin_takes_over() -> None:
    """What arrives at either counts, and the twin's packets are told from the other's."""
    client = _sender(10)
    first, second = _receiver([0, 1, 2]), _receiver([6, 7, 8, 9])
    assert join(client, all_heard([second, first])).lost_ranges == ((3, 5),)
    servers = [_sender(5), _sender(4, start_ms=1060)]
    heard = _receiver([0, 1, 2])
    heard["arrivals"] += [[TWIN_FIRST + n, (1061 + 10 * n) * MS, 0] for n in range(4)]
    down = join(all_sent(servers), heard)
    assert (down.sent, down.received, down.duplicates, down.lost_ranges) == (9, 7, 0, ((3, 4),))
    assert (down.longest_gap_ms, down.longest_gap_at_s) == (40.0, 1.021)


def test_a_twin_that_never_spoke_counts_for_nothing() -> None:
    silent = {"sent": 0, "first_sent_ns": 0, "last_sent_ns": 0}
    assert join(all_sent([_sender(3), silent]), _receiver([0, 1, 2])).longest_gap_ms == 10.0
    late = {"arrivals": [[TWIN_FIRST, 1001 * MS, 0], [TWIN_FIRST + 1, 1011 * MS, 0]]}
    assert join(all_sent([silent, _sender(3)]), late).lost_ranges == ((2, 2),)


def test_that_ends_which_are_told_late_to_stop_lose_nothing(bare_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that stands still between one and the other, for longer than an end listens."""
    tell = Process.signal

    def tell_late(process: Process, *arguments: Any, **more: Any) -> None:
        tell(process, *arguments, **more)
        time.sleep(0.3)

    with bare_lab.flow("hospital-1", "controller", linger_ms=200) as flow:
        flow.wait_flowing(5)
        monkeypatch.setattr(Process, "signal", tell_late)
        result = flow.stop()
    assert (result.lost, result.down.sent > result.up.sent) == (0, True)
