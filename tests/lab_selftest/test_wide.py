"""Is the second network what its topology says: IPv6, short uplinks, a LAN behind a LAN router?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from cpe_controller.parse import parse
from tests.lab.lab import Lab
from tests.lab.topology import Network
from tests.lab.wide import WIDE, network_yaml, silent
from tests.lab.wiring import CORE, plan

CONTROLLER6 = str(WIDE.address6_of("controller"))
_IPV4_ICMP_BYTES = 28


@pytest.fixture(scope="module", params=[False, True], ids=["answered", "silent"])
def wide(request: pytest.FixtureRequest) -> Iterator[Lab]:
    network: Network = silent(WIDE) if request.param else WIDE
    with Lab(network, name="selftest-wide") as lab:
        yield lab


def _ping(lab: Lab, namespace: str, address: str, *options: str) -> str:
    return lab.run(namespace, "ping", "-n", "-c", "1", "-W", "1", *options, address, check=False).stdout


def test_every_uplink_reaches_the_controller_and_every_host_its_site(wide: Lab) -> None:
    for site in wide.network.sites:
        for uplink in site.uplinks:
            interface = ("-I", uplink.name)
            assert ("1 received" in _ping(wide, site.name, "198.51.100.202", *interface)) is uplink.ipv4
            assert ("1 received" in _ping(wide, site.name, CONTROLLER6, *interface)) is (uplink.ipv6 is not None)
        for lan in site.lans:
            assert "1 received" in _ping(wide, lan.host.name, str(lan.router.ip))
            if lan.router6:
                assert "1 received" in _ping(wide, lan.host.name, str(lan.router6.ip))


def test_a_lan_lies_behind_a_router(wide: Lab) -> None:
    wide.run("hospital-1", "ip", "route", "add", "10.104.0.0/24", "via", "10.103.0.10")
    try:
        assert "1 received" in _ping(wide, "hospital-1", "10.104.0.10", "-I", "10.103.0.1")
        assert wide.network.site_of("ward-host").name == "hospital-1"
    finally:
        wide.run("hospital-1", "ip", "route", "del", "10.104.0.0/24")


@pytest.mark.parametrize(("uplink", "address", "mtu"), [("wired", "203.0.113.18", 1492), ("lte", "203.0.113.34", 1280)])
def test_what_is_too_long_for_an_uplink_is_answered_or_lost(wide: Lab, uplink: str, address: str, mtu: int) -> None:
    is_silent = wide.site("hospital-1").topology.uplink(uplink).silent_mtu
    fits = _ping(wide, "controller", address, "-M", "do", "-s", str(mtu - _IPV4_ICMP_BYTES))
    assert "1 received" in fits
    too_long = _ping(wide, "controller", address, "-M", "do", "-s", str(mtu - _IPV4_ICMP_BYTES + 1))
    assert "1 received" not in too_long
    assert (f"mtu = {mtu}" in too_long) is not is_silent
    wide.run("controller", "ip", "route", "flush", "cache")


def test_hosts_send_ipv6_both_ways(wide: Lab) -> None:
    with wide.flow("centre", "centre-server", version=6, rate=200) as flow:
        flow.wait_flowing(5)
    assert flow.result.lost == 0
    assert wide.fetch("centre", "http://[fd00:10::10]/") == "This is centre-server at centre.\n"


def test_private_ipv6_addresses_on_the_internet_are_counted(wide: Lab) -> None:
    before = wide.leaked()
    wide.run("clinic-1", "ping", "-n", "-c", "3", "-i", "0.05", "-W", "1", "fd00:10::10", check=False)
    after = wide.leaked()
    for router in (CORE, "net-clinic-1-wired"):
        assert after[router] - before.get(router, 0) == 3


def test_its_description_is_good() -> None:
    network = parse(network_yaml())
    assert [service.subnets for service in network.services if len(service.subnets) == 2]
    beyond = next(lan for lan in network.sites[2].lans if lan.via)
    assert (beyond.via, beyond.interface) == ("10.103.0.10", "lan1")


def test_ipv6_behind_an_ipv4_nat_is_refused() -> None:
    site = WIDE.site("clinic-1")
    behind = dataclasses.replace(site.uplinks[0], nat="nat")
    with pytest.raises((ValueError, KeyError), match="nat"):
        plan(dataclasses.replace(WIDE, sites=(dataclasses.replace(site, uplinks=(behind,)),)))
