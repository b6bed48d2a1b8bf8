"""Uplinks as they are: leases that change, sessions that come and go under other names, gateways that vanish, modems
that cannot be told apart, a default route into a dead link; and every byte counted through all of it.

A lab of its own, in which hospital-1's document names no interface. Each test leaves it as it was.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial

import pytest
import yaml

from cpe_agent.model.condition import Status, UplinkReport
from tests.lab import provision, watch
from tests.lab.container import wait_until
from tests.lab.init import LOGS
from tests.lab.lab import Lab
from tests.lab.site import RunningSite
from tests.lab.wiring import TO_CPE
from tests.scenarios.conftest import forget_failures, wait_whole

SITE, HOST = "hospital-1", "hospital-1-host"
START_S, BACK_S, DIAL_S = 40.0, 40.0, 45.0
# What is certain counts at once: an event, a pass, a move.
AT_ONCE_S = 1.5
SECONDS = 8.0
OUTSIDE = "203.0.113.202"
ECHO_PORT = 7
MEGABYTE = 1_000_000
MONTHLY = 40 * MEGABYTE
ECHO = """
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("0.0.0.0", 7))
print("ready", flush=True)
while True:
    data, peer = sock.recvfrom(2048)
    sock.sendto(peer[0].encode(), peer)
"""
# As a resolver or NTP client does: no address of its own, a time-out, a new socket for the next try.
ASK = """
import socket, sys
for _ in range(int(sys.argv[2])):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(0.5)
    sock.sendto(b"?", (sys.argv[1], 7))
    try:
        print(sock.recv(100).decode())
        break
    except TimeoutError:
        pass
