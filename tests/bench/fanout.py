"""What do 2,000 sites cost one controller process, and how fast does it tell them?

A real controller, in a process of its own, and 2,000 simulated agents in another (agents.py). All in a network
namespace: the traffic is loopback's.
"""

from __future__ import annotations

import datetime as dt
import json
import queue
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cpe_controller import authorities, pki, setup
from cpe_controller.change import signed
from cpe_controller.publish import commit
from cpe_controller.store import Write
from cpe_controller.store.sqlite import SqliteStore
from tests.lab.container import REPOSITORY, LabError

AGENTS = 2000
PORT = 8443
# Two handshakes for each agent, on a machine that does both ends of them.
CONNECT_S = 240.0
VERIFY_S = 60.0
RESTART_S = 120.0
SETTLE_S = 3.0
# Agents confirm within it.
CONFIRMED_S = 22.0

_HEAD = """network: bench
overlay: 10.240.0.0/12
policy: {{failback_s: {failback}}}
templates:
  branch: {{uplinks: {{a: {{kind: wired}}, b: {{kind: cellular}}}}, lans: {{lan: {{interface: lan0}}}}}}
hubs:
  centre:
    endpoints: {{wan: {{address: 198.51.100.10}}}}
    uplinks: {{wan: {{kind: wired}}}}
    lans: {{servers: {{subnet: 10.10.0.0/24, interface: lan0}}}}
  cloud:
    endpoints: {{wan: {{address: 198.51.100.20}}}}
    uplinks: {{wan: {{kind: wired}}}}
    lans: {{servers: {{subnet: 10.10.0.0/24, interface: lan0}}}}
services:
  records: {{subnet: 10.10.0.0/24}}
permits:
  - {{from: branches, to: records}}
branches:
"""


def kb_per_agent(runs: int, chance: random.Random, say: Callable[[str], None]) -> list[float]:
    """kB of the controller's memory for each agent that is connected and has reported."""
    samples = []
    for _ in range(runs):
        with _state() as state, _controller(state) as controller:
            time.sleep(SETTLE_S)
            before = _rss_kb(controller.pid)
            with _agents(state) as agents:
                agents.until("connected", AGENTS, CONNECT_S)
                time.sleep(SETTLE_S)
                after = _rss_kb(controller.pid)
        samples.append((after - before) / AGENTS)
        say(f"{before / 1024:.0f} MB without agents, {after / 1024:.0f} MB with {AGENTS}: {samples[-1]:.1f} kB each")
    return samples


def fanout(runs: int, chance: random.Random, say: Callable[[str], None]) -> list[float]:
    """ms from the first write of an apply to all sites until 99 of 100 agents have verified their document."""
    samples = []
    with _state() as state, _controller(state), _agents(state) as agents:
        agents.until("connected", AGENTS, CONNECT_S)
        for run in range(1, runs + 1):
            time.sleep(CONFIRMED_S)
            asked = time.monotonic()
            with setup.opened(state) as (store, told):
                change = setup.planned(state, store, told, _network(60 + run), "bench")
                change = signed(change, setup.signer(state))
                with _first_write() as written:
                    commit(store, change, setup.signing_keys(state))
            committed = time.monotonic()
            told_all = agents.until("verified", run + 1, VERIFY_S)
            latest = sorted(moment - written[0] for moment in told_all["at"])
            samples.append(1000 * latest[int(0.99 * len(latest)) - 1])
            say(
                f"run {run} of {runs}: p50 {1000 * latest[len(latest) // 2]:.0f}, p99 {samples[-1]:.0f}, the last "
                f"{1000 * latest[-1]:.0f} ms; before it {written[0] - asked:.1f} s to compile and sign, written in "
                f"{1000 * (committed - written[0]):.0f} ms"
            )
    return samples


