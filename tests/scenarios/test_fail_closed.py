"""Does a hub or a branch ever let out a packet of a protected subnet in cleartext, or pass a flow that nobody listed?

One network lives from its first start to its last shutdown while everything is offered at 100 packets a second and
every wire is recorded outside the sites; what the recording shows is then judged phase by phase. After that each of
the two locks (nftables; routing) is taken away with nobody there to repair it, and last both, which must be seen.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import yaml

from cpe_agent.model.dataplane import Backend
from tests.lab import watch
from tests.lab.capture import Packet, Recording, record, uplink_wire
from tests.lab.container import wait_until
from tests.lab.lab import Lab
from tests.lab.provision import apply, network_yaml, provision
from tests.lab.site import RunningSite
from tests.lab.topology import NETWORK, Network
from tests.scenarios import offering
from tests.scenarios.offering import FROM_OUTSIDE, LISTED, LISTED_PORT, RATE, UNLISTED, between, offered
from tests.scenarios.publishing import cut_off, given_up, publish, served

SITES = ("centre", "hospital-1")  # the hub and the branch that are watched; the van is another LAN
UP_S = 40.0
REPAIR_S = 10.0
STEADY_S = 1.0
CONFIRM_S = 5
# A loaded machine sends in bursts, and a phase may be as short as a second.
AT_LEAST = 0.5
# Listed like LISTED_PORT, and offered by nobody.
OTHER_PORT = 7020

SHORT = replace(
    NETWORK,
    sites=tuple(site for site in NETWORK.sites if site.name != "cloud"),
    nats=tuple(nat for nat in NETWORK.nats if nat.name != "cloud-nat"),
)


@dataclass(frozen=True)
class Phase:
    name: str
    since_ns: int
    until_ns: int


@dataclass
class Story:
    phases: list[Phase] = field(default_factory=list)
    recording: Recording = field(default_factory=Recording)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Whatever it is, it is given a second more, for what comes late."""
        since_ns = time.monotonic_ns()
        yield
        time.sleep(STEADY_S)
        self.phases.append(Phase(name, since_ns, time.monotonic_ns()))


PHASES = (
    "nothing runs", "charon alone", "no document", "first document", "all is well", "agents killed",
    "an uplink is swapped", "charons killed", "rulesets flushed", "rekeyed", "replaced", "another document",
    "document given up", "agents stopped", "charons stopped",
)  # fmt: skip


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(SHORT, name="closed") as running:
        provision(running, _network(SHORT))
        yield running


@pytest.fixture(scope="module")
def story(lab: Lab) -> Story:
    """The whole life of the network, once."""
    story = Story()
    sites = [lab.site(name) for name in SITES]
    with record(lab, offering.wires(lab.network, SITES)) as story.recording, offered(lab):
        _begin(lab, story)
        with story.phase("agents killed"):
            for site in sites:
                site.agent.kill()
            time.sleep(STEADY_S)
            for site in sites:
                site.agent.start()
            watch.wait_all_up(lab, UP_S)
        # The first failure that this agent sees: after others it would stay on lte for five times as long.
        with story.phase("an uplink is swapped"):
            _swap_uplink(lab)
        for site in sites:
            with story.phase("charons killed"):
                site.charon.kill()
                time.sleep(STEADY_S)
                site.start_charon()
                watch.wait_all_up(lab, UP_S)
        with story.phase("rulesets flushed"):
            # Not both at once: between subnets of a bundle the far end's rules are the second lock.
            for site in sites:
                site.run("nft", "flush", "ruleset")
                wait_until("the table is back", partial(_has_table, site), REPAIR_S)
        with story.phase("rekeyed"):
            _rekey(lab.site("hospital-1"))
        with story.phase("replaced"):
            _rekey(lab.site("hospital-1"), "--reauth")
            watch.wait_all_up(lab, UP_S)
        with story.phase("another document"):
            for others in (("7020", "7021", "7022"), ("7020", "7021")):
                for name, version in apply(lab, _network(lab.network, others)).items():
                    watch.wait_for(lab, name, "obeys", watch.has_document(version), UP_S)
        with story.phase("document given up"):
            document = served(lab, "hospital-1")
            # It goes back to the last one that was confirmed.
            watch.wait_for(lab, "hospital-1", "is settled", lambda report: report.document_confirmed, UP_S)
            wrong = cut_off(document, "centre", CONFIRM_S)
            publish(lab, "hospital-1", wrong, wrong["version"])
            # Its paths to the centre can't come up under it.
            watch.wait_for(lab, "hospital-1", "tries it", lambda r: r.document_version == wrong["version"], UP_S)
            watch.wait_for(lab, "hospital-1", "goes back", given_up(document["version"]), UP_S)
        with story.phase("agents stopped"):
            for site in sites:
                site.agent.stop()
        with story.phase("charons stopped"):
            for site in sites:
                site.charon.stop()
    return story