"""
BLAST = """
import socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((sys.argv[1], 0))
for number in range(int(sys.argv[3]) // 1000):
    sock.sendto(bytes(972), (sys.argv[2], 9))
    if number % 20 == 0:
        time.sleep(0.01)
"""


@pytest.fixture(scope="module")
def whole() -> Iterator[Lab]:
    with Lab(name="uplinks") as lab:
        described = yaml.safe_load(provision.network_yaml(lab.network))
        uplinks = described["branches"][SITE]["uplinks"]
        for uplink in uplinks.values():
            del uplink["interface"]
        uplinks["lte"]["monthly_bytes"] = MONTHLY
        provision.provision(lab, yaml.safe_dump(described, sort_keys=False))
        lab.start()
        watch.wait_all_up(lab, START_S)
        log = lab.path(f"{LOGS}/echo.log")
        with open(log, "wb") as output:
            server = lab.container.spawn([sys.executable, "-S", "-c", ECHO], namespace="outside", stdout=output)
        wait_until("outside answers", lambda: log.read_bytes() == b"ready\n", 10)
        yield lab
        lab.save_logs()
        server.signal(signal.SIGTERM)
        server.close()


@pytest.fixture
def lab(whole: Lab) -> Iterator[Lab]:
    wait_home(whole)
    yield whole
    wait_whole(whole)
    assert whole.leaked() == {}, "private packets reached the internet"
    forget_failures(whole)


@pytest.fixture
def site(lab: Lab) -> RunningSite:
    return lab.site(SITE)


def wait_home(lab: Lab) -> None:
    watch.wait_all_up(lab, DIAL_S, [SITE])
    watch.wait_for(lab, SITE, "all is on wired", watch.carried("centre", uplink="wired"), BACK_S)


def test_that_uplinks_are_found_and_counted(lab: Lab, site: RunningSite) -> None:
    report = watch.wait_for(lab, SITE, "lte is metered", lambda r: _uplink(r, "lte").used_bytes is not None, 15)
    assert [(u.name, u.interface, u.up) for u in report.uplinks] == [("wired", "wired", True), ("lte", "lte", True)]
    before = _uplink(report, "lte").bytes_total or 0
    counted = _counted(site, "lte")
    _blast(site, MEGABYTE)
    site.agent.kill()
    _blast(site, MEGABYTE)  # while nobody looks
    site.agent.start()
    watch.wait_for(lab, SITE, "all is counted", partial(_has_counted, before + 2 * MEGABYTE), 20)
    wait_home(lab)
    # To the byte: the kernel's own figure, and what the agent has made of it a look later.
    deadline = time.monotonic() + 15
    while True:
        low, report, high = _counted(site, "lte"), watch.status(lab, SITE), _counted(site, "lte")
        total = _uplink(report, "lte").bytes_total or 0
        # A look is 10 s old at most, in which this link carries some 100 kB.
        if low - counted - 200_000 <= total - before <= high - counted + 200_000:
            break
        assert time.monotonic() < deadline, (low - counted, total - before)
    assert _uplink(report, "lte").remaining_bytes == MONTHLY - (_uplink(report, "lte").used_bytes or 0)
    page = site.run("curl", "-sf", "--max-time", "3", "http://127.0.0.1:9273/metrics").stdout
    for name in ("uplink_bytes_total", "uplink_budget_remaining_bytes", "overhead_bytes_total"):
        assert f'cpe_agent_{name}{{uplink="lte"}}' in page
    # Nothing but what the agent spends is on this link now: its metric grows as the interface's counters do, less the
    # Ethernet's headers. Both are as of a look, and some seconds old.
    began, spent, counted = time.monotonic(), _uplink(report, "lte").overhead_bytes or 0, _counted(site, "lte")
    time.sleep(25)
    shown = (_uplink(watch.status(lab, SITE), "lte").overhead_bytes or 0) - spent
    passed = (_counted(site, "lte") - counted) * 108 / 122
    late = 22 / (time.monotonic() - began) * passed
    assert passed - late <= shown <= passed + late and shown > 0


def test_that_the_routers_own_traffic_leaves_a_silent_link(lab: Lab, site: RunningSite) -> None:
    assert _asked(site) == "203.0.113.18"
    site.uplink("wired").blackhole()
    began = time.monotonic()
    try:
        # The kernel's first default route still leads into it.
        assert "dev wired" in site.run("ip", "route", "show", "default", "table", "main").stdout.splitlines()[0]
        assert _asked(site, tries=10) == str(lab.network.nat("cgnat").public)
        assert time.monotonic() - began < SECONDS
        assert "dev lte" in site.run("ip", "route", "get", OUTSIDE).stdout
        # Also for what is new: the controller is followed on.
        text = lab.path(provision.NETWORK_YAML).read_text()
        described = yaml.safe_load(text)
        described["policy"] = {"failback_s": 4}
        version = provision.apply(lab, yaml.safe_dump(described, sort_keys=False))[SITE]
        wait_until("it has it", lambda: (watch.status(lab, SITE).document_version or 0) >= version, SECONDS)
        # Nobody behind the router has a way out because of that.
        ping = lab.run(HOST, "ping", "-c", "2", "-W", "1", OUTSIDE, check=False)
        assert ping.status != 0
        # And an auditor finds all as it must be.
        argv = [sys.executable, "-m", "cpe_agent", "verify", "--json", "--config", str(site.inside / "agent.yaml")]
        found = json.loads(site.run(*argv, check=False).stdout)["differences"]
        # But for the paths over the dead link.
        assert {difference["target"] for difference in found} == {"tunnels"}, found
    finally:
        site.uplink("wired").heal()
    wait_home(lab)
    wait_until("back on wired", lambda: "dev wired" in site.run("ip", "route", "get", OUTSIDE).stdout, 10)


def test_that_a_vanished_gateway_counts_at_once(lab: Lab, site: RunningSite) -> None:
    (default,) = [line for line in _defaults(site) if "dev wired" in line]
    site.run("ip", "route", "del", *default.split())
    try:
        watch.wait_for(lab, SITE, "it moved, and it is told", partial(_left, "UplinkNoGateway"), AT_ONCE_S)
    finally:
        site.run("ip", "route", "add", *default.split())
    wait_home(lab)


def test_that_another_lease_is_followed(lab: Lab, site: RunningSite) -> None:
    wired = site.uplink("wired")
    old, gateway = wired.address, wired.gateway
    for address, via in (("203.0.113.66/28", "203.0.113.65"), (str(old), str(gateway))):
        wired.readdress(address, via)
        watch.wait_for(lab, SITE, "it is noticed", partial(_has_lease, address, via), SECONDS)
        wait_home(lab)
    # The same address by another gateway.
    wired.readdress(str(old), "203.0.113.30")
    watch.wait_for(lab, SITE, "it is noticed", partial(_has_lease, str(old), "203.0.113.30"), SECONDS)
    wait_home(lab)
    wired.readdress(str(old), str(gateway))
    watch.wait_for(lab, SITE, "it is noticed", partial(_has_lease, str(old), str(gateway)), SECONDS)
    wait_home(lab)


def test_that_a_session_comes_back_under_another_name(lab: Lab, site: RunningSite) -> None:
    """As PPPoE does: the interface goes, another one comes, with a default route that has no gateway."""
    wired = site.uplink("wired")
    site.run("ip", "link", "del", "wired")
    try:
        watch.wait_for(lab, SITE, "it moved, and it is told", partial(_left, "UplinkMissing"), AT_ONCE_S)
        _plug_in(lab, "ppp7", f"{wired.address.ip}/32", "")
        lab.run(wired.router, "sh", "-c", f"echo 1 > /proc/sys/net/ipv4/conf/{TO_CPE}/proxy_arp")
        lab.run(wired.router, "ip", "route", "add", f"{wired.address.ip}/32", "dev", TO_CPE)
        report = watch.wait_for(lab, SITE, "it is used", watch.carried("centre", uplink="wired"), DIAL_S)
        assert (_uplink(report, "wired").interface, _uplink(report, "wired").gateway) == ("ppp7", None)
        assert ("UplinkFound", "wired") in _conditions(report)
        # What it may not do, it may not do under any name.
        table = site.run("nft", "list", "set", "inet", "cpe_agent", "uplinks").stdout
        assert '"ppp7"' in table
        assert "iif ppp7 lookup 15501" in site.run("ip", "rule").stdout
    finally:
        site.run("ip", "link", "del", "ppp7", check=False)
        lab.run(wired.router, "ip", "link", "del", TO_CPE, check=False)
        _plug_in(lab, "wired", str(wired.address), str(wired.gateway))
    wait_home(lab)
    assert _uplink(watch.status(lab, SITE), "wired").interface == "wired"


def test_that_a_modem_comes_back_under_another_name(lab: Lab, site: RunningSite) -> None:
    gateway = str(site.uplink("lte").gateway)
    _rename(site, "lte", "wwan3", gateway)
    try:
        watch.wait_for(lab, SITE, "it is used", lambda r: _uplink(r, "lte").interface == "wwan3", SECONDS)
        watch.wait_all_up(lab, DIAL_S, [SITE])
        assert ("UplinkFound", "lte") in _conditions(watch.status(lab, SITE))
        site.uplink("wired").blackhole()
        watch.wait_for(lab, SITE, "it carries", watch.carried("centre", uplink="lte"), SECONDS)
    finally:
        site.uplink("wired").heal()
        _rename(site, "wwan3", "lte", gateway)
    wait_home(lab)
    assert _uplink(watch.status(lab, SITE), "lte").interface == "lte"


def test_that_what_cannot_be_told_apart_is_not_used(lab: Lab, site: RunningSite) -> None:
    lte = site.uplink("lte")
    # A modem in the network of a LAN: the wired link goes on alone.
    _readdress(site, str(lte.address), "10.101.0.99/25")
    report = watch.wait_for(lab, SITE, "it is told", partial(_has, "UplinkConflict", "lte"), SECONDS)
    assert {path.uplink for path in report.paths} == {"wired"}
    assert watch.carried("centre", uplink="wired")(report)
    # Two modems that give out the same address: neither.
    _readdress(site, "10.101.0.99/25", f"{site.uplink('wired').address.ip}/32")
    report = watch.wait_for(lab, SITE, "none is used", lambda r: not r.paths, SECONDS)
    assert "UplinkConflict" in {kind for kind, _ in _conditions(report)}
    wait_until("no way is left", lambda: "from 203.0.113.18 lookup" not in site.run("ip", "rule").stdout, 3)
    _readdress(site, f"{site.uplink('wired').address.ip}/32", str(lte.address))
    site.run("ip", "route", "add", "default", "via", str(lte.gateway), "dev", "lte", "metric", "101")
    wait_home(lab)


def _uplink(report: Status, name: str) -> UplinkReport:
    return next(uplink for uplink in report.uplinks if uplink.name == name)


def _conditions(report: Status) -> set[tuple[str, str]]:
    return {(condition.type, condition.subject) for condition in report.conditions}


def _has(kind: str, subject: str, report: Status) -> bool:
    return (kind, subject) in _conditions(report)


def _left(why: str, report: Status) -> bool:
    """The wired uplink, and the report says why. A move may be there before what it is about is told."""
    moved = watch.carried("centre", uplink="lte")(report)
    return moved and not _uplink(report, "wired").up and (why, "wired") in _conditions(report)


def _has_lease(address: str, gateway: str, report: Status) -> bool:
    """The one comes before the other, and the agent may look in between."""
    wired = _uplink(report, "wired")
    return (wired.address, wired.gateway) == (address.partition("/")[0], gateway)


def _has_counted(at_least: int, report: Status) -> bool:
    return (_uplink(report, "lte").bytes_total or 0) >= at_least


def _counted(site: RunningSite, interface: str) -> int:
    (found,) = json.loads(site.run("ip", "-s", "-j", "link", "show", interface).stdout)
    return int(found["stats64"]["rx"]["bytes"]) + int(found["stats64"]["tx"]["bytes"])


def _blast(site: RunningSite, count: int) -> None:
    site.run(sys.executable, "-S", "-c", BLAST, str(site.uplink("lte").address.ip), OUTSIDE, str(count))


def _asked(site: RunningSite, tries: int = 3) -> str:
    """Whom a host on the internet sees when the router asks it something."""
    return site.run(sys.executable, "-S", "-c", ASK, OUTSIDE, str(tries)).stdout.strip()


def _defaults(site: RunningSite) -> list[str]:
    return site.run("ip", "-4", "route", "show", "default", "table", "main").stdout.splitlines()


def _plug_in(lab: Lab, name: str, address: str, gateway: str) -> None:
    """A new interface of the site where its wired uplink was."""
    wired = lab.site(SITE).uplink("wired")
    site, router = lab.site(SITE), wired.router
    site.run("ip", "link", "add", name, "type", "veth", "peer", "name", TO_CPE)
    site.run("ip", "link", "set", TO_CPE, "netns", router)
    lab.run(router, "ip", "addr", "add", f"{wired.gateway}/{wired.address.network.prefixlen}", "dev", TO_CPE)
    lab.run(router, "ip", "link", "set", TO_CPE, "up")
    site.run("ip", "addr", "add", address, "dev", name)
    site.run("ip", "link", "set", name, "up")
    way = ["via", gateway] if gateway else []
    site.run("ip", "route", "add", "default", *way, "dev", name, "metric", "100")


def _rename(site: RunningSite, old: str, new: str, gateway: str) -> None:
    """It goes, and comes with the same lease: a modem that was plugged in again."""
    site.run("ip", "link", "set", old, "down")
    site.run("ip", "link", "set", old, "name", new)
    site.run("ip", "link", "set", new, "up")
    site.run("ip", "route", "add", "default", "via", gateway, "dev", new, "metric", "101")


def _readdress(site: RunningSite, old: str, new: str) -> None:
    site.run("ip", "addr", "del", old, "dev", "lte")
    site.run("ip", "addr", "add", new, "dev", "lte")
