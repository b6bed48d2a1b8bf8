"""Do uplinks, charons and hubs fail without anybody at the site having to do something?

Outages are bounded generously here, as the machine may be busy; `make bench` judges milliseconds.
"""

from __future__ import annotations

import signal

import pytest

from cpe_agent.model.dataplane import Backend
from tests.lab import watch
from tests.lab.container import wait_until
from tests.lab.faults import Direction
from tests.lab.lab import Lab
from tests.lab.pace import patience
from tests.scenarios.conftest import RECOVERY_S
from tests.scenarios.looking import BEST, CENTRE_PAGE, SHARED_PAGE

OUTAGE_MS = 1000.0
# A hub or a charon that died is noticed by probes, and its successor is dialled with growing waits.
REVIVAL_S = 20.0


@pytest.mark.parametrize("direction", ["both", "up", "down"])
def test_that_a_blackhole_fails_over_and_heals(lab: Lab, direction: Direction) -> None:
    uplink = lab.site("hospital-1").uplink("wired")
    with lab.flow("hospital-1-host", "centre-server") as flow:
        flow.wait_flowing(5)
        uplink.blackhole(direction)
        try:
            watch.wait_for(lab, "hospital-1", "it is carried over lte", watch.carried("centre", uplink="lte"), 5)
            at_least = sum(flow.received()) + 20
            wait_until("packets arrive over lte", lambda: sum(flow.received()) >= at_least, 5)
        finally:
            uplink.heal()
        watch.wait_for(lab, "hospital-1", "it is back", watch.carried("centre", uplink="wired"), RECOVERY_S)
        result = flow.stop()
    assert 100 < result.longest_gap_ms < patience(OUTAGE_MS), result
    # 100 packets a second each way: more than one outage of that length would show here.
    assert result.lost <= 2 * patience(OUTAGE_MS) / 10, result


def test_that_a_cut_link_fails_over_and_heals(lab: Lab) -> None:
    uplink = lab.site("hospital-1").uplink("wired")
    with lab.flow("hospital-1-host", "centre-server") as flow:
        flow.wait_flowing(5)
        uplink.cut()
        try:
            report = watch.wait_for(
                lab, "hospital-1", "it is carried over lte", watch.carried("centre", uplink="lte"), 5
            )
            assert "UplinkDown" in {condition.type for condition in report.conditions}
        finally:
            uplink.restore()
        watch.wait_for(lab, "hospital-1", "it is back", watch.carried("centre", uplink="wired"), RECOVERY_S)
        result = flow.stop()
    assert result.longest_gap_ms < patience(OUTAGE_MS), result


def test_that_losing_the_only_uplink_heals_by_itself(lab: Lab) -> None:
    uplink = lab.site("van-1").uplink("lte")
    uplink.blackhole()
    try:
        watch.wait_for(lab, "van-1", "it says that it is down", lambda r: r.severity.value == "down", 5)
        assert lab.fetch("van-1-host", CENTRE_PAGE, 1) is None
    finally:
        uplink.heal()
    wait_until("the van gets its page again", lambda: lab.fetch("van-1-host", CENTRE_PAGE, 1), REVIVAL_S)


@pytest.mark.parametrize("site", ["van-1", "hospital-1", "centre"])
def test_that_a_killed_charon_is_made_good(lab: Lab, site: str) -> None:
    lab.site(site).charon.kill()
    lab.site(site).start_charon()
    branch = site if site in BEST else "hospital-1"
    wait_until("pages come again", lambda: lab.fetch(f"{branch}-host", CENTRE_PAGE, 1), REVIVAL_S)
    wait_until("the shared page comes again", lambda: lab.fetch(f"{branch}-host", SHARED_PAGE, 1), REVIVAL_S)


def test_that_a_shared_subnet_goes_on_when_a_hub_dies(lab: Lab) -> None:
    centre = lab.site("centre")
    assert "at centre" in (lab.fetch("hospital-1-host", SHARED_PAGE) or "")
    centre.kill()
    try:
        for site in BEST:
            watch.wait_for(lab, site, "it is served by cloud", watch.carried("centre+cloud", peer="cloud"), 10)
            assert "at cloud" in (lab.fetch(f"{site}-host", SHARED_PAGE) or "")
            assert lab.fetch(f"{site}-host", CENTRE_PAGE, 1) is None
    finally:
        centre.start()
    for site in BEST:
        watch.wait_for(
            lab, site, "the centre serves it again", watch.carried("centre+cloud", peer="centre"), RECOVERY_S
        )
        assert "at centre" in (lab.fetch(f"{site}-host", SHARED_PAGE) or "")


@pytest.mark.parametrize("lock", ["routing", "nftables"])
@pytest.mark.parametrize("tunnels", ["up", "down"])
def test_that_each_lock_alone_keeps_cleartext_in(lab: Lab, lock: str, tunnels: str) -> None:
    """The agent is away, so that nobody repairs the lock that is taken off. What is sent is for a listed pair."""
    site = lab.site("hospital-1")
    before = lab.leaked()
    site.agent.stop()
    try:
        if lock == "routing":
            site.run("nft", "delete", "table", "inet", "cpe_agent")
        else:
            for rule in _own_rules(lab):
                site.run("ip", "rule", "del", "priority", rule)
            if site.ipsec is Backend.KERNEL:
                site.run("ip", "xfrm", "policy", "deleteall", "action", "block")
        if tunnels == "down":
            site.end_tunnels()
        assert site.run("sysctl", "-n", "net.ipv4.ip_forward").stdout.strip() == "1"
        offer = lab.offer("hospital-1-host", "10.10.0.10", "udp", 50)
        assert offer.entered == 50
        if tunnels == "down":
            assert offer.delivered == 0
        assert lab.leaked() == before
    finally:
        if not site.charon.running:
            site.start_charon()
        site.agent.start()


def _own_rules(lab: Lab) -> list[str]:
    """Priorities of the rules that keep what enters from a LAN or for a protected subnet out of the main table."""
    lines = lab.site("hospital-1").run("ip", "rule").stdout.splitlines()
    priorities = [line.partition(":")[0] for line in lines]
    return [priority for priority in priorities if 110 <= int(priority) < 140]


def test_that_an_agent_killed_with_its_charon_comes_back(lab: Lab) -> None:
    """As after a power cut that left the kernel's links."""
    site = lab.site("van-1")
    site.kill()
    assert not site.agent.running and not site.charon.running
    site.start()
    wait_until("the van gets its page again", lambda: lab.fetch("van-1-host", CENTRE_PAGE, 1), REVIVAL_S)
    site.agent.stop(signal.SIGTERM)
    site.agent.start()
