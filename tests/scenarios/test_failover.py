"""Is traffic carried on whatever dies, and does it leave everybody else alone?

Recovery is judged by packets. Outages are bounded generously here, as the machine may be busy; `make bench` judges
milliseconds. That nothing leaks is asked after every test.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.lab import watch
from tests.lab.container import wait_until
from tests.lab.faults import Direction
from tests.lab.flow import Flow, FlowResult
from tests.lab.lab import Lab
from tests.lab.pace import patience
from tests.scenarios.conftest import RECOVERY_S
from tests.scenarios.looking import CENTRE_PAGE, CLOUD_PAGE

SITE, CLIENT = "hospital-1", "hospital-1-host"
SHARED = "centre+cloud"
OUTAGE_MS = patience(1000.0)
MOVE_S = 5.0
# A path whose IKE_SA was given up is dialled again, with growing waits.
REDIAL_S = 20.0


@contextmanager
def undisturbed(lab: Lab, *ends: tuple[str, str]) -> Iterator[None]:
    """Flows between these lose nothing while the block runs."""
    with ExitStack() as stack:
        flows = [
            stack.enter_context(lab.flow(client, server, port=7100 + number))
            for number, (client, server) in enumerate(ends)
        ]
        for flow in flows:
            flow.wait_flowing(5)
        yield
        results = [flow.stop() for flow in flows]
    for (client, server), result in zip(ends, results, strict=True):
        assert result.up.sent > 50 and result.lost == 0, f"{client} to {server}: {result}"


def wait_flows_again(flow: Flow, timeout_s: float = MOVE_S) -> None:
    """Packets sent from now on arrive both ways."""
    # What is told is up to 100 ms old.
    time.sleep(0.2)
    before = flow.received()
    wait_until(
        "packets arrive both ways",
        lambda: all(n > b + 10 for n, b in zip(flow.received(), before, strict=True)),
        timeout_s,
    )


def assert_short(result: FlowResult, outages: int = 1) -> None:
    """There were no more than so many outages, none of them long."""
    assert 0 < result.longest_gap_ms < OUTAGE_MS, result
    # 100 packets a second. What a dead hub's server goes on sending is lost, and nobody's loss.
    assert result.up.lost <= outages * OUTAGE_MS / 10, result


def test_that_a_cut_link_fails_over_and_heals(lab: Lab) -> None:
    uplink = lab.site(SITE).uplink("wired")
    with undisturbed(lab, ("van-1-host", "centre-server")), lab.flow(CLIENT, "centre-server") as flow:
        flow.wait_flowing(5)
        uplink.cut()
        try:
            wait_flows_again(flow)
            watch.wait_for(lab, SITE, "it is carried over lte", watch.carried("centre", uplink="lte"), MOVE_S)
            watch.wait_for(lab, SITE, "it says why", lambda r: "UplinkDown" in {c.type for c in r.conditions}, MOVE_S)
        finally:
            uplink.restore()
        watch.wait_for(lab, SITE, "it is back", watch.carried("centre", uplink="wired"), RECOVERY_S)
        assert_short(flow.stop())


@pytest.mark.parametrize("direction", ["both", "up", "down"])
def test_that_a_blackhole_fails_over_and_heals(lab: Lab, direction: Direction) -> None:
    uplink = lab.site(SITE).uplink("wired")
    with undisturbed(lab, ("van-1-host", "centre-server")), lab.flow(CLIENT, "centre-server") as flow:
        flow.wait_flowing(5)
        uplink.blackhole(direction)
        try:
            watch.wait_for(lab, SITE, "it is carried over lte", watch.carried("centre", uplink="lte"), MOVE_S)
            wait_flows_again(flow)
        finally:
            uplink.heal()
        watch.wait_for(lab, SITE, "it is back", watch.carried("centre", uplink="wired"), RECOVERY_S)
        result = flow.stop()
    assert result.longest_gap_ms > 100
    assert_short(result)


def test_that_a_link_that_is_cut_while_rules_are_listed_fails_over(lab: Lab) -> None:
    """Somebody changes our table all the time, so that the agent reads it again and again."""
    site = lab.site(SITE)
    over = threading.Event()

    def disturb() -> None:
        while not over.is_set():
            site.run("nft", "add chain inet cpe_agent foreign; delete chain inet cpe_agent foreign", check=False)

    disturbing = threading.Thread(target=disturb)
    with lab.flow(CLIENT, "centre-server") as flow:
        flow.wait_flowing(5)
        disturbing.start()
        try:
            site.uplink("wired").cut()
            wait_flows_again(flow)
        finally:
            over.set()
            disturbing.join()
            site.uplink("wired").restore()
        assert_short(flow.stop())


def test_that_a_shared_subnet_goes_on_when_a_hub_dies(lab: Lab) -> None:
    centre = lab.site("centre")
    others = ((CLIENT, "cloud-server"), ("van-1-host", "cloud-server"))
    with undisturbed(lab, *others), lab.flow(CLIENT, "centre-shared", twin="cloud-shared") as flow:
        flow.wait_flowing(5)
        centre.vanish()
        try:
            wait_flows_again(flow)
            for site in (SITE, "van-1"):
                watch.wait_for(lab, site, "it is served by cloud", watch.carried(SHARED, peer="cloud"), MOVE_S)
            assert lab.fetch(CLIENT, CENTRE_PAGE, 1) is None
        finally:
            centre.reappear()
        for site in (SITE, "van-1"):
            watch.wait_for(lab, site, "it is served by centre again", watch.carried(SHARED, peer="centre"), RECOVERY_S)
        wait_flows_again(flow)
        assert_short(flow.stop())


def test_that_a_hub_may_die_while_the_wired_link_is_down(lab: Lab) -> None:
    centre, wired = lab.site("centre"), lab.site(SITE).uplink("wired")
    with lab.flow(CLIENT, "centre-shared", twin="cloud-shared") as flow:
        flow.wait_flowing(5)
        wired.cut()
        try:
            watch.wait_for(lab, SITE, "all is on lte", watch.carried("cloud", uplink="lte"), MOVE_S)
            wait_flows_again(flow)
            with undisturbed(lab, (CLIENT, "cloud-server"), ("van-1-host", "cloud-server")):
                centre.vanish()
                wait_flows_again(flow)
                watch.wait_for(
                    lab, SITE, "the cloud serves it", watch.carried(SHARED, uplink="lte", peer="cloud"), MOVE_S
                )
        finally:
            wired.restore()
            centre.reappear()
        watch.wait_for(lab, SITE, "all is well again", watch.carried(SHARED, uplink="wired", peer="centre"), RECOVERY_S)
        assert_short(flow.stop(), outages=2)


def test_that_an_uplink_may_die_while_a_hub_is_drained(lab: Lab) -> None:
    wired = lab.site(SITE).uplink("wired")
    _tell(lab, "centre", "drain")
    try:
        watch.wait_for(lab, SITE, "centre is left", watch.carried(SHARED, uplink="wired", peer="cloud"), MOVE_S)
        with (
            undisturbed(lab, ("van-1-host", "cloud-server")),
            lab.flow(CLIENT, "centre-shared", twin="cloud-shared") as flow,
            lab.flow(CLIENT, "centre-server", port=7001) as only_centre,
        ):
            flow.wait_flowing(5)
            only_centre.wait_flowing(5)
            wired.blackhole()
            wait_flows_again(flow)
            # What nobody else serves goes on behind the drained hub.
            wait_flows_again(only_centre)
            watch.wait_for(lab, SITE, "still not at centre", watch.carried(SHARED, uplink="lte", peer="cloud"), MOVE_S)
            for result in (flow.stop(), only_centre.stop()):
                assert_short(result)
    finally:
        wired.heal()
        _tell(lab, "centre", "undrain")


def test_that_both_uplinks_may_die_and_one_heal(lab: Lab) -> None:
    wired, lte = (lab.site(SITE).uplink(name) for name in ("wired", "lte"))
    with undisturbed(lab, ("van-1-host", "centre-server")), lab.flow(CLIENT, "centre-server") as flow:
        flow.wait_flowing(5)
        wired.blackhole()
        lte.blackhole()
        try:
            watch.wait_for(lab, SITE, "it says that it is down", lambda r: r.severity.value == "down", MOVE_S)
            assert lab.fetch(CLIENT, CLOUD_PAGE, 1) is None
            lte.heal()
            wait_flows_again(flow, REDIAL_S)
            watch.wait_for(lab, SITE, "it is carried over lte", watch.carried("centre", uplink="lte"), MOVE_S)
        finally:
            wired.heal()
            lte.heal()


def test_that_the_standby_may_die_just_after_the_move(lab: Lab) -> None:
    """The first uplink is back by then."""
    wired, lte = (lab.site(SITE).uplink(name) for name in ("wired", "lte"))
    with undisturbed(lab, ("van-1-host", "centre-server")), lab.flow(CLIENT, "centre-server") as flow:
        flow.wait_flowing(5)
        wired.blackhole()
        try:
            watch.wait_for(lab, SITE, "it is carried over lte", watch.carried("centre", uplink="lte"), MOVE_S)
            wired.heal()
            lte.blackhole()
            wait_flows_again(flow, REDIAL_S)
            watch.wait_for(lab, SITE, "it is back on wired", watch.carried("centre", uplink="wired"), MOVE_S)
        finally:
            wired.heal()
            lte.heal()


def _tell(lab: Lab, site: str, command: str) -> None:
    """`cpe-agent drain` or `undrain`, as somebody at the hub's shell would run it."""
    config = str(lab.site(site).inside / "agent.yaml")
    lab.site(site).run(sys.executable, "-m", "cpe_agent", command, "--config", config)