def _begin(lab: Lab, story: Story) -> None:
    """From a machine on which nothing has ever run."""
    with story.phase("nothing runs"):
        pass
    with story.phase("charon alone"):
        for site in lab.sites.values():
            site.start_charon()
    with story.phase("no document"):
        for site in lab.sites.values():
            site.agent.start()
        for name in lab.sites:
            watch.wait_for(lab, name, "is there, and has no document", lambda r: r.document_version is None, UP_S)
    with story.phase("first document"):
        lab.controller.start()
        watch.wait_all_up(lab, UP_S)
    with story.phase("all is well"):
        pass


def _swap_uplink(lab: Lab) -> None:
    uplink = lab.site("hospital-1").uplink("wired")
    uplink.cut()
    watch.wait_for(lab, "hospital-1", "is carried over lte", watch.carried("centre", uplink="lte"), UP_S)
    time.sleep(STEADY_S)
    uplink.restore()
    for stream in FROM_OUTSIDE:
        offering.lead_in(lab, stream)
    watch.wait_for(lab, "hospital-1", "is back on wired", watch.carried("centre", uplink="wired"), UP_S)


def _rekey(site: RunningSite, *options: str) -> None:
    """Every IKE_SA, and then the probe's and the traffic's CHILD_SAs."""
    uri = f"unix://{site.vici_socket}"
    listed = site.run("swanctl", "--list-sas", "--uri", uri).stdout.splitlines()
    names = [line.split(":")[0] for line in listed if line.startswith("cpe-")]
    assert names
    for name in names:
        site.run("swanctl", "--rekey", "--ike", name, *options, "--uri", uri)
    if not options:
        for child in sorted({line.split(":")[0].strip() for line in listed if line.startswith("  ") and ": #" in line}):
            site.run("swanctl", "--rekey", "--child", child, "--uri", uri)


def _has_table(site: RunningSite) -> bool:
    return site.run("nft", "list", "table", "inet", "cpe_agent", check=False).status == 0


def _network(network: Network, others: Sequence[str] = ("7020", "7021")) -> str:
    """The lab's, in which branches may start the listed flow to the hub's server, and others that nobody offers."""
    described: dict[str, Any] = yaml.safe_load(network_yaml(network))
    listed = {"from": "branches", "to": "service-10-10-0-0", "protocol": "udp"}
    described["permits"] = [listed | {"ports": ports} for ports in (str(LISTED_PORT), *others)]
    return str(yaml.safe_dump(described, sort_keys=False))


def _some(packets: Sequence[Packet]) -> str:
    return "\n".join([f"{len(packets)} packets:", *map(str, packets[:20])])


@pytest.mark.parametrize("name", PHASES)
def test_that_nothing_gets_out_or_through(story: Story, name: str) -> None:
    phases = [phase for phase in story.phases if phase.name == name]
    assert phases, "this phase was never lived through"
    for phase in phases:
        since, until = phase.since_ns, phase.until_ns
        seconds = (until - since) / 1e9
        for stream in (LISTED, *UNLISTED, *FROM_OUTSIDE):
            if name == "an uplink is swapped" and stream.sender == "net-hospital-1-wired":
                continue  # it has no link
            count = len(between(offering.offered_packets(story.recording, stream), since, until))
            assert count >= AT_LEAST * RATE * seconds, f"{stream}: {count} in {seconds:.1f} s: not enough was offered"
        seen = between(offering.cleartext(story.recording), since, until)
        assert not seen, f"in cleartext on an uplink: {_some(seen)}"
        seen = between(offering.delivered(story.recording, (*UNLISTED, *FROM_OUTSIDE)), since, until)
        assert not seen, f"delivered, though nobody lists it: {_some(seen)}"


