"""How many packets does a restart of the agent cost? None: the data plane is charon's and the kernel's."""

from __future__ import annotations

import signal
import time

from tests.bench.bench import Bench
from tests.lab import watch

SITES = ("hospital-1", "centre")  # both ends of the traffic
CLIENT, SERVER = "hospital-1-host", "centre-server"
RATE = 100  # packets per second, each way

_FLOWING_S = 10.0
_WELL_S = 60.0
_STEADY_S = 0.5  # for what a restart may break a little later


def agent_restart(bench: Bench) -> list[float]:
    """Packets lost, both ways together, while each end's agent is restarted by SIGTERM and by kill -9."""
    lost: list[float] = []
    lab = bench.lab
    for run in range(1, bench.runs + 1):
        with lab.flow(CLIENT, SERVER, rate=RATE) as flow:
            flow.wait_flowing(_FLOWING_S)
            for site in SITES:
                for number in (signal.SIGTERM, signal.SIGKILL):
                    lab.site(site).agent.restart(number)
                    watch.wait_for(lab, site, f"is well after {number.name}", watch.all_up, _WELL_S)
                    time.sleep(_STEADY_S)
            result = flow.stop()
        lost.append(result.lost)
        sent = result.up.sent + result.down.sent
        bench.say(f"run {run} of {bench.runs}: {result.lost} of {sent} packets lost by 4 restarts")
    return lost
