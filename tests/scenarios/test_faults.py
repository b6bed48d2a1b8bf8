"""Do uplinks, charons and hubs fail without anybody at the site having to do something?

Outages are bounded generously here, as the machine may be busy; `make bench` judges milliseconds.
"""

from __future__ import annotations

import signal

import pytest

from cpe_agent.model.dataplane import Backend
from tests.lab import watch
from tests.lab.container import wait_until
from tests.lab.lab import Lab
from tests.scenarios.looking import BEST, CENTRE_PAGE, SHARED_PAGE

# A hub or a charon that died is noticed by probes, and its successor is dialled with growing waits.
REVIVAL_S = 20.0


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
