"""What does it cost a site to probe eight paths ten times a second?

A branch with four uplinks and two hubs, all paths up and at rest. The sample of a run is the share of one processor, in
percent, that the whole agent (all its threads) spends in `_MEASURED_S`, by the kernel's account.
"""

from __future__ import annotations

import os
import time

from tests.bench.bench import Bench, Measure, Setting
from tests.lab import watch
from tests.lab.lab import Lab
from tests.lab.topology import NETWORK, Network, Site, lan, uplink

SITE = "clinic"
UPLINKS, PATHS = 4, 8
INTERVAL_MS = 100

_MEASURED_S = 20.0
_REST_S = 10.0  # for what starting leaves to be done


def _network() -> Network:
    """Two hubs, and one branch whose uplinks differ in nothing but their numbers."""
    links = []
    for sixteenth in range(8, 8 + UPLINKS):
        first = f"203.0.113.{16 * sixteenth + 1}"
        links.append(uplink(f"link{sixteenth}", "wired", f"203.0.113.{16 * sixteenth + 2}/28", first))
    clinic = Site(SITE, "branch", tuple(links), (lan("lan0", "10.103.0.0/24", "clinic-host"),))
    hubs = tuple(site for site in NETWORK.sites if site.role == "hub")
    nats = tuple(nat for nat in NETWORK.nats if nat.kind == "one_to_one")
    return Network((clinic, *hubs), nats, NETWORK.internet_hosts, NETWORK.controller)


def probe_cost(bench: Bench) -> list[float]:
    lab = bench.lab
    report = watch.status(lab, SITE)
    assert len(report.paths) == PATHS, report.paths
    found = []
    time.sleep(_REST_S)
    for run in range(1, bench.runs + 1):
        before_s, began_s = _spent_s(lab), time.monotonic()
        time.sleep(_MEASURED_S)
        percent = (_spent_s(lab) - before_s) / (time.monotonic() - began_s) * 100
        bench.say(f"run {run} of {bench.runs}: {percent:.2f} %")
        found.append(percent)
    watch.wait_all_up(lab, 1, [SITE])
    return found


def _spent_s(lab: Lab) -> float:
    """Processor time of the agent so far."""
    pid = lab.site(SITE).agent.pid
    # After the program's name, which is in parentheses: state is the first, utime and stime the 12th and 13th.
    words = lab.path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


PROBE_COST = Measure(
    "probe_8x10hz_cpu_percent",
    "%",
    "of one processor, by the agent of a site at rest that probes 8 paths at 10 Hz",
    limit=4,
    runs=3,
    take=probe_cost,
    setting=Setting(
        network=_network(),
        described={"probe": {"active_interval_ms": INTERVAL_MS, "standby_interval_ms": INTERVAL_MS, "misses": 3}},
    ),
)
