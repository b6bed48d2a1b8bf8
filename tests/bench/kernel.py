"""What does a planned move lose with the kernel's ESP, and does a failover wait for what a killed charon has lost?

Measured where the kernel has ESP; emulated, milliseconds are many times too long, so what is judged is packets, and one
time as a multiple of another.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.bench.bench import Bench
from tests.lab import watch
from tests.lab.container import LabError
from tests.lab.lab import Lab

SITE, UPLINK, HUB = "hospital-1", "wired", "centre"
CLIENT, SERVER, BUNDLE = "hospital-1-host", "centre-server", "centre"
RATE = 100  # packets per second, each way
# How long after the hub's charon is back the uplink fails.
DELAYS_S = (1.0, 5.0, 30.0)

_FLOWING_S = 10.0
_MOVE_S = 15.0
_BACK_S = 60.0
_STEADY_S = 1.0


def planned_move_lost(direction: str) -> Callable[[Bench], list[float]]:
    """Packets lost, `up` (branch to hub) or `down`, by a move back to the better path, which was good for long."""

    def take(bench: Bench) -> list[float]:
        lost: list[float] = []
        for run in range(1, bench.runs + 1):
            up, down = _move_once(bench.lab)
            lost.append(up if direction == "up" else down)
            bench.say(f"run {run} of {bench.runs}: {up} up, {down} down")
        return lost

    return take


def failover_after_restart(bench: Bench) -> list[float]:
    """How many times the usual outage a failover takes that begins soon after the hub's charon was killed and
    restarted; for each run the worst of `DELAYS_S`."""
    ratios: list[float] = []
    for run in range(1, bench.runs + 1):
        usual_ms = _failover_ms(bench.lab)
        took: dict[float, float] = {}
        for delay_s in DELAYS_S:
            _rest(bench.lab)
            charon = bench.lab.site(HUB)
            charon.charon.kill()
            charon.start_charon()
            time.sleep(delay_s)
            took[delay_s] = _failover_ms(bench.lab, rested=False)
        ratios.append(max(took.values()) / usual_ms)
        words = ", ".join(f"{ms:.0f} ms after {delay_s:g} s" for delay_s, ms in took.items())
        bench.say(f"run {run} of {bench.runs}: {words}; usually {usual_ms:.0f} ms")
    return ratios


def _rest(lab: Lab) -> None:
    watch.wait_all_up(lab, _BACK_S)
    watch.wait_for(lab, SITE, "traffic is on wired", watch.carried(BUNDLE, uplink=UPLINK), _BACK_S)
    time.sleep(_STEADY_S)


def _move_once(lab: Lab) -> tuple[int, int]:
    _rest(lab)
    uplink = lab.site(SITE).uplink(UPLINK)
    uplink.blackhole()
    try:
        watch.wait_for(lab, SITE, "moves off wired", watch.carried(BUNDLE, uplink="lte"), _MOVE_S)
        time.sleep(_STEADY_S)
        with lab.flow(CLIENT, SERVER, rate=RATE) as flow:
            flow.wait_flowing(_FLOWING_S)
            uplink.heal()
            watch.wait_for(lab, SITE, "moves back", watch.carried(BUNDLE, uplink=UPLINK), _BACK_S)
            time.sleep(_STEADY_S)
            result = flow.stop()
    finally:
        uplink.heal()
    return result.up.lost, result.down.lost


def _failover_ms(lab: Lab, rested: bool = True) -> float:
    """The longest gap at either end when the uplink that carries the traffic is silently blackholed."""
    if rested:
        _rest(lab)
    # Whatever carries it: after a restart it may just be on its way. Nothing does if a charon that was slow to start
    # had all paths fall: then the uplink fails to which it would return.
    active = watch.active_path(watch.status(lab, SITE), BUNDLE)
    name = UPLINK if active is None else active.partition(".")[0]
    uplink, other = lab.site(SITE).uplink(name), "lte" if name == UPLINK else UPLINK
    try:
        with lab.flow(CLIENT, SERVER, rate=RATE) as flow:
            uplink.blackhole()
            watch.wait_for(lab, SITE, f"moves to {other}", watch.carried(BUNDLE, uplink=other), _MOVE_S)
            seen = flow.received()
            deadline = time.monotonic() + _BACK_S
            while not all(now > then for now, then in zip(flow.received(), seen, strict=True)):
                if time.monotonic() > deadline:
                    raise LabError("the flow does not go on")
                time.sleep(0.05)
            result = flow.stop()
    finally:
        uplink.heal()
    return result.longest_gap_ms
