"""An operator's first hour on a clean Debian, booted with systemd, at the controller's machine of a lab.

In order: each test finds the machine as the one before has left it. Once for each Debian release.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import takewhile

import pytest

from tests.deb import tree
from tests.deb.booted import Booted
from tests.docs.pages import ROOT, commands
from tests.lab.lab import Lab
from tests.lab.pace import patience
from tests.lab.topology import NETWORK
from tests.scenarios.documented import SERVICE

pytestmark = pytest.mark.timeout(patience(1200))

UNIT = "cpe-controller.service"
INSTALL = "apt install ./cpe-controller_*.deb"
APT_S = 300.0
# Nothing but the machine that the controller is on.
ALONE = replace(NETWORK, sites=(), nats=())


@pytest.fixture(scope="module", params=sorted(tree.CODENAMES))
def release(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def box(release: str) -> Iterator[Booted]:
    files = tree.fetched(release)
    with Lab(ALONE, name=f"controller-{release}") as lab:
        booted = Booted(lab, ALONE.controller, files)
        try:
            booted.boot()
            yield booted
        finally:
            booted.end()


def test_what_the_guide_begins_with(box: Booted, release: str) -> None:
    """Its first lines, each as it stands there, up to a token."""
    deb = tree.package(release, "cpe-controller")
    box.put(deb, deb.name)
    box.put(ROOT / "configs" / "network.yaml", "network.yaml")
    box.shell("mkdir -p /media/safe; ip link set lo up; echo 127.0.0.1 controller.example >>/etc/hosts")
    lines = [command.text for command in commands(ROOT / "docs/CONTROLLER.md")]
    token = next(line for line in lines if line.startswith("cpe-controller token "))
    lines = [*takewhile(lambda line: line != token, lines), token]
    assert lines[0] == INSTALL and SERVICE in lines
    said = ""
    for line in lines:
        done = box.shell(line, input="y\n", timeout_s=APT_S, check=False)
        assert done.status == 0, (line, done, box.shell(f"journalctl -n 20 -o cat -u {UNIT}").stdout)
        if line == INSTALL:
            # There is no network to serve yet: one that starts it all the same is told so, and spoils nothing.
            assert box.shown(UNIT, "ActiveState") == "inactive"
            assert box.shell(f"systemctl start {UNIT}", check=False).status != 0
            box.shell(f"systemctl stop {UNIT}")
        said = done.stdout
    assert re.search(r"cpe1\.[\w-]{40,}", said), said
    assert box.shown(UNIT, "ActiveState") == "active"
    assert "serving" in box.shown(UNIT, "StatusText")
    assert box.shell("cpe-controller status").status == 0


def test_that_it_serves_as_its_own_user(box: Booted) -> None:
    pid = box.shown(UNIT, "MainPID")
    status = box.shell(f"cat /proc/{pid}/status").stdout
    uid = box.shell("id -u cpe-controller").stdout.strip()
    assert re.search(rf"^Uid:\s+{uid}\s+{uid}\s", status, re.M), status
    assert re.search(r"^CapEff:\s+0+$", status, re.M), status
    # TLS for new boxes, which have no certificate yet.
    asked = "import ssl; print(ssl.get_server_certificate(('127.0.0.1', 8444)))"
    assert "BEGIN CERTIFICATE" in box.shell(f'python3 -c "{asked}"').stdout


def test_that_what_root_writes_is_the_services_to_read(box: Booted) -> None:
    box.shell(f"systemctl stop {UNIT}")
    box.shell("cpe-controller renew --root-key /media/safe/root.key && cpe-controller apply network.yaml")
    owners = box.shell("find /var/lib/cpe-controller -printf '%u %p\\n'").stdout.splitlines()
    assert len(owners) > 5 and {line.split()[0] for line in owners} == {"cpe-controller"}, owners
    box.shell(f"systemctl start {UNIT}")
    assert box.shell("cpe-controller status").status == 0


def test_that_an_upgrade_restarts_it(box: Booted, release: str) -> None:
    following = tree.package(release, "cpe-controller", following=True)
    box.shell("rm cpe-controller_*.deb")
    box.put(following, following.name)
    before = box.shown(UNIT, "MainPID")
    assert before != "0"
    box.shell(INSTALL, input="y\n", timeout_s=APT_S)
    assert box.shown(UNIT, "ActiveState") == "active" and box.shown(UNIT, "MainPID") != before
    assert tree.NEXT in box.shell("dpkg -s cpe-controller").stdout


def test_that_it_is_there_after_a_power_cut(box: Booted) -> None:
    box.cut_power()
    box.wait_shown(UNIT, "ActiveState", "active", 30)
    assert box.shell("cpe-controller status").status == 0


def test_that_removing_stops_it_and_purging_leaves_the_networks_keys(box: Booted) -> None:
    box.shell("apt remove cpe-controller", input="y\n", timeout_s=APT_S)
    assert box.shell("pgrep -f cpe-controller", check=False).stdout == ""
    said = box.shell("apt purge cpe-controller", input="y\n", timeout_s=APT_S).stdout
    assert "holds the keys of your network" in said
    assert box.shell("test -e /var/lib/cpe-controller/signing.key", check=False).status == 0
