"""Does the kernel's ESP carry what is listed and nothing else, and does it come back when somebody takes it away?

Kernel backend only, and short enough for every run: one hub and one branch; all other scenarios drive both backends.
What is flushed here is what charon put there: it does not look at it again, so the agent must.
"""

from __future__ import annotations

from functools import partial

import pytest

from cpe_agent.edge.ipsec import resolve
from cpe_agent.model.dataplane import Backend
from tests.lab import watch
from tests.lab.container import wait_until
from tests.lab.lab import Lab
from tests.lab.pace import BACKEND
from tests.lab.site import RunningSite
from tests.scenarios.looking import CENTRE_PAGE, SHARED_PAGE, verified

pytestmark = pytest.mark.skipif(resolve(BACKEND) is not Backend.KERNEL, reason="this kernel has no ESP")

EVENT_S = 1.0  # noticed by an event, mended at once
AGAIN_S = 20.0
MOVE_S = 10.0
STRAY = ("src", "10.101.0.0/24", "dst", "10.10.0.0/25", "dir", "out", "action", "allow", "priority", "5")


@pytest.fixture
def lab(kernel_lab: Lab) -> Lab:
    return kernel_lab


def test_that_the_kernel_encrypts(lab: Lab) -> None:
    assert {watch.status(lab, name).backend for name in lab.sites} == {"kernel"}
    states = lab.run("hospital-1", "ip", "xfrm", "state").stdout
    assert states.count("encap type espinudp") >= 2 * 3  # both ways: a probe on each path, and the traffic
    assert "ipsec0" not in lab.run("hospital-1", "ip", "link").stdout


def test_that_a_host_gets_the_pages_that_its_site_may(lab: Lab) -> None:
    for url in (CENTRE_PAGE, SHARED_PAGE):
        assert "at centre." in (lab.fetch("hospital-1-host", url) or "")


@pytest.mark.parametrize(
    ("sender", "to"),
    [("hospital-1-host", "203.0.113.202"), ("centre-server", "10.101.0.10"), ("net-hospital-1-wired", "10.101.0.10")],
)
def test_that_what_is_not_listed_is_not_delivered(lab: Lab, sender: str, to: str) -> None:
    offer = lab.offer(sender, to, "udp", 20)
    assert offer.entered == 20
    assert offer.arrived == {}


@pytest.mark.parametrize("name", ["hospital-1", "centre"])
@pytest.mark.parametrize("what", ["state", "policy"])
def test_that_what_is_flushed_comes_again(lab: Lab, name: str, what: str) -> None:
    site = lab.site(name)
    blocks, leaked, spis = _blocks(site), lab.leaked(), _spis(site)
    assert blocks and spis
    site.run("ip", "xfrm", what, "flush")
    wait_until("the block policies are back", lambda: _blocks(site) == blocks, EVENT_S)
    # Whoever is faster: the comparison with charon, or on a busy machine the probes that are not answered.
    wait_until("its tunnels are new ones", lambda: _spis(site) and not spis & _spis(site), AGAIN_S)
    wait_until("pages come again", lambda: lab.fetch("hospital-1-host", CENTRE_PAGE, 1), AGAIN_S)
    watch.wait_all_up(lab, AGAIN_S)
    assert lab.leaked() == leaked


def test_that_a_tunnels_policy_that_is_opened_is_shut(lab: Lab) -> None:
    """Updated to let everything pass without ESP, in the place of charon's own."""
    site = lab.site("hospital-1")
    selector = ["src", "10.101.0.0/24", "dst", "10.10.0.0/24", "dir", "out"]
    assert "tmpl" in site.run("ip", "xfrm", "policy", "get", *selector).stdout
    told = _told(site)
    site.run("ip", "xfrm", "policy", "update", *selector, "action", "allow", "priority", "5")
    lab.offer("hospital-1-host", "10.10.0.10", "udp", 20)
    wait_until("it is noticed", lambda: _told(site) > told, 2 * EVENT_S)
    wait_until("pages come again", lambda: lab.fetch("hospital-1-host", CENTRE_PAGE, 1), AGAIN_S)
    assert "tmpl" in site.run("ip", "xfrm", "policy", "get", *selector).stdout


