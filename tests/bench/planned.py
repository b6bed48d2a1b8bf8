"""How many packets does a move cost that nobody was forced to make? None.

In turn: a switch (the network's description prefers another uplink), a drill of an uplink, a hub drained and undrained
while the controller is away, and the failback after an outage. Packets are counted from before to after each move;
those of the outage itself are not part of the failback.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import yaml

from cpe_agent import exits
from tests.bench.bench import Bench
from tests.lab import watch
from tests.lab.container import LabError
from tests.lab.flow import Flow
from tests.lab.lab import Lab
from tests.lab.provision import apply, network_yaml

SITE, HUB, OTHER_HUB = "hospital-1", "centre", "cloud"
CLIENT, SERVER, BUNDLE = "hospital-1-host", "centre-server", "centre"
SHARED, SHARED_BUNDLE = ("centre-shared", "cloud-shared"), "centre+cloud"
RATE = 100  # packets per second, each way

_FLOWING_S = 10.0
_MOVE_S = 20.0
_BACK_S = 60.0
_STEADY_S = 0.7  # for what a move may break a little later


def planned_move(bench: Bench) -> list[float]:
    """Packets lost, both ways together, by all planned moves of a run."""
    lost = []
    for run in range(1, bench.runs + 1):
        found = {kind.__name__: kind(bench.lab) for kind in (switch, drill, drain, failback)}
        lost.append(float(sum(found.values())))
        bench.say(f"run {run} of {bench.runs}: lost " + ", ".join(f"{n} by {kind}" for kind, n in found.items()))
    return lost


def switch(lab: Lab) -> int:
    """The document prefers the other uplink, and then the first again."""
    lost = 0
    for first, second in (("lte", "wired"), ("wired", "lte")):
        with _counted(lab) as count:
            apply(lab, _network(lab, partial(_prefer, first, second)))
            watch.wait_for(lab, SITE, f"traffic is on {first}", watch.carried(BUNDLE, uplink=first), _MOVE_S)
        lost += count[0]
    return lost


def _prefer(first: str, second: str, site: dict[str, Any]) -> None:
    site["uplinks"][first]["priority"], site["uplinks"][second]["priority"] = 1, 2


def drill(lab: Lab) -> int:
    with _counted(lab) as count:
        config = str(lab.site(SITE).inside / "agent.yaml")
        argv = [sys.executable, "-m", "cpe_agent", "drill", "uplink", "wired", "--config", config]
        done = lab.site(SITE).run(*argv, timeout_s=_BACK_S, check=False)
        if done.status not in (0, exits.DRILL_LOSS, exits.DRILL_UNMEASURED):
            raise LabError(f"the drill did not take place: {done.stdout}{done.stderr}")
        watch.wait_for(lab, SITE, "traffic is back", watch.carried(BUNDLE, uplink="wired"), _MOVE_S)
    return count[0]


def drain(lab: Lab) -> int:
    """Without the controller. The subnet that both hubs serve moves; of what is sent to nobody nothing is lost."""
    lab.controller.stop()
    lost = 0
    try:
        for command, there in (("drain", OTHER_HUB), ("undrain", HUB)):
            with lab.flow(CLIENT, SHARED[0], twin=SHARED[1], rate=RATE) as flow:
                flow.wait_flowing(_FLOWING_S)
                config = str(lab.site(HUB).inside / "agent.yaml")
                lab.site(HUB).run(sys.executable, "-m", "cpe_agent", command, "--config", config)
                watch.wait_for(lab, SITE, f"it is at {there}", watch.carried(SHARED_BUNDLE, peer=there), _MOVE_S)
                time.sleep(_STEADY_S)
                result = flow.stop()
            lost += result.up.lost + result.down.lost_between
    finally:
        lab.controller.start()
    return lost


def failback(lab: Lab) -> int:
    uplink = lab.site(SITE).uplink("wired")
    uplink.blackhole()
    try:
        watch.wait_for(lab, SITE, "moves off wired", watch.carried(BUNDLE, uplink="lte"), _MOVE_S)
    finally:
        uplink.heal()
    with _counted(lab) as count:
        watch.wait_for(lab, SITE, "traffic is back", watch.carried(BUNDLE, uplink="wired"), _BACK_S)
    return count[0]


@contextmanager
def _counted(lab: Lab) -> Iterator[list[int]]:
    """Traffic for the time of the block; afterwards the first of the list says how many packets were lost."""
    count: list[int] = []
    with lab.flow(CLIENT, SERVER, rate=RATE) as flow:
        flow.wait_flowing(_FLOWING_S)
        yield count
        time.sleep(_STEADY_S)
        count.append(_stopped(flow))


def _stopped(flow: Flow) -> int:
    return flow.stop().lost


def _network(lab: Lab, change: Callable[[dict[str, Any]], None]) -> str:
    described: dict[str, Any] = yaml.safe_load(network_yaml(lab.network))
    change(described["branches"][SITE])
    return yaml.safe_dump(described, sort_keys=False)