def restart(runs: int, chance: random.Random, say: Callable[[str], None]) -> list[float]:
    """s from the start of a new controller process until all agents hold a stream again."""
    samples = []
    with _state() as state:
        first = _start(state)
        try:
            with _agents(state) as agents:
                agents.until("connected", AGENTS, CONNECT_S)
                for run in range(1, runs + 1):
                    time.sleep(SETTLE_S)
                    _stop(first)
                    agents.forget()
                    began = time.monotonic()
                    first = _start(state)
                    agents.until("connected", AGENTS, RESTART_S)
                    samples.append(time.monotonic() - began)
                    say(f"run {run} of {runs}: {samples[-1]:.1f} s")
        finally:
            _stop(first)
    return samples


@contextmanager
def _first_write() -> Iterator[list[float]]:
    """When the store was first written inside."""
    moments: list[float] = []
    cas = SqliteStore.cas

    def timed(self: SqliteStore, writes: Sequence[Write], checks: Mapping[str, int] | None = None) -> int | None:
        moments.append(time.monotonic())
        return cas(self, writes, checks)

    SqliteStore.cas = timed  # type: ignore[method-assign]
    try:
        yield moments
    finally:
        SqliteStore.cas = cas  # type: ignore[method-assign]


class _Agents:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._said: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reading = threading.Thread(target=self._read, args=(process,), daemon=True)
        self._reading.start()

    def until(self, what: str, value: int, limit_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + limit_s
        last: dict[str, Any] = {}
        while True:
            try:
                last = self._said.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise LabError(f"not {what} {value} within {limit_s:g} s; last: {str(last)[:200]}") from None
            if "error" in last:
                raise LabError(f"an agent met an error: {last['error']}")
            if last.get(what) == value:
                return last

    def forget(self) -> None:
        """What was said until now."""
        while not self._said.empty():
            self._said.get_nowait()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._said.put(json.loads(line))
        self._said.put({"error": "the agents' process ended"})


@contextmanager
def _state() -> Iterator[Path]:
    """A state directory with a network of AGENTS branches, and their certificates under agents/."""
    with tempfile.TemporaryDirectory() as directory:
        state = Path(directory) / "state"
        setup.init_state(state, "bench", ["127.0.0.1"], PORT)
        setup.apply(state, _network(60))
        agents = state / "agents"
        agents.mkdir()
        (agents / "signing.pub").write_text(setup.signing_keys(state)[0].key)
        (agents / "root.pem").write_text(authorities.root_pem(state))
        issuer, now = authorities.sites(state), dt.datetime.now(dt.UTC)
        for number in range(AGENTS):
            key = pki.new_key()
            certificate = pki.issue_site(issuer, "bench", f"b{number}", key.public_key(), now)
            (agents / f"b{number}.pem").write_bytes(pki.certificate_pem(certificate) + issuer.pem())
            (agents / f"b{number}.key").write_bytes(pki.key_pem(key))
        yield state


@contextmanager
def _controller(state: Path) -> Iterator[subprocess.Popen[str]]:
    process = _start(state)
    try:
        yield process
    finally:
        _stop(process)


@contextmanager
def _agents(state: Path) -> Iterator[_Agents]:
    argv = [sys.executable, "-m", "tests.bench.agents", "127.0.0.1", str(PORT), str(state / "agents"), str(AGENTS)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        try:
            yield _Agents(process)
        finally:
            process.kill()


def _start(state: Path) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "cpe_controller", "--state", str(state), "serve", "--listen", "127.0.0.1"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert process.stdout is not None
    if not process.stdout.readline():
        raise LabError("the controller did not start")
    return process


def _stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    finally:
        process.kill()
        process.wait()


def _rss_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise LabError(f"process {pid} has ended")


def _network(failback: int) -> str:
    branches = "".join(
        f"  b{n}: {{template: branch, lans: {{lan: {{subnet: 10.{64 + n // 250}.{n % 250}.0/24}}}}}}\n"
        for n in range(AGENTS)
    )
    return _HEAD.format(failback=failback) + branches
