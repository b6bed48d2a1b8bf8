"""Does a move that nobody was forced to make lose the answers that are under way by the path that is left?

A server takes its time, and its answer comes back by the hub that the question came from. Here it takes 300 ms, so at
the moment of a move some thirty answers are still to come.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from cpe_agent import exits
from cpe_agent.edge.control import ask
from cpe_agent.edge.ipsec import resolve
from cpe_agent.model.condition import Status
from cpe_agent.model.dataplane import Backend
from tests.lab import slow_answers, watch
from tests.lab.container import Process, wait_until
from tests.lab.lab import Lab
from tests.lab.pace import BACKEND, patience

# With the kernel's ESP it has not been shown that the branch takes what comes by the older child.
pytestmark = pytest.mark.skipif(resolve(BACKEND) is Backend.KERNEL, reason="shown with ESP in user space only")

SITE, CLIENT, HUB, OTHER_HUB = "hospital-1", "hospital-1-host", "centre", "cloud"
# The subnet that both hubs serve: each has its own machine at that address.
SHARED, SHARED_SERVERS, SHARED_ADDRESS = "centre+cloud", ("centre-shared", "cloud-shared"), "10.50.0.10"
ONE, SERVER, ADDRESS = "centre", "centre-server", "10.10.0.10"
READY_S = 10.0
MOVE_S = 30.0
DRILL_S = 60.0
# What came before and after is part of it.
STEADY_S = 1.0


def test_that_they_come_by_the_hub_that_is_drained(lab: Lab) -> None:
    with asked(lab, SHARED_ADDRESS, SHARED_SERVERS) as told:
        try:
            _ask(lab, HUB, "drain")
            watch.wait_for(lab, SITE, "it is at the other hub", watch.carried(SHARED, peer=OTHER_HUB), MOVE_S)
        finally:
            time.sleep(patience(STEADY_S))
            _ask(lab, HUB, "undrain")
        watch.wait_for(lab, SITE, "it is back", watch.carried(SHARED, peer=HUB), MOVE_S)
    assert told["asked"] > 100 and told["unanswered"] == []


def test_that_they_come_by_a_hub_that_is_drained_as_soon_as_it_was_moved_to(lab: Lab) -> None:
    """The bundle goes back within the second or two in which the hub that it left still has its child, an older one."""
    there = watch.carried(SHARED, peer=OTHER_HUB)
    with asked(lab, SHARED_ADDRESS, SHARED_SERVERS) as told:
        try:
            _order(lab, HUB, "drain")
            watch.wait_for(lab, SITE, "it is at the other hub", there, MOVE_S)
            _order(lab, HUB, "undrain")
            watch.wait_for(lab, SITE, "the first is willing", lambda report: there(report) and _willing(report), MOVE_S)
            _order(lab, OTHER_HUB, "drain")
            watch.wait_for(lab, SITE, "it is back", watch.carried(SHARED, peer=HUB), MOVE_S)
        finally:
            time.sleep(patience(STEADY_S))
            for hub in (HUB, OTHER_HUB):
                _order(lab, hub, "undrain")
    assert told["asked"] > 100 and told["unanswered"] == []


@pytest.mark.parametrize(
    ("kind", "name", "bundle", "address", "servers"),
    [("hub", HUB, SHARED, SHARED_ADDRESS, SHARED_SERVERS), ("uplink", "wired", ONE, ADDRESS, (SERVER,))],
)
def test_that_they_come_while_one_is_taken_out_for_a_drill(
    lab: Lab, kind: str, name: str, bundle: str, address: str, servers: tuple[str, ...]
) -> None:
    with asked(lab, address, servers) as told:
        began = _ask(lab, SITE, "drill", kind, name)
        watch.wait_for(lab, SITE, "it is back", watch.carried(bundle, uplink="wired", peer=HUB), MOVE_S)
    assert "all have left" in began
    assert told["asked"] > 100 and told["unanswered"] == []


@contextmanager
def asked(lab: Lab, address: str, servers: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The client asks for the time of the block; afterwards the yielded says how many questions, and which of them had
    no answer."""
    told: dict[str, Any] = {}
    with ExitStack() as stack:
        for server in servers:
            stack.enter_context(_running(lab, server, "serve", address))
        process, log = stack.enter_context(_running(lab, CLIENT, "ask", address))
        time.sleep(patience(STEADY_S))
        yield told
        time.sleep(patience(STEADY_S))
        process.signal(signal.SIGTERM)
        assert process.wait(READY_S) == 0
        told.update(json.loads(log.read_text().splitlines()[-1]))


@contextmanager
def _running(lab: Lab, host: str, end: str, address: str) -> Iterator[tuple[Process, Path]]:
    log = lab.path(f"/run/lab/logs/slow-{end}-{host}.log")
    with open(log, "wb") as out:
        argv = [sys.executable, "-S", slow_answers.__file__, end, address]
        process = lab.container.spawn(argv, namespace=host, stdout=out)
    try:
        wait_until(f"{host}: {end}", lambda: "ready" in log.read_text(), READY_S)
        yield process, log
    finally:
        process.signal(signal.SIGKILL)
        process.close()


def _willing(report: Status) -> bool:
    return all(path.ready for path in report.paths if path.peer == HUB)


def _order(lab: Lab, hub: str, command: str) -> None:
    """As `cpe-agent drain` does, without starting Python first."""
    ask(lab.path(f"/run/{hub}/run/control.sock"), command, patience(READY_S))


def _ask(lab: Lab, site: str, *command: str) -> str:
    config = str(lab.site(site).inside / "agent.yaml")
    argv = [sys.executable, "-m", "cpe_agent", *command, "--config", config]
    done = lab.site(site).run(*argv, timeout_s=DRILL_S, check=False)
    # No pair of this network has a probe, so a drill measures nothing itself.
    assert done.status in (0, exits.DRILL_UNMEASURED), done
    return done.stdout
