"""Do faults do what they say, only that, and does their end end them?"""

from __future__ import annotations

import time

import pytest

from tests.lab.container import wait_until
from tests.lab.faults import Faults, RunningUplink, ruleset
from tests.lab.lab import Lab


@pytest.fixture
def wired(bare_lab: Lab) -> RunningUplink:
    """The uplink by which hospital-1 reaches the controller host."""
    return bare_lab.site("hospital-1").uplink("wired")


def test_losses_add_up_by_direction() -> None:
    faults = Faults().with_loss(100, "up").with_loss(12.5, "down")
    assert faults == Faults(loss_up_percent=100, loss_down_percent=12.5)
    text = ruleset(faults)
    assert 'iifname "cpe" counter drop' in text
    assert 'iifname "internet" numgen random mod 10000 < 1250 counter drop' in text
    assert "drop" not in ruleset(faults.with_loss(0, "both"))
    with pytest.raises(ValueError, match="101"):
        faults.with_loss(101, "up")


def test_cut_takes_the_carrier_and_restore_gives_it_back(bare_lab: Lab, wired: RunningUplink) -> None:
    def carrier() -> str:
        return bare_lab.run("hospital-1", "cat", "/sys/class/net/wired/carrier").stdout.strip()

    assert carrier() == "1"
    wired.cut()
    try:
        wait_until("the carrier has gone", lambda: carrier() == "0", timeout_s=2)
    finally:
        wired.restore()
    wait_until("the carrier is back", lambda: carrier() == "1", timeout_s=2)
    with bare_lab.flow("hospital-1", "controller", rate=50) as flow:
        flow.wait_flowing(5)


@pytest.mark.parametrize("direction", ["up", "down", "both"])
def test_blackhole_is_silent_and_seen_in_its_direction_only(
    bare_lab: Lab, wired: RunningUplink, direction: str
) -> None:
    with bare_lab.flow("hospital-1", "controller", rate=200) as flow:
        flow.wait_flowing(5)
        began = time.monotonic()
        wired.blackhole(direction)  # type: ignore[arg-type]
        made = time.monotonic()
        # The gateway still answers: the CPE cannot tell by its own wire.
        bare_lab.run("hospital-1", "ping", "-n", "-c", "1", "-W", "1", str(wired.gateway))
        time.sleep(0.3)
        healing = time.monotonic()
        wired.heal()
        healed = time.monotonic()
        time.sleep(0.2)
    result = flow.result
    for name, seen in (("up", result.up), ("down", result.down)):
        if direction in (name, "both"):
            # It spans the fault; on a busy machine the packets around it may be late.
            assert seen.longest_gap_at_s <= made + 0.02
            assert seen.longest_gap_at_s + seen.longest_gap_ms / 1000 >= healing - 0.02
            assert seen.longest_gap_ms <= (healed - began) * 1000 + 500
            assert seen.lost == sum(last - first + 1 for first, last in seen.lost_ranges) >= 30
            assert len(seen.lost_ranges) == 1
        else:
            assert seen.lost == 0


def test_loss_is_a_share_of_the_packets(bare_lab: Lab, wired: RunningUplink) -> None:
    wired.loss(30, "down")
    try:
        with bare_lab.flow("hospital-1", "controller", rate=1000) as flow:
            flow.wait_flowing(5)
            time.sleep(1.5)
    finally:
        wired.heal()
    assert flow.result.up.lost == 0
    # 1500 packets: the standard deviation is 1.2 percent.
    assert flow.result.down.lost / flow.result.down.sent == pytest.approx(0.3, abs=0.08)


def test_slow_delays_each_way_in_order_at_1500_packets_per_second(bare_lab: Lab, wired: RunningUplink) -> None:
    wired.slow(40)
    try:
        wired.cut()
        wired.restore()  # a slow uplink is slow again after a cut
        wait_until(
            "the slow uplink carries packets",
            lambda: bare_lab.run("hospital-1", "ping", "-c", "1", "-W", "1", "198.51.100.202", check=False).status == 0,
            timeout_s=5,
        )
        reply = bare_lab.run("hospital-1", "ping", "-n", "-c", "5", "-i", "0.1", "198.51.100.202").stdout
        shortest_ms = float(reply.rsplit("= ", 1)[1].split("/")[0])
        assert 80 <= shortest_ms < 120
        with bare_lab.flow("hospital-1", "controller", rate=1500) as flow:
            flow.wait_flowing(5)
            time.sleep(1)
    finally:
        wired.slow(0)
    for seen in (flow.result.up, flow.result.down):
        assert (seen.lost, seen.duplicates, seen.reordered) == (0, 0, 0)
        assert seen.longest_delay_ms >= 40
    reply = bare_lab.run("hospital-1", "ping", "-n", "-c", "3", "-i", "0.1", "198.51.100.202").stdout
    assert float(reply.rsplit("= ", 1)[1].split("/")[0]) < 40


def test_slow_behind_the_cloud_nat_keeps_the_mapping(bare_lab: Lab) -> None:
    wan = bare_lab.site("cloud").uplink("wan")
    wan.slow(10)
    try:
        offer = bare_lab.offer("outside", "198.51.100.20", "udp", 5)
        bare_lab.run("outside", "ping", "-n", "-c", "1", "-W", "1", "198.51.100.20")
        bare_lab.run("cloud", "ping", "-n", "-c", "1", "-W", "1", "198.51.100.202")
    finally:
        wan.slow(0)
    assert offer.entered == 5


def test_readdress_replaces_address_gateway_and_route(bare_lab: Lab) -> None:
    lte = bare_lab.site("hospital-1").uplink("lte")
    old_address, old_gateway = str(lte.address), str(lte.gateway)

    def reaches(source: str) -> bool:
        ping = ("ping", "-n", "-c", "1", "-W", "1", "-I", source, "198.51.100.202")
        return bare_lab.run("hospital-1", *ping, check=False).status == 0

    lte.readdress("100.64.9.77/24", "100.64.9.1")
    try:
        links = bare_lab.run("hospital-1", "ip", "-4", "-br", "addr", "show", "dev", "lte").stdout
        assert links.split()[2:] == ["100.64.9.77/24"]
        routes = bare_lab.run("hospital-1", "ip", "route", "show", "default", "dev", "lte").stdout
        assert routes.split() == ["default", "via", "100.64.9.1", "metric", "101"]
        assert reaches("lte")
    finally:
        lte.readdress(old_address, old_gateway)
    assert reaches("lte")
    # The same network and gateway, another lease.
    lte.readdress("100.64.1.99/24", old_gateway)
    assert reaches("lte")
    lte.readdress(old_address, old_gateway)
    assert reaches("lte")
