"""How long does it take from an apply until the kernels of the sites hold what it says?

Each apply opens one port of every branch to the hubs and closes another (`--now`), over the socket of the controller
that runs, as `cpe-controller apply` does once Python has started. Programmed is when a site says that its document is
the new one and that rules, routes and tunnels, as they were read back, are what that asks for. One sample for each site
and apply.
"""

from __future__ import annotations

import math
import threading
import time
from typing import Any

import yaml

from cpe_agent.model.condition import Status
from cpe_agent.ports import EdgeError
from cpe_controller import commands, control
from tests.bench.bench import Bench
from tests.lab import watch
from tests.lab.container import LabError
from tests.lab.lab import CONTROLLER_STATE, Lab
from tests.lab.provision import network_yaml

APPLIES = 25
PORTS = (8080, 8443)
_CONFIRMED_S = 30.0
_PROGRAMMED_S = 20.0
_ASK_EACH_S = 0.01


def apply_to_programmed(bench: Bench) -> list[float]:
    """For each run the time in ms within which 99 of 100 samples are."""
    lab, shares = bench.lab, []
    for run in range(1, bench.runs + 1):
        samples: list[float] = []
        for number in range(APPLIES):
            for site in lab.sites:
                watch.wait_for(lab, site, "it is at rest", _at_rest, _CONFIRMED_S)
            samples += _applied(lab, _network(lab, PORTS[number % 2]))
        ranked = sorted(samples)
        shares.append(ranked[math.ceil(0.99 * len(ranked)) - 1])
        median, most = ranked[len(ranked) // 2], ranked[-1]
        said = f"{len(ranked)} samples: median {median:.0f}, p99 {shares[-1]:.0f}, the last {most:.0f} ms"
        bench.say(f"run {run} of {bench.runs}: {said}")
    return shares


def _applied(lab: Lab, text: str) -> list[float]:
    """ms for each site that the apply changes."""
    socket = lab.path(CONTROLLER_STATE / "control.sock")
    before = {site: watch.status(lab, site).document_version for site in lab.sites}
    moments: dict[str, float] = {}
    watching = [threading.Thread(target=_watch, args=(lab, site, before[site], moments)) for site in lab.sites]
    for thread in watching:
        thread.start()
    began = time.monotonic()
    answer = control.ask(socket, commands.Apply(text, "bench", now=True))
    for thread in watching:
        thread.join()
    if answer is None or set(answer.data["published"]) != set(lab.sites) or set(moments) != set(lab.sites):
        raise LabError(f"of {answer} only {', '.join(moments) or 'nobody'} programmed it")
    return [1000 * (moment - began) for moment in moments.values()]


def _watch(lab: Lab, site: str, before: int | None, moments: dict[str, float]) -> None:
    deadline = time.monotonic() + _PROGRAMMED_S
    while time.monotonic() < deadline:
        try:
            report = watch.status(lab, site)
        except EdgeError:
            continue
        if report.document_version != before and all(target.in_sync for target in report.targets):
            moments[site] = time.monotonic()
            return
        time.sleep(_ASK_EACH_S)


def _at_rest(report: Status) -> bool:
    return watch.all_up(report) and report.document_confirmed


def _network(lab: Lab, port: int) -> str:
    described: dict[str, Any] = yaml.safe_load(network_yaml(lab.network))
    for name in tuple(described["services"]):
        opened = {"from": "branches", "to": name, "initiator": "to", "protocol": "tcp", "ports": [port]}
        described["permits"].append(opened)
    return yaml.safe_dump(described, sort_keys=False)
