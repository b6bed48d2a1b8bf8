"""How long does a nurse hear nothing when what carries her traffic dies?

A flow of 100 packets/s each way, and a fault at a random phase of the probes. A sample is the longest gap at either
receiver since the fault, in ms. Every run begins with all paths up and the traffic on the best one, and ends when the
fault has been undone. Nobody asks the agent anything while it is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.bench.bench import Bench, Measure, Setting, probed
from tests.lab import watch
from tests.lab.faults import Direction
from tests.lab.lab import Lab

SITE, UPLINK, OTHER_UPLINK = "hospital-1", "wired", "lte"
HUB, OTHER_HUB = "centre", "cloud"
CLIENT = "hospital-1-host"
RATE = 100  # packets per second, each way

_FLOWING_S = 10.0
_MEASURED_S = 2.0  # far beyond every limit: what takes longer is measured as that or more
_MOVE_S = 15.0  # a dead figure rather than a dead bench
_BACK_S = 60.0
_STEADY_S = 0.5  # of undisturbed traffic before the fault


@dataclass(frozen=True)
class Fault:
    """`moved`: where the bundle is carried after it; `home`: before it, and once it is undone."""

    name: str
    make: Callable[[Lab], None]
    undo: Callable[[Lab], None]
    server: str
    twin: str | None
    home: watch.Predicate
    moved: watch.Predicate


def _uplink_fault(name: str, make: Callable[[Lab], None], undo: Callable[[Lab], None]) -> Fault:
    return Fault(
        name,
        make,
        undo,
        server="centre-server",
        twin=None,
        home=watch.carried("centre", uplink=UPLINK),
        moved=watch.carried("centre", uplink=OTHER_UPLINK),
    )


def _blackhole(direction: Direction) -> Callable[[Lab], None]:
    return lambda lab: lab.site(SITE).uplink(UPLINK).blackhole(direction)


def _heal(lab: Lab) -> None:
    lab.site(SITE).uplink(UPLINK).heal()


LINK_DOWN = _uplink_fault(
    "cable pulled", lambda lab: lab.site(SITE).uplink(UPLINK).cut(), lambda lab: lab.site(SITE).uplink(UPLINK).restore()
)
BLACKHOLE = _uplink_fault("blackhole", _blackhole("both"), _heal)
ONE_WAY = tuple(_uplink_fault(f"blackhole {way}", _blackhole(way), _heal) for way in ("up", "down"))
HUB_DEATH = Fault(
    "hub dead",
    lambda lab: lab.site(HUB).vanish(),
    lambda lab: lab.site(HUB).reappear(),
    server="centre-shared",
    twin="cloud-shared",
    home=watch.carried("centre+cloud", uplink=UPLINK, peer=HUB),
    moved=watch.carried("centre+cloud", peer=OTHER_HUB),
)


def outage(*faults: Fault) -> Callable[[Bench], list[float]]:
    """A measurement that makes these faults in turn, one each run."""

    def take(bench: Bench) -> list[float]:
        gaps = []
        for run in range(1, bench.runs + 1):
            fault = faults[(run - 1) % len(faults)]
            gap_ms, words = _once(bench, fault)
            gaps.append(gap_ms)
            bench.say(f"run {run} of {bench.runs}: {gap_ms:.0f} ms ({fault.name}: {words})")
        return gaps

    return take


def _once(bench: Bench, fault: Fault) -> tuple[float, str]:
    lab = bench.lab
    watch.wait_all_up(lab, _BACK_S)
    watch.wait_for(lab, SITE, "traffic is at home", fault.home, _BACK_S)
    try:
        with lab.flow(CLIENT, fault.server, rate=RATE, twin=fault.twin) as flow:
            flow.wait_flowing(_FLOWING_S)
            time.sleep(_STEADY_S + bench.chance.uniform(0, bench.setting.interval_s))
            failed_s = time.monotonic()
            fault.make(lab)
            time.sleep(_MEASURED_S)
            result = flow.stop()
        # Not judged by packets: what moves between two of them loses none.
        watch.wait_for(lab, SITE, f"moves ({fault.name})", fault.moved, _MOVE_S)
    finally:
        fault.undo(lab)
    up_ms, down_ms = (way.longest_gap_since_ms(failed_s) for way in (result.up, result.down))
    return max(up_ms, down_ms), f"up {up_ms:.0f}, down {down_ms:.0f}"


def _measure(
    name: str,
    about: str,
    limit: float,
    faults: Sequence[Fault],
    setting: Setting | None = None,
    median_limit: float | None = None,
) -> Measure:
    return Measure(
        name,
        "ms",
        f"longest gap at 100 packets/s {about}",
        limit,
        runs=10,
        take=outage(*faults),
        median_limit=median_limit,
        setting=setting or probed(100, 3),
    )


OUTAGES = (
    _measure("outage_link_down_ms", "when the active uplink's carrier goes", 100, [LINK_DOWN]),
    _measure(
        "outage_blackhole_100x3_ms",
        "when the active uplink is silently blackholed, probes 100 ms x 3",
        500,
        [BLACKHOLE],
        median_limit=420,
    ),
    _measure(
        "outage_blackhole_50x3_ms",
        "when the active uplink is silently blackholed, probes 50 ms x 3",
        300,
        [BLACKHOLE],
        probed(50, 3),
        median_limit=240,
    ),
    _measure(
        "outage_one_way_100x3_ms",
        "when one direction of the active uplink is blackholed, up and down in turn",
        500,
        ONE_WAY,
    ),
    _measure(
        "outage_hub_death_ms",
        "of a subnet behind both hubs when the machine of one vanishes",
        500,
        [HUB_DEATH],
    ),
)
