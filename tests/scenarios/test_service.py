"""What does a real agent tell the service manager, and what does it ask of root when its charon hangs?"""

from __future__ import annotations

import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cpe_agent.edge.charon_care import WISH
from tests.lab import watch
from tests.lab.container import wait_until
from tests.lab.daemon import Command, Daemon
from tests.lab.lab import Lab
from tests.lab.pace import patience
from tests.lab.provision import provision
from tests.lab.topology import NETWORK

SITE = "hospital-1"
SHORT = replace(
    NETWORK,
    sites=tuple(site for site in NETWORK.sites if site.name in ("centre", SITE)),
    nats=tuple(nat for nat in NETWORK.nats if nat.name == "cgnat"),
)
WATCHDOG_S = 3
UP_S = 60.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(SHORT, name="service") as running:
        provision(running)
        running.start()
        watch.wait_all_up(running, UP_S)
        yield running


@pytest.fixture
def manager(lab: Lab) -> Iterator[socket.socket]:
    """The end of the socket that a service manager has."""
    path = lab.path("/run/notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(path))
        listening.settimeout(patience(1.0))
        yield listening
    path.unlink()


def _heard(manager: socket.socket, seconds: float) -> list[str]:
    """Every line within this time."""
    lines: list[str] = []
    until = time.monotonic() + patience(seconds)
    while time.monotonic() < until:
        try:
            lines += manager.recv(4096).decode().split("\n")
        except TimeoutError:
            continue
    return lines


def test_that_it_is_ready_says_how_it_fares_and_shows_life(lab: Lab, manager: socket.socket) -> None:
    site = lab.site(SITE)
    site.agent.stop()
    variables = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": f"{WATCHDOG_S}000000"}
    argv = [sys.executable, "-m", "cpe_agent", "run", "--config", str(site.inside / "agent.yaml")]
    agent = Daemon(lab.container, f"{SITE}-served", SITE, lambda: Command(argv, variables))
    agent.start()
    try:
        watch.wait_all_up(lab, UP_S, [SITE])
        lines = _heard(manager, 3 * WATCHDOG_S)
        assert lines.count("READY=1") == 1
        assert lines.count("WATCHDOG=1") >= 3
        said = [line.removeprefix("STATUS=") for line in lines if line.startswith("STATUS=")]
        assert said[-1] == f"{SITE} (document 1.1): all is well", said
        site.uplink("wired").cut()
        said = [line for line in _heard(manager, 5) if line.startswith("STATUS=")]
        assert "degraded: PathDown wired.centre.wan" in said[-1]
        site.uplink("wired").restore()
        agent.stop()
        assert _heard(manager, 2)[-1] == "STOPPING=1"
    finally:
        agent.kill()
        agent.close()
        site.uplink("wired").restore()
        site.agent.start()
        watch.wait_all_up(lab, UP_S)


def test_that_for_a_charon_that_hangs_a_restart_is_asked_for_once(lab: Lab) -> None:
    site = lab.site(SITE)
    wish: Path = site.outside / "run" / WISH
    assert not wish.exists()
    lab.container.signal(site.charon.pid, signal.SIGSTOP)
    wait_until("a restart is asked for", wish.exists, 60)
    report = watch.wait_for(lab, SITE, "says so", lambda r: any(c.type == "CharonFailed" for c in r.conditions), 10)
    (failed,) = (c for c in report.conditions if c.type == "CharonFailed")
    assert "does not answer" in failed.reason and "asked for once" in failed.reason
    # What root's unit does.
    wish.unlink()
    site.charon.kill()
    site.start_charon()
    watch.wait_all_up(lab, UP_S)
    assert not wish.exists()
