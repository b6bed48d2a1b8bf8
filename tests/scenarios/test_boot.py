"""Does a router come up closed, and does it go down leaving nothing, and nothing open, behind?"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from cpe_agent.model.dataplane import Backend
from tests.lab import watch
from tests.lab.capture import record
from tests.lab.container import Completed
from tests.lab.lab import Lab
from tests.lab.provision import provision
from tests.lab.site import RunningSite
from tests.lab.topology import NETWORK
from tests.scenarios import offering, oracle
from tests.scenarios.offering import UNLISTED, offered

UP_S = 40.0
STEADY_S = 1.0
OURS = 155  # the protocol number of everything that is ours in the kernel's tables

SHORT = replace(
    NETWORK,
    sites=tuple(site for site in NETWORK.sites if site.name in ("centre", "hospital-1")),
    nats=tuple(nat for nat in NETWORK.nats if nat.name == "cgnat"),
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(SHORT, name="boot") as running:
        provision(running)
        running.start()
        watch.wait_all_up(running, UP_S)
        for name in running.sites:
            watch.wait_for(running, name, "its document is confirmed", watch.confirmed, UP_S)
        yield running


def _agent(site: RunningSite, *arguments: str) -> Completed:
    argv = [sys.executable, "-m", "cpe_agent", *arguments, "--config", f"/run/{site.name}/agent.yaml"]
    return site.run(*argv, check=False, timeout_s=30)


def _held(site: RunningSite) -> dict[str, object]:
    """Everything of ours in the site's kernel, as ip and nft tell it."""
    rules = json.loads(site.run("ip", "-j", "-d", "rule").stdout)
    routes = json.loads(site.run("ip", "-j", "-d", "-N", "route", "show", "table", "all").stdout)
    addresses = json.loads(site.run("ip", "-j", "-d", "addr", "show", "dev", "lo").stdout)[0]["addr_info"]
    tables = json.loads(site.run("nft", "-j", "list", "tables").stdout)["nftables"]
    return {
        "rules": [rule for rule in rules if str(rule.get("protocol")) == str(OURS)],
        "routes": [route for route in routes if str(route.get("protocol")) == str(OURS)],
        "addresses": [a["local"] for a in addresses if a["local"].startswith("10.255.")],
        "tables": [
            item["table"]["name"] for item in tables if "table" in item and item["table"]["name"] == "cpe_agent"
        ],
        "policies": [text for kind, text in oracle.routing(site) if kind == "policy"],
        "forwarding": site.run("sysctl", "-n", "net.ipv4.ip_forward").stdout.strip(),
    }


def _cut_power(site: RunningSite) -> None:
    """What the kernel held is gone, as after a power cut; the files are there."""
    site.kill()
    site.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
    site.run("nft", "flush", "ruleset")
    if site.ipsec is Backend.KERNEL:
        site.run("ip", "xfrm", "state", "flush")
        site.run("ip", "xfrm", "policy", "flush")
        site.run("ip", "link", "del", site.ipsec.device)
    for family in ("-4", "-6"):
        site.run("ip", family, "route", "flush", "table", "all", "protocol", str(OURS), check=False)
        for line in site.run("ip", family, "rule").stdout.splitlines():
            if 110 <= int(priority := line.partition(":")[0]) < 200:
                site.run("ip", family, "rule", "del", "priority", priority)
        site.run("ip", family, "addr", "flush", "dev", "lo", "to", "10.255.0.0/16", check=False)


def _without_tunnels(site: RunningSite) -> dict[str, object]:
    held = _held(site)
    assert not any(held[name] for name in ("rules", "routes", "tables", "policies")), held
    assert held["forwarding"] == "0"
    return held


