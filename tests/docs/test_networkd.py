"""Are the files of configs/ right for a router, and does the agent find the uplinks and the LAN that they make?

Real systemd-networkd at both ends: the router with our files, the providers and a host with the test's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpe_agent.core import lans
from cpe_agent.core.uplinks import ResolvedUplink, resolve
from cpe_agent.model.document import Lan, Uplink
from tests.core import documents
from tests.edge.links_seen import seen
from tests.lab.container import Container, wait_until
from tests.lab.networkd import Networkd, addresses

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = {file.name: file.read_text() for file in sorted((CONFIGS / "networkd").iterdir()) if file.is_file()}
CONF = {file.name: file.read_text() for file in sorted((CONFIGS / "networkd/networkd.conf.d").iterdir())}

SETTLED_S = 20.0
WIRES = (
    ("router", "wan0", "provider", "p0"),
    ("router", "wan1", "provider", "p1"),
    ("router", "dsl0", "provider", "p2"),
    ("router", "ppp0", "provider", "p3"),
    ("router", "wwan0", "provider", "p4"),
    ("router", "lan0", "host", "eth0"),
)
_OFFERS = "DHCPServer=yes\nIPv6AcceptRA=no\n[DHCPServer]\nEmitRouter=yes\nEmitDNS=no\nPoolOffset=4\nPoolSize=4\n"
PROVIDER = {
    "p0.network": f"[Match]\nName=p0\n[Network]\nAddress=203.0.113.17/28\n{_OFFERS}",
    "p1.network": "[Match]\nName=p1\n[Network]\nAddress=198.51.100.1/28\n",
    "p4.network": f"[Match]\nName=p4\n[Network]\nAddress=100.64.1.1/24\n{_OFFERS}",
}
HOST = {"eth0.network": "[Match]\nName=eth0\n[Network]\nDHCP=ipv4\n[DHCPv4]\nClientIdentifier=mac\n"}
# What networkd says of a line that it does not take, and of a file.
NOT_TAKEN = re.compile(r".*(?:ignoring|Failed|Unknown|Invalid).*", re.IGNORECASE)
UPLINKS = {
    "dhcp": Uplink("wired", 1, "10.255.101.1", interface="wan0"),
    "static": Uplink("wired", 2, "10.255.101.2", interface="wan1"),
    "dsl": Uplink("wired", 3, "10.255.101.3"),
    "lte": Uplink("cellular", 4, "10.255.101.4"),
}
DOCUMENT = documents.branch(uplinks=UPLINKS, lans=(Lan("ward", documents.OWN_LAN, "lan0"),), pairs=())


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    with Container("networkd") as made:
        for namespace in ("router", "provider", "host"):
            made.run(["ip", "netns", "add", namespace])
        for near, interface, far, other in WIRES:
            argv = ["ip", "link", "add", interface, "netns", near, "type", "veth", "peer", other, "netns", far]
            made.run(argv)
        yield made


def dial(container: Container) -> None:
    """What pppd leaves behind when the session of configs/pppoe/uplink is up."""
    for words in (
        "link set ppp0 up",
        "addr add 192.0.2.7 peer 192.0.2.1/32 dev ppp0",
        "route add default dev ppp0 metric 120",
    ):
        container.run(["ip", *words.split()], namespace="router")
    container.run(["ip", "link", "set", "p3", "up"], namespace="provider")
    container.run(["ip", "link", "set", "p2", "up"], namespace="provider")


@pytest.fixture(scope="module")
def router(container: Container) -> Iterator[Networkd]:
    """Before it starts, everything is missing; then everything is there."""
    started = [
        Networkd(container, namespace, files)
        for namespace, files in (("provider", PROVIDER), ("router", FILES), ("host", HOST))
    ]
    links = seen(container, "router")
    assert resolve(DOCUMENT, links)[0] == ()
    assert {(c.type, c.subject) for c in lans.conditions(DOCUMENT, links)} == {("LanUnaddressed", "ward")}
    for one in started:
        one.start()
    dial(container)
    # An address is there before its route is.
    wait_until(
        "all uplinks lead out", lambda: sum(up.leads_out for up in uplinks(container)) == len(UPLINKS), SETTLED_S
    )
    yield started[1]
    for one in started:
        one.stop()


def uplinks(container: Container) -> tuple[ResolvedUplink, ...]:
    """Those that the agent would use now."""
    return resolve(DOCUMENT, seen(container, "router"))[0]


def test_networkd_takes_every_line(router: Networkd) -> None:
    assert NOT_TAKEN.findall(router.said()) == []


def test_a_line_that_it_does_not_take_would_be_told(container: Container) -> None:
    container.run(["ip", "netns", "add", "wrong"])
    wrong = Networkd(container, "wrong", {"x.network": FILES["50-lan.network"].replace("PoolOffset", "PoolStart")})
    wrong.start()
    assert any("PoolStart" in line for line in NOT_TAKEN.findall(wrong.said())), wrong.said()
    wrong.stop()


def test_the_agent_finds_every_uplink(container: Container, router: Networkd) -> None:
    usable, conditions = resolve(DOCUMENT, seen(container, "router"))
    assert [(up.name, up.interface, up.leads_out) for up in usable] == [
        ("dhcp", "wan0", True),
        ("static", "wan1", True),
        ("dsl", "ppp0", True),
        ("lte", "wwan0", True),
    ]
    assert {(c.type, c.subject) for c in conditions} == {("UplinkFound", "dsl"), ("UplinkFound", "lte")}
    assert usable[1].addresses[4].address == "198.51.100.10"
    assert [up.gateways[4] for up in usable] == ["203.0.113.17", "198.51.100.1", "", "100.64.1.1"]


def test_hosts_of_the_lan_get_an_address_a_gateway_and_a_name_server(container: Container, router: Networkd) -> None:
    def ways() -> str:
        return container.run(["ip", "route", "show", "default"], namespace="host").stdout

    # In this order, and each after a moment: the address, its route, what is written down of the lease.
    wait_until("the host has a gateway", ways, SETTLED_S)
    [address] = addresses(container, "host", "eth0")
    assert re.fullmatch(r"10\.101\.0\.1\d\d/24", address)
    assert "via 10.101.0.1 " in ways()
    leases = container.path("/run/networkd-host/netif/leases")
    wait_until("its lease is written down", lambda: any(leases.glob("[0-9]*")), SETTLED_S)
    [lease] = leases.glob("[0-9]*")
    assert "DNS=10.50.0.10" in lease.read_text()
    assert lans.conditions(DOCUMENT, seen(container, "router")) == ()


def test_a_restart_of_networkd_leaves_the_agents_rules_and_routes(container: Container, router: Networkd) -> None:
    """Whether networkd would delete them without the drop-in differs between its versions; it says that it may."""
    router.stop()
    for name, text in CONF.items():
        (container.path("/run/networkd-router/networkd.conf.d") / name).write_text(text)
    for words in ("rule add iif lan0 lookup 4242 priority 150", "route add 10.9.0.0/24 dev lan0 table 4242"):
        container.run(["ip", *words.split(), "protocol", "155"], namespace="router")
    router.start()
    done = ("lan0: Configuring with", "wan0: DHCPv4 address")
    wait_until("an uplink has its lease again", lambda: all(words in router.said() for words in done), SETTLED_S)
    assert container.run(["ip", "rule", "show", "priority", "150"], namespace="router").stdout
    assert container.run(["ip", "route", "show", "table", "4242"], namespace="router").stdout
    assert NOT_TAKEN.findall(router.said()) == []
