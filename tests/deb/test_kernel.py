"""The package, installed and booted with systemd on a kernel that has ESP: locked from the start, then a site that
carries people's packets in the kernel's tunnels, and again after a power cut by which the clock has lost years.

`make test-deb` runs it with `tests.guest.kernel_tests`: in a guest, unless this machine's kernel has ESP. In order:
each test finds the box as the one before has left it. What depends on the package and not on the kernel is for
test_booted. A clock cannot be moved for a lab alone, so that is done in a guest only.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpe_agent.model.dataplane import Backend
from tests.deb import tree
from tests.deb.booted import Booted
from tests.deb.test_booted import AGENT, BOOT, CHARON, HOST, NEW_KERNEL, NO_TABLE, SITE
from tests.lab import watch
from tests.lab.container import wait_until
from tests.lab.lab import Lab
from tests.lab.newcomer import new_token
from tests.lab.pace import BACKEND, patience
from tests.lab.provision import provision
from tests.lab.topology import SMALL
from tests.scenarios.looking import CENTRE_PAGE

pytestmark = [
    pytest.mark.timeout(patience(300)),
    pytest.mark.skipif(Backend.KERNEL.value != BACKEND, reason="make test-deb runs it where the kernel has ESP"),
]

# Where the launcher leaves what a guest is asked.
IN_A_GUEST = Path("/sys/firmware/qemu_fw_cfg/by_name/opt/cpe").exists()
LONG_AGO = 1_577_836_800.0  # 2020
UP_S = 60.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(SMALL, name="booted-kernel") as running:
        provision(running)
        running.controller.start()
        running.site("centre").start()
        watch.wait_all_up(running, UP_S, ["centre"])
        yield running


@pytest.fixture(scope="module", params=sorted(tree.CODENAMES))
def box(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Booted]:
    booted = Booted(lab, SITE, tree.left_installed(str(request.param)))
    _forget(lab)
    try:
        booted.boot()
        yield booted
    finally:
        booted.end()


def _forget(lab: Lab) -> None:
    """As a kernel that has just started."""
    lab.run(SITE, sys.executable, "-c", NO_TABLE, check=False)
    lab.run(SITE, "sh", "-c", NEW_KERNEL)
    assert "cpe" not in lab.run(SITE, "nft", "list", "tables").stdout


def _forwards(lab: Lab) -> bool:
    return lab.run(SITE, "cat", "/proc/sys/net/ipv4/ip_forward").stdout.strip() == "1"


def _wait_well(box: Booted) -> dict[str, object]:
    """Until its status is good; its report."""
    wait_until("its status is good", lambda: box.shell("cpe-agent status", check=False).status == 0, UP_S, 0.5)
    told: dict[str, object] = json.loads(box.shell("cpe-agent status --json").stdout)
    return told


def _page(lab: Lab) -> str:
    return lab.fetch(HOST, CENTRE_PAGE) or ""


def _tunnelled(lab: Lab) -> int:
    """Bytes that the kernel's tunnels at the box have carried, both ways."""
    words = lab.run(SITE, "ip", "-s", "xfrm", "state").stdout.split("lifetime current:")[1:]
    return sum(int(part.split("(bytes)")[0].strip()) for part in words)


def test_that_a_new_box_boots_locked(lab: Lab, box: Booted) -> None:
    for unit in (AGENT, CHARON, BOOT):
        assert box.shown(unit, "ActiveState") == "active", unit
    assert "table inet cpe_agent" in box.shell("nft list tables").stdout and not _forwards(lab)
    assert "no site yet" in box.shown(AGENT, "StatusText")
    assert box.shell("systemctl --failed --no-legend").stdout == ""


def test_that_a_token_makes_it_a_site_with_the_kernels_tunnels(lab: Lab, box: Booted) -> None:
    # Of the box of another Debian release, if there was one.
    token = new_token(lab, SITE, replace=True)
    said = box.shell(f"cpe-agent enroll {token}", timeout_s=UP_S)
    assert said.stdout == f"This box is {SITE} now.\n"
    assert _wait_well(box)["backend"] == Backend.KERNEL.value
    before = _tunnelled(lab)
    assert "at centre." in _page(lab)
    assert _tunnelled(lab) > before
    states = lab.run(SITE, "ip", "xfrm", "state").stdout
    assert states.count("encap type espinudp") >= 2 * 3  # both ways: a probe on each path, and the traffic
    assert "ipsec0" not in lab.run(SITE, "ip", "link").stdout
    assert box.shell("cpe-agent verify", timeout_s=UP_S).status == 0
    assert lab.leaked() == {}


def test_that_it_boots_locked_and_comes_back_by_itself(lab: Lab, box: Booted) -> None:
    issued = _wait_well(box)["document_issued"]
    assert isinstance(issued, float)
    box.end()
    _forget(lab)
    assert not _forwards(lab)
    if IN_A_GUEST:
        time.clock_settime(time.CLOCK_REALTIME, LONG_AGO)
    box.boot()
    said = box.shell(f"journalctl -b -o cat -u {BOOT}").stdout
    assert "Locked as the document (epoch 1, version " in said, said
    if IN_A_GUEST:
        assert "behind, and was set forward." in said, said
        assert time.time() >= issued
    locked = int(box.shown(BOOT, "ExecMainExitTimestampMonotonic"))
    assert 0 < locked <= int(box.shown("network-pre.target", "ActiveEnterTimestampMonotonic"))
    assert locked <= int(box.shown(CHARON, "ExecMainStartTimestampMonotonic"))
    assert _wait_well(box)["backend"] == Backend.KERNEL.value
    assert "at centre." in _page(lab)
    assert box.shell("cpe-agent verify", timeout_s=UP_S).status == 0
    assert lab.leaked() == {}