def test_that_nothing_happened_between_the_phases(story: Story) -> None:
    """Nor before the first and after the last."""
    assert not offering.cleartext(story.recording)
    assert not offering.delivered(story.recording, (*UNLISTED, *FROM_OUTSIDE))


@pytest.mark.parametrize(
    "name", ["all is well", "agents killed", "rulesets flushed", "rekeyed", "another document", "document given up"]
)
def test_that_the_listed_flow_passes(story: Story, name: str) -> None:
    """So that silence elsewhere means something."""
    (phase,) = (phase for phase in story.phases if phase.name == name)
    seconds = (phase.until_ns - phase.since_ns) / 1e9
    arrived = between(offering.delivered(story.recording, [LISTED]), phase.since_ns, phase.until_ns)
    assert len(arrived) >= AT_LEAST * RATE * seconds
    outer = [p for p in between(story.recording.packets, phase.since_ns, phase.until_ns) if p.port == 4500]
    assert {p.wire.namespace for p in outer} >= {"net-centre-wan", "net-hospital-1-wired"}


@pytest.mark.parametrize("name", ["nothing runs", "charon alone", "no document", "charons stopped"])
def test_that_without_tunnels_nothing_passes(story: Story, name: str) -> None:
    (phase,) = (phase for phase in story.phases if phase.name == name)
    settled_ns = phase.until_ns - round(STEADY_S * 0.5e9)
    assert not between(offering.delivered(story.recording, [LISTED]), settled_ns, phase.until_ns)


def _all_run(lab: Lab) -> None:
    """Whatever the story has left off."""
    for each in lab.sites.values():
        if not each.charon.running:
            each.start_charon()
        each.agent.start()
    watch.wait_all_up(lab, UP_S)


class TestLocks:
    """Each is enough alone, whether the tunnels are up or not; and the recording sees it when there is none."""

    @pytest.mark.parametrize("name", SITES)
    def test_one_after_the_other(self, lab: Lab, story: Story, name: str) -> None:
        site = lab.site(name)
        _all_run(lab)
        taken = Story()
        with record(lab, offering.wires(lab.network, [name])) as taken.recording, offered(lab):
            for tunnels in ("up", "down"):
                if tunnels == "down":
                    site.end_tunnels()
                for lock in ("nftables", "routing"):
                    site.agent.stop()
                    with taken.phase(f"without {lock}, tunnels {tunnels}"):
                        _take_away(site, lock)
                    site.agent.start()
                    wait_until("both locks are back", lambda: _has_table(site) and _is_locked(site), REPAIR_S)
            site.agent.stop()
            with taken.phase("without any"):
                _take_away(site, "nftables")
                _take_away(site, "routing")
                assert site.run("sysctl", "-n", "net.ipv4.ip_forward").stdout.strip() == "1"
            site.start_charon()
            site.agent.start()
        *locked, opened = taken.phases
        for phase in locked:
            seen = between(offering.cleartext(taken.recording), phase.since_ns, phase.until_ns)
            assert not seen, f"{phase.name}: {_some(seen)}"
            seen = between(offering.delivered(taken.recording, UNLISTED), phase.since_ns, phase.until_ns)
            assert not seen, f"{phase.name}: {_some(seen)}"
        leaked = between(offering.cleartext(taken.recording), opened.since_ns, opened.until_ns)
        assert len(leaked) >= AT_LEAST * RATE, "with both locks gone the leak must be seen"

    @pytest.mark.parametrize("name", SITES)
    def test_that_the_second_outlasts_any_of_its_tables(self, lab: Lab, story: Story, name: str) -> None:
        """With the first gone: what a LAN sends to the internet, and what the router itself says of packets that it
        cannot deliver, stays inside."""
        del story  # it comes first
        site = lab.site(name)
        _all_run(lab)
        taken = Story()
        wires = offering.wires(lab.network, [name])
        with (
            lab.flow("hospital-1-host", "centre-server", port=OTHER_PORT) as flow,
            record(lab, wires) as taken.recording,
            offered(lab),
        ):
            # From here on something comes out of the tunnel, whatever can be done with it.
            flow.wait_flowing(UP_S)
            for table in _tables(site):
                # What it fetched lately must be confirmed before it ends, or two ends give the document up.
                watch.wait_for(lab, name, "is settled", lambda report: report.document_confirmed, UP_S)
                site.agent.kill()
                with taken.phase(f"without nftables and table {table}"):
                    _take_away(site, "nftables")
                    site.run("ip", "route", "flush", "table", table)
                site.agent.start()
                wait_until("all is back", partial(_holds, site, table), REPAIR_S)
        for phase in taken.phases:
            seen = between(offering.cleartext(taken.recording), phase.since_ns, phase.until_ns)
            assert not seen, f"{phase.name}: {_some(seen)}"
            seen = between(offering.delivered(taken.recording, UNLISTED), phase.since_ns, phase.until_ns)
            assert not seen, f"{phase.name}: {_some(seen)}"


