"""Does what a broken controller says change nothing, and is it reported? With real agents, also when they restart."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from cpe_agent.model.condition import Status
from tests.lab import impostor, watch
from tests.lab.console import no_controller
from tests.lab.container import wait_until
from tests.lab.init import LOGS
from tests.lab.lab import CONTROLLER_STATE, Lab
from tests.lab.pace import patience
from tests.lab.provision import CONTROLLER_PORT
from tests.scenarios.conftest import wait_whole
from tests.scenarios.looking import ask_status, data_plane
from tests.scenarios.publishing import publish, served

SITE = "hospital-1"
# A stream that is cut is noticed at once; a first look at the impostor comes within the follower's first waits.
SAID_S = 40.0
BACK_S = 60.0
STEADY_S = 3.0
YEAR_S = 365 * 86_400.0

# What answers -> words of the condition.
FAULTS = {
    "500": "answered 500 Internal Server Error",
    "html": "is this our controller?",
    "empty": "empty body",
    "mute": "connected, but it does not answer",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_that_a_controller_that_talks_nonsense_changes_nothing(lab: Lab, fault: str) -> None:
    wait_whole(lab)
    before = data_plane(lab, SITE)
    version = watch.status(lab, SITE).document_version
    with lab.flow("hospital-1-host", "centre-server") as flow:
        flow.wait_flowing(5)
        with no_controller(lab), answering(lab, fault):
            watch.wait_for(lab, SITE, f"it says {FAULTS[fault]}", lambda report: FAULTS[fault] in _lost(report), SAID_S)
            time.sleep(patience(STEADY_S))
            shown = ask_status(lab, SITE)
            assert shown.status == 1 and "ControllerUnreachable" in shown.stdout
            assert data_plane(lab, SITE) == before
            # A restart finds the last good document on the disk, and the same nonsense.
            lab.site(SITE).agent.kill()
            lab.site(SITE).agent.start()
            back = watch.wait_for(lab, SITE, "it says so again", lambda report: FAULTS[fault] in _lost(report), SAID_S)
            assert back.document_version == version and back.document_confirmed
            assert data_plane(lab, SITE) == before
        assert flow.stop().lost == 0
    watch.wait_for(lab, SITE, "the controller is heard again", lambda report: not _lost(report), BACK_S)
    assert watch.status(lab, SITE).document_version == version


# How wrong the clock is -> the condition that says so. One that runs ahead cannot be told from a right one.
CLOCKS = {"in 1976": (-50 * YEAR_S, "ClockUntrusted"), "ten years ahead": (10 * YEAR_S, "DocumentExpired")}


@pytest.mark.parametrize("clock", CLOCKS)
def test_that_a_start_with_a_wrong_clock_and_no_controller_goes_on_as_before(lab: Lab, clock: str) -> None:
    ahead_s, condition = CLOCKS[clock]
    box = lab.site(SITE)
    wait_whole(lab)
    before = data_plane(lab, SITE)
    version = watch.status(lab, SITE).document_version
    try:
        with no_controller(lab), lab.flow("hospital-1-host", "centre-server") as flow:
            flow.wait_flowing(5)
            box.agent.kill()
            box.clock_ahead_s = ahead_s
            box.agent.start()
            watch.wait_for(lab, SITE, f"it says {condition}", partial(_says, condition), SAID_S)
            report = watch.wait_for(lab, SITE, "it goes on", watch.all_up, SAID_S)
            assert report.document_version == version
            time.sleep(patience(STEADY_S))
            assert data_plane(lab, SITE) == before
            assert flow.stop().lost == 0
        # And a newer document is taken up all the same.
        taken = served(lab, SITE)
        newer = taken["version"] + 1
        if ahead_s < 0:
            publish(lab, SITE, taken | {"version": newer}, newer)
            watch.wait_for(lab, SITE, "it takes a newer one", lambda now: now.document_version == newer, BACK_S)
    finally:
        box.clock_ahead_s = 0.0
        box.agent.restart()
    watch.wait_for(lab, SITE, "the clock is right again", lambda now: not _says(condition, now), BACK_S)


def _says(condition: str, report: Status) -> bool:
    return condition in {one.type for one in report.conditions}


@contextmanager
def answering(lab: Lab, what: str, port: int = CONTROLLER_PORT) -> Iterator[None]:
    """Something that answers `what` has the controller's address for the time of the block."""
    log = lab.path(f"{LOGS}/impostor.log")
    argv = [sys.executable, str(Path(impostor.__file__)), what, "--port", str(port)]
    with open(log, "wb") as stdout:
        process = lab.container.spawn(
            [*argv, "--state", str(CONTROLLER_STATE)], namespace=lab.network.controller, stdout=stdout
        )
    try:
        wait_until("the impostor serves", lambda: log.read_bytes().startswith(b"ready"), 20)
        yield
    finally:
        process.signal(signal.SIGKILL)
        process.wait(5)
        process.close()


def _lost(report: Status) -> str:
    return next((c.reason for c in report.conditions if c.type == "ControllerUnreachable"), "")
