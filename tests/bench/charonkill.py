"""How soon is everything up again once a killed charon's successor takes commands?"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter
from pathlib import Path

from cpe_agent.model.dataplane import PROBE_CHILD
from cpe_agent.ports import EdgeError
from tests.bench.bench import Bench
from tests.lab import watch
from tests.lab.container import LabError
from tests.lab.lab import Lab
from tests.lab.site import RunningSite
from tests.scenarios.charon_mutations import charon_of

SITES = ("hospital-1", "centre")  # a dialler, and one that is dialled

_WELL_S = 60.0
_ANSWERS_S = 10.0
_STEADY_S = 3.0  # for what a recovery leaves behind, so that the next kill finds the site at rest
_INTERVAL_S = 0.005


def charon_kill(bench: Bench) -> list[float]:
    """For each run the worse of two, in ms: charon is killed (-9) and started again at a branch, and at a hub.

    From the moment at which the new one accepts commands until it holds every path's IKE_SA and probe CHILD_SA, and
    every site of the lab says that all its paths are up and ready, its bundles carried (on any path: going back to the
    better one is a matter of policy) and its targets in sync.
    """
    lab = bench.lab
    held = {name: _held(lab.site(name)) for name in SITES}  # later a hub also holds what diallers have left over
    samples = []
    for run in range(1, bench.runs + 1):
        took = {name: _kill_once(lab, name, held[name]) for name in SITES}
        samples.append(max(took.values()))
        words = ", ".join(f"{name} {ms:.0f} ms" for name, ms in took.items())
        bench.say(f"run {run} of {bench.runs}: {words}")
    return samples


def _kill_once(lab: Lab, name: str, held: Counter[str]) -> float:
    watch.wait_all_up(lab, _WELL_S)
    time.sleep(_STEADY_S)
    site = lab.site(name)
    site.charon.kill()
    site.charon.start()
    _wait_accepts(site)
    answered_s = time.monotonic()
    while held - _held(site) or not _all_well(lab):
        if time.monotonic() - answered_s > _WELL_S:
            left = dict(held - _held(site))
            raise LabError(f"{name}: not all is up {_WELL_S:g} s after charon was started again; missing: {left}")
        time.sleep(_INTERVAL_S)
    return (time.monotonic() - answered_s) * 1000


def _held(site: RunningSite) -> Counter[str]:
    """Established IKE_SAs by connection, and their installed probes; empty while charon cannot be asked."""
    found: Counter[str] = Counter()
    with contextlib.suppress(OSError), charon_of(site) as session:
        for sas in session.list_sas():
            for name, sa in sas.items():
                if sa["state"] == b"ESTABLISHED":
                    found[name] += 1
                    probes = (c for c in sa["child-sas"].values() if c["name"] == PROBE_CHILD.encode())
                    found[f"{name} {PROBE_CHILD}"] += sum(probe["state"] == b"INSTALLED" for probe in probes)
    return found


def _all_well(lab: Lab) -> bool:
    with contextlib.suppress(EdgeError):
        return all(watch.all_up(watch.status(lab, name)) for name in lab.sites)
    return False


def _wait_accepts(site: RunningSite) -> None:
    path: Path = site.outside / site.vici_socket.name
    deadline = time.monotonic() + _ANSWERS_S
    while True:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(path))
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise LabError(f"charon of {site.name} takes no commands: {error.strerror}") from None
        time.sleep(_INTERVAL_S)