class TestErrors:
    """The kernel tells the sender of a fragment that never becomes whole: to the internet it must not, least of all to
    a source that is private and that this site has never heard of."""

    @pytest.mark.parametrize("ruled", [True, False])
    def test_of_a_fragment_that_stays_alone(self, lab: Lab, story: Story, ruled: bool) -> None:
        del story  # it comes first
        site = lab.site("van-1")
        uplink = site.uplink("lte")
        if not ruled:
            site.agent.stop()
            entries = json.loads(site.run("nft", "-j", "list", "chain", "inet", "cpe_agent", "output").stdout)[
                "nftables"
            ]
            jump = {"jump": {"target": "drop_uplink_output"}}
            for rule in (e["rule"] for e in entries if jump in e.get("rule", {}).get("expr", ())):
                site.run("nft", f"delete rule inet cpe_agent output handle {rule['handle']}")
        site.run("sysctl", "-q", "-w", "net.ipv4.ipfrag_time=1")
        told = _time_exceeded(site)
        try:
            with record(lab, [uplink_wire("van-1", "lte")]) as recording:
                lab.run(uplink.router, sys.executable, "-c", _LONE_FRAGMENT, "10.101.0.10", str(uplink.address.ip))
                wait_until("the kernel gives up", lambda: _time_exceeded(site) > told, 10)
        finally:
            site.run("sysctl", "-q", "-w", "net.ipv4.ipfrag_time=30")
            site.agent.start()
        seen = offering.cleartext(recording)
        assert not seen if ruled else len(seen) == 1, _some(seen)


_LONE_FRAGMENT = """
import socket, struct, sys
source, to = map(socket.inet_aton, sys.argv[1:])
header = struct.pack("!BBHHHBBH", 0x45, 0, 0, 4242, 0x2000, 64, 17, 0) + source + to
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
    raw.sendto(header + struct.pack("!HHHH", 5000, 4500, 64, 0) + bytes(16), (sys.argv[2], 0))
"""


def _time_exceeded(site: RunningSite) -> int:
    """How many such messages this site's kernel has made, whatever became of them."""
    lines = site.run("cat", "/proc/net/snmp").stdout.splitlines()
    names, values = (line.split() for line in lines if line.startswith("Icmp:"))
    return int(values[names.index("OutTimeExcds")])


def _take_away(site: RunningSite, lock: str) -> None:
    if lock == "nftables":
        site.run("nft", "delete", "table", "inet", "cpe_agent")
    else:
        for priority in _rules(site):
            site.run("ip", "rule", "del", "priority", priority)
        if site.ipsec is Backend.KERNEL:
            site.run("ip", "xfrm", "policy", "deleteall", "action", "block")


def _tables(site: RunningSite) -> list[str]:
    """Those of ours that hold something and lock."""
    found = json.loads(site.run("ip", "-4", "-j", "route", "show", "table", "all", "protocol", "155").stdout)
    return sorted({str(route["table"]) for route in found if str(route.get("table", "main")).startswith("1550")})


def _holds(site: RunningSite, table: str) -> bool:
    return _has_table(site) and table in _tables(site)


def _is_locked(site: RunningSite) -> bool:
    """Is the second lock there: our rules and, with the kernel's ESP, the policies that let nothing else through?"""
    blocks = site.run("ip", "xfrm", "policy", "list", "action", "block", check=False).stdout
    return bool(_rules(site)) and (bool(blocks.strip()) or site.ipsec is Backend.USERLAND)


def _rules(site: RunningSite) -> list[str]:
    """Priorities of the rules that keep what enters, or is for a protected subnet, out of the main table."""
    priorities = [line.partition(":")[0] for line in site.run("ip", "rule").stdout.splitlines()]
    return [priority for priority in priorities if 110 <= int(priority) < 140]
