"""Do bad links do to packets what they were told to? Needs a kernel with netem."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.container import wait_until
from tests.lab.faults import Direction, Impairment, RunningUplink, has_netem
from tests.lab.flow import Direction as Felt
from tests.lab.lab import Lab

OUTSIDE = "203.0.113.202"


@pytest.fixture
def uplink(bare_lab: Lab) -> Iterator[RunningUplink]:
    if not has_netem(bare_lab.container):
        pytest.skip("this kernel has no netem")
    uplink = bare_lab.site("hospital-1").uplink("wired")
    yield uplink
    uplink.heal()
    assert _rtt_ms(bare_lab) < 20


def _rtt_ms(lab: Lab) -> float:
    """The median of some round trips from the site to the internet."""
    ping = ["ping", "-n", "-q", "-c", "11", "-i", "0.05", "-I", "203.0.113.18", OUTSIDE]
    told = lab.run("hospital-1", *ping).stdout
    return float(told.rpartition("=")[2].split("/")[1])


def _felt(lab: Lab) -> tuple[Felt, Felt]:
    """Up and down, of a flow between the site itself and the internet."""
    with lab.flow("hospital-1", "outside", rate=100, seconds=60, linger_ms=1500) as flow:
        flow.wait_flowing(10)
        wait_until("enough was sent", lambda: sum(flow.received()) >= 500, 30)
    return flow.result.up, flow.result.down


def test_delay(bare_lab: Lab, uplink: RunningUplink) -> None:
    uplink.impair(Impairment(delay_ms=40))
    assert 80 <= _rtt_ms(bare_lab) < 120


def test_loss_in_one_direction(bare_lab: Lab, uplink: RunningUplink) -> None:
    uplink.impair(Impairment(loss_percent=20), "up")
    up, down = _felt(bare_lab)
    assert 0.08 < up.lost / up.sent < 0.35
    assert down.lost == 0


@pytest.mark.parametrize(
    ("impairment", "direction"),
    [
        (Impairment(delay_ms=30, jitter_ms=25), "down"),
        (Impairment(delay_ms=50, reorder_percent=30), "down"),
    ],
    ids=["jitter", "reordering"],
)
def test_reordering(bare_lab: Lab, uplink: RunningUplink, impairment: Impairment, direction: Direction) -> None:
    uplink.impair(impairment, direction)
    up, down = _felt(bare_lab)
    assert up.reordered == 0 and down.reordered > 10
    assert down.lost == 0


def test_duplication(bare_lab: Lab, uplink: RunningUplink) -> None:
    uplink.impair(Impairment(duplicate_percent=20), "up")
    up, down = _felt(bare_lab)
    assert up.duplicates > 0.05 * up.sent and down.duplicates == 0
    assert up.lost == 0


def test_rate(bare_lab: Lab, uplink: RunningUplink) -> None:
    """64 bytes of payload are 92 on the wire with their headers: 100/s are 74 kbit/s, more than passes."""
    uplink.impair(Impairment(rate_kbit=37), "up")
    up, down = _felt(bare_lab)
    assert up.longest_delay_ms > 500
    assert down.longest_delay_ms < up.longest_delay_ms


def test_that_nothing_overtakes_what_does_not_wait() -> None:
    with pytest.raises(ValueError, match="reorder_percent needs delay_ms"):
        Impairment(reorder_percent=5).netem()
