"""What does an agent cost the small router that it runs on: memory, processor, and time to start?

A branch with two uplinks and two hubs, so four paths, and ten pairs. Three figures: the memory of its agent after a
bounded soak of events; the share of one processor that it takes at rest while every path is probed ten times a second;
and how long a started agent takes until its rules, routes and tunnels are as its document asks. It runs as
on a router: by the package's command, with the package's libraries alone.
"""

from __future__ import annotations

import os
import time

import yaml

from cpe_agent.model.condition import Status
from tests.bench.bench import Bench, Measure, Setting
from tests.lab import installed, provision, watch
from tests.lab.lab import Lab
from tests.lab.topology import NETWORK

SITE, PATHS, PAIRS = "hospital-1", 4, 10
INTERVAL_MS = 100

# Each round of the soak has every kind of event that an agent meets: links, charon, documents, readers.
SOAK_ROUNDS = 6
REPORTS_A_ROUND, SCRAPES_A_ROUND = 100, 10

_WELL_S = 60.0
_REST_S = 10.0  # for what starting leaves to be done
_MEASURED_S = 20.0
_BYTES_A_MB = 1024 * 1024


def _described() -> dict[str, object]:
    """The usual network, and seven TCP ports more at the centre's servers: ten pairs for each LAN of a branch."""
    usual = yaml.safe_load(provision.network_yaml(NETWORK))
    ports = {f"app-{n}": {"subnet": "10.10.0.0/24", "protocol": "tcp", "ports": [8000 + n]} for n in range(7)}
    return {
        "services": usual["services"] | ports,
        "permits": [*usual["permits"], *({"from": "branches", "to": name} for name in ports)],
        "probe": {"active_interval_ms": INTERVAL_MS, "standby_interval_ms": INTERVAL_MS, "misses": 3},
    }


SETTING = Setting(described=_described())


def rss(bench: Bench) -> list[float]:
    """Resident megabytes (2**20 bytes) of the agent, after each soak."""
    lab, site = bench.lab, bench.lab.site(SITE)
    _as_installed(bench)
    samples = []
    for run in range(1, bench.runs + 1):
        began_mb = _rss_mb(lab)
        for number in range(SOAK_ROUNDS):
            site.uplink("wired").cut()
            watch.wait_for(lab, SITE, "its wired paths are down", lambda r: _down(r, "wired"), _WELL_S)
            site.uplink("wired").restore()
            site.uplink("lte").blackhole()
            watch.wait_for(lab, SITE, "its lte paths are down", lambda r: _down(r, "lte"), _WELL_S)
            site.uplink("lte").heal()
            site.charon.kill()
            site.start_charon()
            _apply_another(bench, number % 2 == 0)
            for _ in range(REPORTS_A_ROUND):
                watch.status(lab, SITE)
            for _ in range(SCRAPES_A_ROUND):
                page = site.run("curl", "-s", "--noproxy", "*", f"http://{provision.METRICS}/metrics").stdout
                assert "cpe_agent_build_info" in page
            watch.wait_all_up(lab, _WELL_S)
        samples.append(_rss_mb(lab))
        bench.say(f"run {run} of {bench.runs}: {began_mb:.1f} MB before, {samples[-1]:.1f} MB after the soak")
    return samples


def idle_cpu(bench: Bench) -> list[float]:
    """Percent of one processor, of all threads of the agent, by the kernel's account."""
    lab = bench.lab
    _as_installed(bench)
    samples = []
    time.sleep(_REST_S)
    for run in range(1, bench.runs + 1):
        before_s, began_s = _spent_s(lab), time.monotonic()
        time.sleep(_MEASURED_S)
        samples.append((_spent_s(lab) - before_s) / (time.monotonic() - began_s) * 100)
        bench.say(f"run {run} of {bench.runs}: {samples[-1]:.2f} %")
    watch.wait_all_up(lab, 1, [SITE])
    return samples


def start_to_in_sync(bench: Bench) -> list[float]:
    """For each run the longer of two, in seconds from the start of the agent's process: it finds all as it left it, and
    it finds a charon that knows nothing, as after a boot."""
    lab, site = bench.lab, bench.lab.site(SITE)
    _as_installed(bench)
    samples = []
    for run in range(1, bench.runs + 1):
        took = {}
        for name in ("adopting", "anew"):
            site.agent.stop()
            if name == "anew":
                site.end_tunnels()
                site.start_charon()
            began_s = time.monotonic()
            site.agent.start()
            watch.wait_for(lab, SITE, f"is in sync ({name})", _in_sync, _WELL_S)
            took[name] = time.monotonic() - began_s
            watch.wait_all_up(lab, _WELL_S)
        samples.append(max(took.values()))
        words = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in took.items())
        bench.say(f"run {run} of {bench.runs}: {words}")
    return samples


def _as_installed(bench: Bench) -> None:
    """Run the agent of the site as its package would."""
    lab, site = bench.lab, bench.lab.site(SITE)
    installed.put(site.outside / "installed", seen_as=site.inside / "installed")
    site.command = site.inside / "installed" / installed.COMMAND.name
    site.agent.restart()
    watch.wait_all_up(lab, _WELL_S)
    differing = installed.differing()
    bench.say("as installed, with its package's libraries" + (f", but {', '.join(differing)}" if differing else ""))
    report = watch.status(lab, SITE)
    pairs = {pair for bundle in report.bundles for pair in bundle.pairs}
    assert (len(report.paths), len(pairs)) == (PATHS, PAIRS), (report.paths, pairs)


def _down(report: Status, uplink: str) -> bool:
    return all(path.state != "up" for path in report.paths if path.uplink == uplink)


def _in_sync(report: Status) -> bool:
    return report.document_version is not None and all(target.in_sync for target in report.targets)


def _apply_another(bench: Bench, more: bool) -> None:
    """A port more or less: another document for every branch, which is waited for until it is confirmed."""
    described = yaml.safe_load(bench.setting.network_yaml())
    described["services"]["app-0"]["ports"] = [8000, 9000] if more else [8000]
    version = provision.apply(bench.lab, yaml.safe_dump(described, sort_keys=False))[SITE]
    there = watch.has_document(version)
    watch.wait_for(bench.lab, SITE, "has the next document", lambda r: there(r) and watch.confirmed(r), _WELL_S)


def _rss_mb(lab: Lab) -> float:
    pid = lab.site(SITE).agent.pid
    pages = int(lab.path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / _BYTES_A_MB


def _spent_s(lab: Lab) -> float:
    pid = lab.site(SITE).agent.pid
    # After the program's name, which is in parentheses: state is the first, utime and stime the 12th and 13th.
    words = lab.path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


FOOTPRINT = (
    Measure(
        "agent_rss_mb",
        "MB",
        "of memory, by the agent of a branch as installed, with 4 paths and 10 pairs, after a soak of events",
        limit=65,
        runs=2,
        take=rss,
        setting=SETTING,
    ),
    Measure(
        "agent_idle_cpu_percent",
        "%",
        "of one processor, by the agent of a branch at rest that probes 4 paths at 10 Hz",
        limit=2.5,
        runs=3,
        take=idle_cpu,
        setting=SETTING,
    ),
    Measure(
        "start_to_in_sync_s",
        "s",
        "from the start of an agent to rules, routes and tunnels in sync, adopting and with an empty charon",
        limit=2,
        runs=5,
        take=start_to_in_sync,
        setting=SETTING,
    ),
)
