"""Does the network come up, carry what is listed and nothing else, and can somebody see how it fares?"""

from __future__ import annotations

import pytest

from tests.lab import watch
from tests.lab.container import wait_until
from tests.lab.lab import Lab
from tests.lab.pace import patience
from tests.lab.provision import provision
from tests.scenarios.conftest import START_S, wait_whole
from tests.scenarios.looking import CENTRE_PAGE, CLOUD_PAGE, SHARED_PAGE, ask_status


def test_that_nothing_private_was_seen_on_the_internet_while_it_came_up(lab: Lab) -> None:
    assert lab.leaked() == {}


@pytest.mark.parametrize("host", ["hospital-1-host", "van-1-host"])
@pytest.mark.parametrize(
    ("url", "page"),
    [
        (CENTRE_PAGE, "This is centre-server at centre."),
        (CLOUD_PAGE, "This is cloud-server at cloud."),
        (SHARED_PAGE, "This is centre-shared at centre."),
    ],
)
def test_that_a_host_gets_the_pages_that_its_site_may(lab: Lab, host: str, url: str, page: str) -> None:
    assert (lab.fetch(host, url) or "").strip() == page


@pytest.mark.parametrize(
    ("sender", "to", "site"),
    [
        ("hospital-1-host", "10.102.0.10", "hospital-1"),  # branch to branch
        ("van-1-host", "10.10.0.1", "van-1"),  # the hub's own LAN address is in the pair: the hub refuses it
        ("centre-server", "10.101.0.10", "centre"),  # the wrong one begins
        ("centre-server", "10.20.0.10", "centre"),  # hub to hub
    ],
)
def test_that_what_is_not_listed_is_not_delivered(lab: Lab, sender: str, to: str, site: str) -> None:
    offer = lab.offer(sender, to, "udp", 20)
    assert offer.entered == 20
    assert offer.arrived == {}


def test_that_a_drop_is_counted(lab: Lab) -> None:
    before = watch.status(lab, "centre").dropped_packets["unlisted"]
    lab.offer("centre-server", "10.101.0.10", "udp", 20)
    assert watch.status(lab, "centre").dropped_packets["unlisted"] - before == 20


def test_that_metrics_are_served_inside_the_site_only(lab: Lab) -> None:
    text = lab.run("hospital-1", "curl", "-sf", "--max-time", str(patience(3)), "http://127.0.0.1:9273/metrics").stdout
    up = [line for line in text.splitlines() if line.startswith("cpe_agent_path_up{")]
    assert len(up) == 4 and all(line.endswith(" 1.0") for line in up), up
    assert "cpe_agent_build_info{" in text
    assert lab.fetch("hospital-1-host", "http://10.101.0.1:9273/metrics", 1) is None


def test_what_status_exits_with(lab: Lab) -> None:
    # Of paths that fell lately (in another test) an agent says so for minutes; a new one begins with what it sees.
    lab.site("hospital-1").agent.restart()
    wait_whole(lab)
    healthy = ask_status(lab, "hospital-1")
    assert (healthy.status, healthy.stderr) == (0, "")
    assert "wired.centre.wan" in healthy.stdout

    wired, lte = lab.site("hospital-1").uplink("wired"), lab.site("van-1").uplink("lte")
    wired.blackhole()
    watch.wait_for(lab, "hospital-1", "the wired paths are down", lambda r: r.severity.value == "degraded", 5)
    assert ask_status(lab, "hospital-1").status == 1
    wired.heal()

    lte.blackhole()
    watch.wait_for(lab, "van-1", "nothing carries a bundle", lambda r: r.severity.value == "down", 5)
    down = ask_status(lab, "van-1")
    assert down.status == 2 and "BundleDown" in down.stdout
    lte.heal()

    lab.site("van-1").agent.stop()
    stopped = ask_status(lab, "van-1")
    assert (stopped.status, stopped.stdout) == (3, "") and "no agent is running" in stopped.stderr
    lab.site("van-1").agent.start()


def test_that_the_controller_is_not_needed(lab: Lab) -> None:
    lab.controller.kill()
    try:
        with lab.flow("hospital-1-host", "centre-server") as flow:
            flow.wait_flowing(5)
            watch.wait_for(
                lab,
                "hospital-1",
                "it says that the controller is gone",
                lambda r: any(c.type == "ControllerUnreachable" for c in r.conditions),
                20,
            )
            # A new agent goes by what it has stored.
            lab.site("hospital-1").agent.restart()
            watch.wait_all_up(lab, 20, ["hospital-1"])
            assert flow.stop().lost == 0
    finally:
        lab.controller.start()
    watch.wait_for(
        lab,
        "hospital-1",
        "it hears the controller again",
        lambda r: not any(c.type == "ControllerUnreachable" for c in r.conditions),
        40,
    )


def test_two_networks_on_one_machine(lab: Lab) -> None:
    with Lab(name="scenarios-2") as other:
        provision(other)
        other.start()
        watch.wait_all_up(other, START_S)
        other.site("hospital-1").uplink("wired").blackhole()
        wait_until("the other network still works", lambda: other.fetch("hospital-1-host", CENTRE_PAGE), 5)
        assert other.leaked() == {}
        # This one has felt nothing of it.
        assert watch.active_path(watch.status(lab, "hospital-1"), "centre") == "wired.centre.wan"
        assert lab.fetch("hospital-1-host", CENTRE_PAGE) is not None
    assert lab.fetch("hospital-1-host", CENTRE_PAGE) is not None
