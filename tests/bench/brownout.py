"""How soon does traffic leave an uplink that is up but bad?

Its class asks for at most `LATENCY_MS` and `LOSS_PERCENT`. The sample of a run is the time, in s, from the beginning of
the fault until the bundle's CHILD_SA is installed on the other uplink, by charon's own account. Each run begins with an
agent that has just been started: after several brownouts it holds traffic where it is on purpose, for minutes.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.bench.bench import Bench, Measure, Setting
from tests.bench.outage import OTHER_UPLINK, SITE, UPLINK
from tests.lab import watch
from tests.lab.faults import RunningUplink

BUNDLE = "centre"
LATENCY_MS, LOSS_PERCENT = 100, 2
SLOW_MS = 80  # one way: above what the class allows there and back
LOSS = 10.0

_MOVE_S = 60.0  # a dead figure rather than a dead bench
_BACK_S = 120.0
_STEADY_S = 6.0  # for the windows of all paths to fill

Make = Callable[[RunningUplink], None]

# Each with what undoes it. Loss in one direction is the half of it that probes see.
FAULTS: tuple[tuple[str, Make, Make], ...] = (
    ("10 % lost each way", lambda uplink: uplink.loss(LOSS), lambda uplink: uplink.heal()),
    (f"{SLOW_MS} ms slower each way", lambda uplink: uplink.slow(SLOW_MS), lambda uplink: uplink.slow(0)),
    ("10 % lost upwards", lambda uplink: uplink.loss(LOSS, "up"), lambda uplink: uplink.heal()),
    ("10 % lost downwards", lambda uplink: uplink.loss(LOSS, "down"), lambda uplink: uplink.heal()),
)


def brownout(bench: Bench) -> list[float]:
    """Each of the faults in turn, one each run."""
    lab = bench.lab
    uplink = lab.site(SITE).uplink(UPLINK)
    took = []
    for run in range(1, bench.runs + 1):
        name, make, undo = FAULTS[(run - 1) % len(FAULTS)]
        lab.site(SITE).agent.restart()
        watch.wait_all_up(lab, _BACK_S, [SITE])
        watch.wait_for(lab, SITE, "traffic is at home", watch.carried(BUNDLE, uplink=UPLINK), _BACK_S)
        time.sleep(_STEADY_S + bench.chance.uniform(0, 1))
        began_s = time.monotonic()
        try:
            make(uplink)
            watch.wait_for(lab, SITE, f"leaves ({name})", watch.carried(BUNDLE, uplink=OTHER_UPLINK), _MOVE_S)
            took.append(time.monotonic() - began_s)
        finally:
            undo(uplink)
        bench.say(f"run {run} of {bench.runs}: {took[-1]:.1f} s ({name})")
    return took


BROWNOUT = Measure(
    "brownout_move_s",
    "s",
    "until traffic leaves an uplink that loses 10 % or is slower than its class allows",
    limit=5,
    runs=8,
    take=brownout,
    setting=Setting(
        described={"classes": {"default": {"latency_ms": LATENCY_MS, "loss_percent": LOSS_PERCENT}}},
    ),
)
