"""Is what is kept of our routing always what a fresh reading finds?"""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from cpe_agent.edge import ourroutes
from cpe_agent.edge.netlink import LIST_AGAIN_S, Netlink
from tests.lab.container import wait_until

# Duplicate address detection takes a link-local address about two seconds.
SETTLE_S = 20.0

OURS, TABLE = "proto 155", "table 15500"

# Each as somebody else might type it; half of them fail, depending on what came before.
COMMANDS = (
    f"route add 10.77.1.0/24 dev news0 {OURS} {TABLE}",
    f"route del 10.77.1.0/24 {TABLE}",
    f"route replace 10.77.1.0/24 dev news0 proto static {TABLE}",
    f"route replace 10.77.1.0/24 dev news0 {OURS} {TABLE}",
    f"route add unreachable 10.77.2.0/24 {OURS} {TABLE} metric 1000",
    f"route flush {TABLE}",
    f"-6 route add fd77::/64 dev news0 {OURS} {TABLE}",
    f"-6 route replace fd77::/64 dev news0 proto static {TABLE}",
    "-6 route del fd77::/64 dev news0 table 15500",
    f"rule add from 10.77.0.9 {TABLE} protocol 155 priority 140",
    "rule del priority 140",
    f"route add blackhole 10.77.3.0/24 {OURS} {TABLE}",
    f"route del blackhole 10.77.3.0/24 {TABLE}",
    "rule add priority 50 table main",
    "rule del priority 50",
    "address add 10.77.9.9/32 dev lo proto 155",
    "address del 10.77.9.9/32 dev lo",
    "link set news0 down",
    "link set news0 up",
    "link set news1 down",
    "link set news1 up",
    "route add 10.78.0.0/24 dev news0 proto bird",
    "route del 10.78.0.0/24",
)


def ip(command: str) -> bool:
    return subprocess.run(["ip", *command.split()], capture_output=True).returncode == 0


@pytest.fixture(autouse=True)
def link() -> Iterator[None]:
    assert ip("link add news0 type veth peer name news1") and ip("link set news0 up") and ip("link set news1 up")
    yield
    ip("link del news0")
    for version in ("-4", "-6"):
        ip(f"{version} route flush {TABLE}")
    ip("rule del priority 140")
    ip("rule del priority 50")
    ip("address del 10.77.9.9/32 dev lo")


async def test_whatever_others_do_is_seen() -> None:
    chance = random.Random(11)
    keeping = Netlink()
    done = 0
    for _ in range(150):
        command = chance.choice(COMMANDS)
        done += ip(command)
        assert await keeping.read() == await Netlink().read(), command
        assert await keeping.strangers() == await Netlink().strangers(), command
    assert done > 50


async def test_others_routes_and_silence_cost_no_listing(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    _settle("news0", "news1")
    listings = 0
    read = ourroutes.read

    def counted(kernel: object) -> object:
        nonlocal listings
        listings += 1
        return read(kernel)

    keeping = Netlink()
    with monkeypatch.context() as patch:
        patch.setattr(ourroutes, "read", counted)
        for command, expected in (
            ("route add 10.78.1.0/24 dev news0 proto bird", 1),
            ("route del 10.78.1.0/24", 1),
            # As an advertising router's hosts are told again and again.
            ("address add fd78::9/64 dev news0 nodad valid_lft 300 preferred_lft 300", 1),
            ("address replace fd78::9/64 dev news0 valid_lft 600 preferred_lft 600", 1),
            (f"route add 10.77.1.0/24 dev news0 {OURS} {TABLE}", 1),
            ("route show", 2),
        ):
            await keeping.read()
            assert listings == expected
            assert ip(command)
        await trio.sleep(LIST_AGAIN_S)
        await keeping.read()
        assert listings == 3


def _settle(*names: str) -> None:
    """Waits until the kernel has told all that it tells by itself of links that were just set up."""

    def settled() -> bool:
        listed = json.loads(subprocess.run(["ip", "-j", "address"], capture_output=True, check=True).stdout)
        found = {link["ifname"]: link for link in listed}
        addresses = [address for name in names for address in found[name]["addr_info"]]
        return all(found[name]["operstate"] == "UP" and found[name]["addr_info"] for name in names) and not any(
            address.get("tentative") for address in addresses
        )

    wait_until("the links have their addresses", settled, SETTLE_S)
