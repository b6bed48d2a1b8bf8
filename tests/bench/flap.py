"""How often is traffic moved by a link that comes and goes?

The carrier of the best uplink goes and comes for ten real minutes. The sample of a run is the largest number of moves
of any of the site's bundles, by the agent's own log.
"""

from __future__ import annotations

import json
import time
from collections import Counter

from tests.bench.bench import Bench, Measure
from tests.bench.outage import SITE, UPLINK
from tests.lab import watch
from tests.lab.lab import Lab

PERIOD_S = 10.0  # down for the one half, up for the other
MINUTES = 10

_BACK_S = 120.0


def flap(bench: Bench) -> list[float]:
    return [_flap_once(bench, run) for run in range(1, bench.runs + 1)]


def _flap_once(bench: Bench, run: int) -> float:
    lab = bench.lab
    uplink = lab.site(SITE).uplink(UPLINK)
    watch.wait_all_up(lab, _BACK_S, [SITE])
    before = _moves(lab)
    began_s = time.monotonic()
    try:
        for number in range(round(MINUTES * 60 / PERIOD_S)):
            uplink.cut()
            _sleep_until(began_s + (number + 0.5) * PERIOD_S)
            uplink.restore()
            _sleep_until(began_s + (number + 1) * PERIOD_S)
    finally:
        uplink.restore()
    moves = _moves(lab) - before
    words = ", ".join(f"{bundle} {count}" for bundle, count in sorted(moves.items()))
    bench.say(f"run {run} of {bench.runs}: {words or 'no moves'} in {time.monotonic() - began_s:.0f} s")
    return float(max(moves.values(), default=0))


def _moves(lab: Lab) -> Counter[str]:
    """Moves so far, by bundle."""
    found: Counter[str] = Counter()
    for line in lab.site(SITE).agent.log.read_text().splitlines():
        if line.startswith("{"):
            event = json.loads(line)
            if event["event"] == "bundle_moved":
                found[event["bundle"]] += 1
    return found


def _sleep_until(at_s: float) -> None:
    time.sleep(max(0.0, at_s - time.monotonic()))


FLAP = Measure(
    "flap_10min_moves",
    "moves",
    "of a bundle whose best link flaps every 10 s for 10 minutes",
    limit=3,
    runs=1,
    take=flap,
    on_demand=True,
)
