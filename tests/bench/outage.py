"""How long does a nurse hear nothing when the uplink that carries her traffic dies without a word?"""

from __future__ import annotations

import time

from tests.bench.bench import Bench
from tests.lab import watch
from tests.lab.container import LabError
from tests.lab.provision import PROBE

SITE, UPLINK = "hospital-1", "wired"
CLIENT, SERVER, BUNDLE = "hospital-1-host", "centre-server", "centre"
RATE = 100  # packets per second, each way

_FLOWING_S = 10.0
_MOVE_S = 15.0  # a dead figure rather than a dead bench
_BACK_S = 60.0
_STEADY_S = 0.5  # of undisturbed traffic before the fault, and after the move
_PHASE_S = PROBE["active_interval_ms"] / 1000


def blackhole_100x3(bench: Bench) -> list[float]:
    """The longest gap at either receiver, in ms, when the wired uplink is blackholed both ways inside the internet.

    The fault comes at a random phase of the probes (100 ms, 3 misses). Every run begins with all paths up and the
    traffic on the wired uplink.
    """
    if PROBE != {"active_interval_ms": 100, "standby_interval_ms": 100, "misses": 3}:
        raise LabError(f"the lab probes otherwise than this figure's name says: {PROBE}")
    gaps = []
    for run in range(1, bench.runs + 1):
        gap_ms, words = _blackhole_once(bench)
        gaps.append(gap_ms)
        bench.say(f"run {run} of {bench.runs}: {gap_ms:.0f} ms ({words})")
    return gaps


def _blackhole_once(bench: Bench) -> tuple[float, str]:
    lab = bench.lab
    uplink = lab.site(SITE).uplink(UPLINK)
    watch.wait_all_up(lab, _BACK_S, [SITE])
    watch.wait_for(lab, SITE, "traffic is on wired", watch.carried(BUNDLE, uplink=UPLINK), _BACK_S)
    try:
        with lab.flow(CLIENT, SERVER, rate=RATE) as flow:
            flow.wait_flowing(_FLOWING_S)
            time.sleep(_STEADY_S + bench.chance.uniform(0, _PHASE_S))
            failed_s = time.monotonic()
            uplink.blackhole()
            watch.wait_for(lab, SITE, "moves off wired", watch.carried(BUNDLE, uplink="lte"), _MOVE_S)
            time.sleep(_STEADY_S)
            result = flow.stop()
    finally:
        uplink.heal()
    if result.lost == 0:
        raise LabError("nothing was measured: the blackhole lost no packet")
    worse = max(result.up, result.down, key=lambda direction: direction.longest_gap_ms)
    if worse.longest_gap_at_s < failed_s - _PHASE_S:
        raise LabError("nothing was measured: the longest gap was before the fault")
    words = f"up {result.up.longest_gap_ms:.0f}, down {result.down.longest_gap_ms:.0f}"
    return worse.longest_gap_ms, words
