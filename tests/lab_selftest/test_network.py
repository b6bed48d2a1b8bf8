"""Is the network what the topology says?"""

from __future__ import annotations

import dataclasses
import json

import pytest

from tests.lab.container import LabError
from tests.lab.lab import Lab
from tests.lab.topology import NETWORK
from tests.lab.wiring import CORE, plan

CONTROLLER = str(NETWORK.address_of("controller"))
OUTSIDE = str(NETWORK.address_of("outside"))


def _reaches(lab: Lab, namespace: str, address: str, *options: str) -> bool:
    ping = ("ping", "-n", "-c", "1", "-W", "1", *options, address)
    return lab.run(namespace, *ping, check=False).status == 0


def _seen_at_outside(lab: Lab, namespace: str, source: str) -> str:
    """The source address that the outside host sees when `source` sends from `namespace`."""
    ruleset = """
table ip seen {
  set sources { type ipv4_addr; size 16; flags dynamic; }
  chain input { type filter hook input priority 0; icmp type echo-request update @sources { ip saddr }
  }
}
"""
    lab.run("outside", "nft", "-f", "-", input=ruleset)
    try:
        lab.run(namespace, "ping", "-n", "-c", "1", "-W", "1", "-I", source, OUTSIDE)
        listing = json.loads(lab.run("outside", "nft", "-j", "list", "set", "ip", "seen", "sources").stdout)
    finally:
        lab.run("outside", "nft", "delete", "table", "ip", "seen")
    (address,) = listing["nftables"][-1]["set"]["elem"]
    return str(address)


def test_every_uplink_reaches_the_internet_and_every_host_its_site(bare_lab: Lab) -> None:
    for site in bare_lab.network.sites:
        for uplink in site.uplinks:
            bare_lab.run(site.name, "ip", "rule", "add", "from", str(uplink.address.ip), "lookup", "77")
            route = ["default", "via", str(uplink.gateway), "dev", uplink.name, "table", "77"]
            bare_lab.run(site.name, "ip", "route", "add", *route)
            assert _reaches(bare_lab, site.name, CONTROLLER, "-I", str(uplink.address.ip)), (site.name, uplink.name)
            bare_lab.run(site.name, "ip", "route", "del", *route)
            bare_lab.run(site.name, "ip", "rule", "del", "lookup", "77")
        for lan in site.lans:
            assert _reaches(bare_lab, lan.host.name, str(lan.router.ip))


def test_default_routes_are_as_dhcp_leaves_them_and_nothing_forwards(bare_lab: Lab) -> None:
    routes = bare_lab.run("hospital-1", "ip", "route", "show", "default").stdout.split("\n")
    assert [line.split()[:5] for line in routes if line] == [
        ["default", "via", "203.0.113.17", "dev", "wired"],
        ["default", "via", "100.64.1.1", "dev", "lte"],
    ]
    for site in bare_lab.network.sites:
        assert bare_lab.run(site.name, "cat", "/proc/sys/net/ipv4/ip_forward").stdout == "0\n"
    assert not _reaches(bare_lab, "hospital-1-host", OUTSIDE)


def test_carrier_nat_hides_two_sites_behind_one_address_and_lets_nothing_in(bare_lab: Lab) -> None:
    assert bare_lab.network.public_address("van-1", "lte") == bare_lab.network.public_address("hospital-1", "lte")
    assert _seen_at_outside(bare_lab, "van-1", "100.64.2.10") == "203.0.113.100"
    offer = bare_lab.offer("outside", "203.0.113.100", "udp", 5, port=4500)
    assert (offer.sent, offer.entered) == (5, 0)


def test_cloud_nat_maps_both_ways(bare_lab: Lab) -> None:
    assert _seen_at_outside(bare_lab, "cloud", "172.31.0.10") == "198.51.100.20"
    offer = bare_lab.offer("outside", "198.51.100.20", "udp", 5, port=4500)
    assert (offer.sent, offer.entered, offer.delivered) == (5, 5, 0)


def test_servers_name_themselves_and_one_address_is_served_twice(bare_lab: Lab) -> None:
    pages = {}
    for site in ("centre", "cloud"):
        pages[site] = bare_lab.fetch(site, "http://10.50.0.10/")
    assert pages == {
        "centre": "This is centre-shared at centre.\n",
        "cloud": "This is cloud-shared at cloud.\n",
    }
    assert bare_lab.fetch("van-1", "http://10.50.0.10/", timeout_s=0.3) is None


def test_private_addresses_on_the_internet_are_counted(bare_lab: Lab) -> None:
    before = bare_lab.leaked()
    bare_lab.run("hospital-1", "ping", "-n", "-c", "3", "-i", "0.05", "-W", "1", "10.10.0.10", check=False)
    after = bare_lab.leaked()
    for router in (CORE, "net-hospital-1-wired"):
        assert after[router] - before.get(router, 0) == 3


@pytest.mark.parametrize("protocol", ["tcp", "udp", "icmp", "fragments"])
def test_offered_packets_are_counted_where_they_enter_and_arrive(bare_lab: Lab, protocol: str) -> None:
    packets = 20 if protocol == "fragments" else 10
    closed = bare_lab.offer("centre-server", "10.50.0.10", protocol, 10)  # type: ignore[arg-type]
    assert (closed.sent, closed.entered, closed.arrived) == (packets, packets, {})
    bare_lab.run("centre", "sysctl", "-q", "net.ipv4.ip_forward=1")
    try:
        opened = bare_lab.offer("centre-server", "10.50.0.10", protocol, 10)  # type: ignore[arg-type]
        wire = bare_lab.offer("net-centre-wan", "10.10.0.10", protocol, 10)  # type: ignore[arg-type]
    finally:
        bare_lab.run("centre", "sysctl", "-q", "net.ipv4.ip_forward=0")
    assert (opened.entered, opened.arrived) == (packets, {"centre-shared": packets})
    assert (wire.entered, wire.arrived) == (packets, {"centre-server": packets})


def test_a_failing_command_says_where_and_why(bare_lab: Lab) -> None:
    with pytest.raises(LabError, match=r"ip route add nonsense in van-1 ended with status 1: Error: .*nonsense"):
        bare_lab.run("van-1", "ip", "route", "add", "nonsense")
    with pytest.raises(LabError, match="did not end within"):
        bare_lab.run("van-1", "sleep", "30", timeout_s=0.1)


def test_two_things_of_one_name_are_refused() -> None:
    twice = dataclasses.replace(NETWORK, internet_hosts=(*NETWORK.internet_hosts, NETWORK.internet_hosts[0]))
    with pytest.raises(ValueError, match="'controller'"):
        plan(twice)
