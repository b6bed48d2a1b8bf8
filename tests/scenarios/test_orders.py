"""What an operator says of one site at the controller's socket: a hub is drained, a van shut out and replaced."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cpe_agent.model.condition import Status
from tests.lab import watch
from tests.lab.container import Completed, wait_until
from tests.lab.lab import Lab
from tests.lab.provision import CONTROLLER_STATE, provision
from tests.scenarios.conftest import wait_whole
from tests.scenarios.publishing import served

SHARED = "centre+cloud"
HUBS = ("centre", "cloud")
START_S = 40.0
MOVE_S = 20.0
# The document travels, and the hub ends what it no longer wants.
SHUT_OUT_S = 10.0
# It is up in half of that when it is let in.
DIALS_S = 10.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(name="orders") as lab:
        provision(lab)
        lab.start()
        wait_whole(lab, START_S)
        yield lab
        assert lab.leaked() == {}, "private packets reached the internet"


def test_that_the_controller_drains_a_hub_without_a_loss(lab: Lab) -> None:
    at_cloud = watch.carried(SHARED, peer="cloud")
    at_centre = watch.carried(SHARED, peer="centre")
    with lab.flow("hospital-1-host", "centre-shared", twin="cloud-shared", rate=200) as flow:
        flow.wait_flowing(5)
        assert "make before break" in _order(lab, "drain", "centre").stdout
        watch.wait_for(lab, "hospital-1", "the shared bundle is at the cloud", at_cloud, MOVE_S)
        _order(lab, "undrain", "centre")
        watch.wait_for(lab, "hospital-1", "the shared bundle is back", at_centre, MOVE_S)
    assert flow.result.up.lost == 0, flow.result.up


def test_that_a_revoked_van_is_out_and_a_replaced_one_in_again(lab: Lab) -> None:
    # All that the drain has moved is back, and nothing is kept where it was.
    wait_whole(lab)
    assert _ike_sas(lab, "van-1") >= len(HUBS)
    with lab.flow("hospital-1-host", "centre-server", rate=100) as flow:
        flow.wait_flowing(5)
        assert "refuses it from now on" in _order(lab, "revoke", "van-1").stdout
        wait_until("both hubs have ended it", lambda: not _ike_sas(lab, "van-1"), SHUT_OUT_S)
    # The others do not feel it.
    assert (flow.result.up.lost, flow.result.down.lost) == (0, 0)
    watch.wait_for(
        lab,
        "van-1",
        "the controller refuses it",
        lambda report: any(c.type == "ControllerUnreachable" for c in report.conditions),
        SHUT_OUT_S,
    )

    _order(lab, "replace", "van-1")
    for hub in HUBS:
        version = served(lab, hub)["version"]
        watch.wait_for(lab, hub, "it knows van-1 again", partial(_obeys, version), SHUT_OUT_S)
    # The old box dials all the time, with a certificate that is good for months: its name is nobody's any more.
    lab.site("van-1").agent.kill()
    lab.site("van-1").agent.start()
    time.sleep(DIALS_S)
    assert _ike_sas(lab, "van-1") == 0
    # The new box has its own.
    _order(lab, "cert", "van-1", "--out", "/run/van-1")
    outside = lab.site("van-1").outside
    for made, name in (("van-1.key", "key.pem"), ("van-1.pem", "certificate.pem"), ("root.pem", "ca.pem")):
        shutil.move(outside / made, outside / name)
    lab.site("van-1").agent.kill()
    lab.site("van-1").agent.start()
    watch.wait_all_up(lab, START_S)


def _order(lab: Lab, *words: str) -> Completed:
    argv = [sys.executable, "-m", "cpe_controller", "--state", str(Path(CONTROLLER_STATE)), *words]
    return lab.run(lab.network.controller, *argv, timeout_s=30)


def _obeys(version: int, report: Status) -> bool:
    return report.document_version == version


def _ike_sas(lab: Lab, peer: str) -> int:
    """How many at all hubs have proved to be some box of this site, as charon says."""
    found = 0
    for hub in HUBS:
        site = lab.site(hub)
        listed = site.run("swanctl", "--list-sas", "--uri", f"unix://{site.vici_socket}").stdout
        established = [part for part in re.split(r"^(?=\S)", listed, flags=re.MULTILINE) if "ESTABLISHED" in part]
        found += sum(f"{peer}.lab.cpe'" in part for part in established)
    return found
