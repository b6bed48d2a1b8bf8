"""An installer's whole work on a clean Debian, booted with systemd, in a lab with the real controller and a real hub.

In order: each test finds the box as the one before has left it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.deb import tree
from tests.deb.booted import Booted
from tests.lab import watch
from tests.lab.container import wait_until
from tests.lab.lab import Lab
from tests.lab.newcomer import new_token
from tests.lab.provision import provision
from tests.lab.topology import NETWORK

pytestmark = pytest.mark.timeout(1200)

SITE, HOST, SERVER = "van-1", "van-1-host", "centre-server"
SHORT = replace(
    NETWORK,
    sites=tuple(site for site in NETWORK.sites if site.name in ("centre", SITE)),
    nats=tuple(nat for nat in NETWORK.nats if nat.name == "cgnat"),
)
AGENT, CHARON = "cpe-agent.service", "cpe-charon.service"
FORWARDING = "cat /proc/sys/net/ipv4/ip_forward"
RULES = "python3 -c 'import nftables; print(nftables.Nftables().cmd(\"list table inet cpe_agent\")[1])'"
UP_S = 60.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    installed = tree.installed()
    assert installed.is_dir()
    with Lab(SHORT, name="booted") as running:
        provision(running)
        running.controller.start()
        running.site("centre").start()
        watch.wait_all_up(running, UP_S, ["centre"])
        yield running


@pytest.fixture(scope="module")
def box(lab: Lab) -> Iterator[Booted]:
    booted = Booted(lab, SITE, tree.installed())
    try:
        booted.boot()
        yield booted
    finally:
        booted.end()


def _pings(lab: Lab) -> bool:
    address = str(lab.network.address_of(SERVER))
    return lab.run(HOST, "ping", "-n", "-c", "1", "-W", "1", address, check=False).status == 0


def _us(box: Booted, unit: str, name: str) -> int:
    return int(box.shown(unit, name) or 0)


class TestInstaller:
    def test_that_a_new_box_is_locked_before_its_network_and_ready(self, box: Booted) -> None:
        assert box.shown("cpe-agent-boot.service", "Result") == "success"
        locked = _us(box, "cpe-agent-boot.service", "ExecMainExitTimestampMonotonic")
        network = _us(box, "network-pre.target", "ActiveEnterTimestampMonotonic")
        charon = _us(box, CHARON, "ExecMainStartTimestampMonotonic")
        assert 0 < locked <= network and locked <= charon
        assert box.shown(AGENT, "ActiveState") == "active"
        assert "no site yet" in box.shown(AGENT, "StatusText")
        assert "table inet cpe_agent" in box.shell(RULES).stdout
        assert box.shell(FORWARDING).stdout.strip() == "0"
        assert box.shell("systemctl --failed --no-legend 'cpe-*'").stdout == ""

    def test_that_it_is_a_site_after_three_commands(self, lab: Lab, box: Booted) -> None:
        # The first was `apt install ./cpe-agent_*.deb` (tree.installed).
        token = new_token(lab, SITE)
        enrolled = box.shell(f"cpe-agent enroll {token}")
        assert enrolled.stdout == f"This box is {SITE} now.\n"
        wait_until("a server of the centre answers", lambda: _pings(lab), UP_S)
        wait_until("its status is good", lambda: box.shell("cpe-agent status", check=False).status == 0, UP_S)
        said = box.shell("cpe-agent status").stdout
        assert SITE in said and "lte.centre.wan" in said
        assert all(len(line) <= 80 for line in said.splitlines())
        box.wait_shown(AGENT, "StatusText", f"{SITE} (document 1.", 20)
        assert box.shell("cpe-agent verify").status == 0

    def test_that_the_daemon_is_a_user_with_two_capabilities(self, box: Booted) -> None:
        pid = box.shown(AGENT, "MainPID")
        status = box.shell(f"cat /proc/{pid}/status").stdout
        uid = box.shell("id -u cpe-agent").stdout.strip()
        assert re.search(rf"^Uid:\s+{uid}\s+{uid}\s", status, re.M), status
        # CAP_NET_ADMIN is bit 12, CAP_NET_RAW is bit 13.
        assert re.search(r"^CapEff:\s+0*3000$", status, re.M), status
        assert re.search(r"^CapBnd:\s+0*3000$", status, re.M), status

    def test_that_stopping_leaves_the_data_plane(self, lab: Lab, box: Booted) -> None:
        with lab.flow(HOST, SERVER, rate=100) as flow:
            flow.wait_flowing(20)
            box.shell(f"systemctl stop {AGENT}")
            time.sleep(2)
            assert "table inet cpe_agent" in box.shell(RULES).stdout
            assert box.shell(FORWARDING).stdout.strip() == "1"
            box.shell(f"systemctl start {AGENT}")
            time.sleep(2)
            assert flow.stop().lost == 0

    def test_that_an_upgrade_drops_no_packet(self, lab: Lab, box: Booted) -> None:
        following = tree.package(following=True)
        box.put(following, following.name)
        before = box.shown(AGENT, "MainPID"), box.shown(CHARON, "MainPID")
        with lab.flow(HOST, SERVER, rate=100) as flow:
            flow.wait_flowing(20)
            box.shell(f"dpkg -i ./{following.name}", timeout_s=180)
            box.wait_shown(AGENT, "ActiveState", "active", 60)
            time.sleep(3)
            result = flow.stop()
        assert result.lost == 0
        after = box.shown(AGENT, "MainPID"), box.shown(CHARON, "MainPID")
        assert before[0] != after[0] and before[1] == after[1]
        assert tree.NEXT in box.shell("dpkg -s cpe-agent").stdout

    def test_that_a_hanging_charon_is_restarted_by_root(self, lab: Lab, box: Booted) -> None:
        pid = box.shown(CHARON, "MainPID")
        box.shell(f"kill -STOP {pid}")
        wait_until("charon is another one", lambda: box.shown(CHARON, "MainPID") not in (pid, "0"), 90, interval_s=0.5)
        wait_until("a server of the centre answers", lambda: _pings(lab), UP_S)
        assert box.shell("test -e /run/cpe-agent/restart-charon", check=False).status == 1

    def test_that_an_agent_that_shows_no_life_is_started_anew(self, lab: Lab, box: Booted) -> None:
        pid = box.shown(AGENT, "MainPID")
        box.shell(f"kill -STOP {pid}")
        assert _pings(lab)
        wait_until("the agent is another one", lambda: box.shown(AGENT, "MainPID") not in (pid, "0"), 120, interval_s=1)
        box.wait_shown(AGENT, "ActiveState", "active", 60)
        assert int(box.shown(AGENT, "NRestarts")) >= 1

    def test_that_removing_takes_everything_away_and_purging_the_keys(self, lab: Lab, box: Booted) -> None:
        said = box.shell("dpkg -r cpe-agent", timeout_s=120).stdout
        assert "Forwarding is off" in said
        assert box.shell(FORWARDING).stdout.strip() == "0"
        assert box.shell(RULES).stdout.strip() == ""
        assert box.shell("systemctl is-active cpe-charon.service", check=False).status != 0
        assert not _pings(lab)
        assert box.shell("test -d /var/lib/cpe-agent/identity", check=False).status == 0
        said = box.shell("dpkg -P cpe-agent", timeout_s=120).stdout
        assert "removing this site's key" in said
        assert box.shell("ls -d /var/lib/cpe-agent /etc/cpe-agent", check=False).stdout == ""