def test_that_each_lock_alone_keeps_cleartext_in(lab: Lab) -> None:
    """The agent is away, so that nobody repairs what is taken off. What is sent is for a listed pair, first through
    tunnels and then without any. Once, as an agent takes long to start here; test_faults has all four cases."""
    site = lab.site("hospital-1")
    leaked = lab.leaked()
    site.agent.stop()
    try:
        _verify_tells_of_a_stray(lab)
        ruleset = site.run("nft", "--stateless", "list", "table", "inet", "cpe_agent").stdout
        site.run("nft", "delete", "table", "inet", "cpe_agent")
        assert site.run("sysctl", "-n", "net.ipv4.ip_forward").stdout.strip() == "1"
        assert lab.offer("hospital-1-host", "10.10.0.10", "udp", 50).entered == 50
        assert lab.leaked() == leaked
        site.end_tunnels()
        _nothing_is_delivered(lab)
        site.run("nft", "-f", "-", input=ruleset)
        for priority in _own_rules(site):
            site.run("ip", "rule", "del", "priority", priority)
        site.run("ip", "xfrm", "policy", "deleteall", "action", "block")
        _nothing_is_delivered(lab)
        assert lab.leaked() == leaked
        site.run("ip", "xfrm", "policy", "add", *STRAY)
    finally:
        if not site.charon.running:
            site.start_charon()
        site.agent.start()
    wait_until("the stray policy has gone", partial(_has_no_stray, site), AGAIN_S)


def test_that_a_stray_policy_goes(lab: Lab) -> None:
    """It would let what is for a protected subnet pass in cleartext."""
    site = lab.site("hospital-1")
    site.run("ip", "xfrm", "policy", "add", *STRAY)
    wait_until("it has gone", partial(_has_no_stray, site), 2 * EVENT_S)


def test_that_a_blackhole_fails_over_and_a_planned_move_loses_nothing_up(lab: Lab) -> None:
    uplink = lab.site("hospital-1").uplink("wired")
    with lab.flow("hospital-1-host", "centre-server") as flow:
        flow.wait_flowing(5)
        uplink.blackhole()
        watch.wait_for(lab, "hospital-1", "it is carried by lte", watch.carried("centre", uplink="lte"), MOVE_S)
        seen = flow.received()
        wait_until("it goes on", lambda: all(n > b for n, b in zip(flow.received(), seen, strict=True)), MOVE_S)
    with lab.flow("hospital-1-host", "centre-server") as planned:
        planned.wait_flowing(5)
        uplink.heal()
        watch.wait_for(lab, "hospital-1", "it is back", watch.carried("centre", uplink="wired"), MOVE_S)
    assert planned.result.up.lost == 0, planned.result
    assert planned.result.down.lost <= 6, planned.result


def _blocks(site: RunningSite) -> list[str]:
    listed = site.run("ip", "xfrm", "policy", "list", "action", "block").stdout
    return sorted(line.strip() for line in listed.splitlines() if line.startswith("src "))


def _spis(site: RunningSite) -> set[str]:
    return {names[-1] for names in site.kernel_sas()}


def _told(site: RunningSite) -> int:
    """How often its agent has found IKE_SAs broken."""
    return site.agent.log.read_text().count('"event": "ipsec_broken"')


def _own_rules(site: RunningSite) -> list[str]:
    """Priorities of the rules that keep what enters from a LAN, or is for a protected subnet, out of the main table."""
    priorities = [line.partition(":")[0] for line in site.run("ip", "rule").stdout.splitlines()]
    return [priority for priority in priorities if 110 <= int(priority) < 140]


def _has_no_stray(site: RunningSite) -> bool:
    return STRAY[3] not in site.run("ip", "xfrm", "policy").stdout


def _verify_tells_of_a_stray(lab: Lab) -> None:
    """And of nothing else; and the other lock holds meanwhile. What it reads in sync is with the crashes."""
    site, leaked = lab.site("hospital-1"), lab.leaked()
    site.run("ip", "xfrm", "policy", "add", *STRAY)
    status, told = verified(site)
    assert status == 1 and told.startswith("hospital-1: 1 difference "), told
    assert "foreign  policy out 10.101.0.0/24 to 10.10.0.0/25" in told, told
    assert lab.offer("hospital-1-host", "10.10.0.10", "udp", 20).entered == 20
    assert lab.leaked() == leaked
    site.run("ip", "xfrm", "policy", "delete", *STRAY[:6])


def _nothing_is_delivered(lab: Lab) -> None:
    offer = lab.offer("hospital-1-host", "10.10.0.10", "udp", 50)
    assert (offer.entered, offer.delivered) == (50, 0)