class TestBoot:
    @pytest.mark.parametrize("name", ["hospital-1", "centre"])
    def test_that_both_locks_are_there_before_the_agent_is(self, lab: Lab, name: str) -> None:
        site = lab.site(name)
        _cut_power(site)
        _without_tunnels(site)
        with record(lab, offering.wires(lab.network, [name])) as recording, offered(lab):
            time.sleep(STEADY_S)
            booted = _agent(site, "boot")
            time.sleep(STEADY_S)
        assert booted.status == 0, booted.stderr
        assert booted.stdout.startswith("Locked as the document (epoch 1, version "), booted.stdout
        held = _held(site)
        assert held["tables"] and held["rules"] and held["forwarding"] == "1"
        assert bool(held["policies"]) is (site.ipsec is Backend.KERNEL)
        assert not offering.cleartext(recording)
        assert not offering.delivered(recording, UNLISTED)
        assert (site.outside / "run" / "strongswan.conf").read_text().startswith("#")
        site.start()
        watch.wait_all_up(lab, UP_S)

    def test_that_each_lock_is_enough_alone_before_the_agent_is_there(self, lab: Lab) -> None:
        site = lab.site("hospital-1")
        _cut_power(site)
        assert _agent(site, "boot").status == 0
        with record(lab, offering.wires(lab.network, ["hospital-1"])) as recording, offered(lab):
            site.run("nft", "delete", "table", "inet", "cpe_agent")
            time.sleep(STEADY_S)
        assert not offering.cleartext(recording)
        site.start()
        watch.wait_all_up(lab, UP_S)

    def test_that_without_a_document_nothing_is_forwarded(self, lab: Lab) -> None:
        site = lab.site("hospital-1")
        document = site.outside / "state" / "document"
        kept = document.read_bytes()
        _cut_power(site)
        document.unlink()
        try:
            booted = _agent(site, "boot")
            assert booted.status == 0, booted.stderr
            assert booted.stdout == "Locked; nothing is forwarded: this site has never accepted a document.\n"
            held = _held(site)
            assert held["tables"] and held["forwarding"] == "0"
        finally:
            document.write_bytes(kept)
        site.start()
        watch.wait_all_up(lab, UP_S)

    def test_that_a_living_agent_is_not_disturbed(self, lab: Lab) -> None:
        site = lab.site("centre")
        with lab.flow("hospital-1-host", "centre-server", rate=100) as flow:
            flow.wait_flowing(10)
            assert _agent(site, "boot").status == 0
            time.sleep(STEADY_S)
            assert flow.stop().lost == 0
        watch.wait_all_up(lab, UP_S)


class TestDown:
    def test_that_it_refuses_while_the_agent_runs(self, lab: Lab) -> None:
        refused = _agent(lab.site("hospital-1"), "down")
        assert refused.status == 69
        assert "another agent is running" in refused.stderr

    def test_that_nothing_of_ours_is_left_and_all_of_others(self, lab: Lab) -> None:
        site = lab.site("hospital-1")
        site.run("nft", "add table inet others; add chain inet others kept")
        site.run("ip", "rule", "add", "priority", "90", "from", "192.0.2.77", "lookup", "77")
        site.run("ip", "route", "add", "192.0.2.78", "dev", "lo", "table", "77")
        main = site.run("ip", "route", "show", "table", "main").stdout
        site.agent.stop()
        with record(lab, offering.wires(lab.network, ["hospital-1"])) as recording, offered(lab):
            time.sleep(STEADY_S)
            taken = _agent(site, "down")
            time.sleep(STEADY_S)
        assert taken.status == 0, taken.stderr
        assert "Forwarding is off, 2 IKE_SAs are ended" in taken.stdout, taken.stdout
        assert not offering.cleartext(recording)
        held = _without_tunnels(site)
        assert held["addresses"] == []
        sas = site.run("swanctl", "--list-sas", "--uri", f"unix://{site.vici_socket}").stdout
        conns = site.run("swanctl", "--list-conns", "--uri", f"unix://{site.vici_socket}").stdout
        assert "cpe-" not in sas + conns
        assert "table inet others" in site.run("nft", "list", "tables").stdout
        assert "192.0.2.77" in site.run("ip", "rule").stdout
        assert site.run("ip", "route", "show", "table", "main").stdout == main
        again = _agent(site, "down")
        assert again.status == 0 and "0 IKE_SAs" in again.stdout
        site.run("nft", "delete", "table", "inet", "others")
        site.run("ip", "rule", "del", "priority", "90")
        site.agent.start()
        watch.wait_all_up(lab, UP_S)
