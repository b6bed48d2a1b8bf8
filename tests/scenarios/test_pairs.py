"""Are pairs what the document says, packet by packet, from the first listed one to the last removed one?

Real packets between hosts of the lab's second network, through real tunnels. IPv4 packets are offered by hand and
counted where they enter the site that must judge them and where they arrive (see lab/offered.py); IPv6 and the routers
themselves are spoken to by ping and curl.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cpe_agent.model.condition import Status
from cpe_controller.addresses import allocate
from cpe_controller.parse import parse
from tests.lab import web
from tests.lab.container import Process, wait_until
from tests.lab.flow import Direction
from tests.lab.lab import Lab
from tests.lab.offered import Protocol
from tests.lab.provision import apply, provision
from tests.lab.watch import has_document, wait_all_up, wait_for
from tests.lab.wide import WIDE, network_yaml
from tests.scenarios.test_failover import wait_flows_again

# What is removed and added while flows run. It has a bundle of its own, so that its tunnel comes and goes with it.
FLOW = {"from": "hospital-1.lan0", "to": "imaging", "protocol": "udp", "ports": "7000"}
PERMITS: Sequence[Mapping[str, Any]] = (
    FLOW,
    {"from": "hospital-1.lan0", "to": "records", "protocol": "tcp", "ports": ["80", "8000-8010"]},
    {"from": "hospital-1.lan0", "to": "records", "protocol": "udp", "ports": "7001"},
    {"from": "hospital-1.lan1-beyond", "to": "records", "protocol": "icmp"},
    {"from": "hospital-1.lan1-beyond", "to": "imaging", "protocol": "tcp", "ports": "80", "initiator": "either"},
    {"from": "hospital-1.lan1", "to": "imaging", "protocol": "tcp", "ports": "80", "initiator": "to"},
    {"from": "hospital-1.lan0-6", "to": "records", "protocol": "tcp", "ports": "80"},
    {"from": "hospital-1.lan0-6", "to": "imaging", "protocol": "tcp", "ports": "80", "initiator": "to"},
    {"from": "centre.lan0", "to": "imaging", "protocol": "tcp", "ports": "80"},
    {"from": "centre.lan0", "to": {"site": "hospital-1"}, "protocol": "icmp"},
    {"from": "centre.lan0", "to": {"site": "hospital-1"}, "protocol": "tcp", "ports": "8022"},
    {"from": "clinic-1", "to": "records", "protocol": "tcp", "ports": "80"},
)
SITES = ("centre", "cloud", "hospital-1")
OTHER_PORTS = (("centre-server", 81), ("centre-server", 8005), ("hospital-1", 8022), ("hospital-1", 8023))
UP_S = 40.0
IN_FORCE_S = 20.0
PACKETS = 5


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(WIDE, name="pairs") as running:
        provision(running, network_yaml(permits=PERMITS))
        running.start()
        with contextlib.ExitStack() as stack:
            for namespace, port in OTHER_PORTS:
                stack.callback(_listen(running, namespace, port).close)
            wait_all_up(running, UP_S, SITES)
            # A hub may dial the other one, and be up without it.
            for hub in ("centre", "cloud"):
                wait_for(running, hub, "carries what it dials for", _carries_all, UP_S)
            yield running
        assert running.leaked() == {}


def _listen(lab: Lab, namespace: str, port: int) -> Process:
    argv = [sys.executable, "-S", str(Path(web.__file__)), "--host", namespace, "--site", "here", "--port", str(port)]
    path = lab.path(f"/run/lab/logs/{namespace}-{port}.log")
    with open(path, "wb") as log:
        process = lab.container.spawn(argv, namespace=namespace, stdout=log)
    wait_until(f"{namespace} listens at {port}", lambda: path.read_bytes().startswith(b"ready"), UP_S)
    return process


def _carries_all(report: Status) -> bool:
    return all(path.state == "up" for path in report.paths) and all(bundle.installed for bundle in report.bundles)


def _put_in_force(lab: Lab, permits: Sequence[Mapping[str, Any]]) -> float:
    """Returns when the sites concerned obey these permits; the moment by which they did."""
    for site, version in apply(lab, network_yaml(permits=permits)).items():
        if site in SITES:
            wait_for(lab, site, f"obeys document version {version}", has_document(version), IN_FORCE_S)
    return time.monotonic()


LISTED: Sequence[tuple[str, str, Protocol, int, str]] = (
    # (sender, to, protocol, port, host at which it must arrive)
    ("hospital-1-host", "10.10.0.10", "tcp", 80, "centre-server"),
    ("hospital-1-host", "10.10.0.10", "tcp", 8005, "centre-server"),
    ("hospital-1-host", "10.20.0.10", "udp", 7000, "cloud-server"),
    ("ward-host", "10.10.0.10", "icmp", 0, "centre-server"),
    ("ward-host", "10.20.0.10", "tcp", 80, "cloud-server"),
    ("cloud-server", "10.104.0.10", "tcp", 80, "ward-host"),
    ("cloud-server", "10.103.0.10", "tcp", 80, "ward-router"),
    ("centre-server", "10.20.0.10", "tcp", 80, "cloud-server"),
)
UNLISTED: Sequence[tuple[str, str, Protocol, int]] = (
    ("hospital-1-host", "10.10.0.10", "tcp", 81),
    ("hospital-1-host", "10.10.0.10", "tcp", 7999),
    ("hospital-1-host", "10.10.0.10", "tcp", 8011),
    ("hospital-1-host", "10.10.0.10", "udp", 80),
    ("hospital-1-host", "10.10.0.10", "icmp", 0),
    ("hospital-1-host", "10.20.0.10", "tcp", 7000),
    ("hospital-1-host", "10.20.0.10", "udp", 7001),
    ("ward-host", "10.10.0.10", "tcp", 80),
    ("ward-host", "10.20.0.10", "tcp", 81),
    # Only the branch may start the first two, only the service the third.
    ("centre-server", "10.101.0.10", "tcp", 80),
    ("cloud-server", "10.101.0.10", "udp", 7000),
    ("ward-router", "10.20.0.10", "tcp", 80),
    ("centre-server", "10.104.0.10", "icmp", 0),
    ("cloud-server", "10.10.0.10", "tcp", 80),
    ("centre-server", "10.20.0.10", "tcp", 81),
    ("centre-shared", "10.20.0.10", "tcp", 80),
)


@pytest.mark.parametrize(("sender", "to", "protocol", "port", "host"), LISTED)
def test_a_listed_flow_arrives(lab: Lab, sender: str, to: str, protocol: Protocol, port: int, host: str) -> None:
    offer = lab.offer(sender, to, protocol, PACKETS, port=port)
    assert (offer.entered, offer.arrived) == (PACKETS, {host: PACKETS})


@pytest.mark.parametrize(("sender", "to", "protocol", "port"), UNLISTED)
def test_an_unlisted_flow_does_not(lab: Lab, sender: str, to: str, protocol: Protocol, port: int) -> None:
    offer = lab.offer(sender, to, protocol, PACKETS, port=port)
    assert (offer.entered, offer.arrived) == (PACKETS, {})


def test_replies_come_back(lab: Lab) -> None:
    assert lab.fetch("hospital-1-host", "http://10.10.0.10/") == "This is centre-server at centre.\n"
    assert lab.fetch("hospital-1-host", "http://10.10.0.10:8005/") == "This is centre-server at here.\n"
    assert lab.fetch("ward-host", "http://10.20.0.10/") == "This is cloud-server at cloud.\n"
    assert lab.fetch("cloud-server", "http://10.104.0.10/") == "This is ward-host at hospital-1.\n"
    assert lab.fetch("centre-server", "http://10.20.0.10/") == "This is cloud-server at cloud.\n"
    assert _pings(lab, "ward-host", "10.10.0.10")
    assert lab.fetch("centre-server", "http://10.10.0.10:81/") is not None, "nobody listens there, so nothing is shown"
    assert lab.fetch("hospital-1-host", "http://10.10.0.10:81/", timeout_s=0.5) is None


def test_ipv6_pairs(lab: Lab) -> None:
    assert lab.fetch("hospital-1-host", "http://[fd00:10::10]/") == "This is centre-server at centre.\n"
    assert lab.fetch("cloud-server", "http://[fd00:101::10]/") == "This is hospital-1-host at hospital-1.\n"
    assert lab.fetch("hospital-1-host", "http://[fd00:10::10]:81/", timeout_s=0.5) is None
    assert lab.fetch("hospital-1-host", "http://[fd00:20::10]/", timeout_s=0.5) is None
    assert lab.fetch("centre-server", "http://[fd00:101::10]/", timeout_s=0.5) is None
    assert not _pings(lab, "hospital-1-host", "fd00:10::10")


def test_a_router_is_managed_by_pairs(lab: Lab) -> None:
    router = allocate(parse(network_yaml(permits=PERMITS)), {})["hospital-1"]["site"]
    assert _pings(lab, "centre-server", router)
    assert lab.fetch("centre-server", f"http://{router}:8022/") == "This is hospital-1 at here.\n"
    assert lab.fetch("hospital-1", "http://127.0.0.1:8023/") is not None
    assert lab.fetch("centre-server", f"http://{router}:8023/", timeout_s=0.5) is None
    for stranger in ("cloud-server", "centre-shared"):
        assert not _pings(lab, stranger, router)
        assert lab.fetch(stranger, f"http://{router}:8022/", timeout_s=0.5) is None


def test_a_site_whose_provider_has_ipv6_alone(lab: Lab) -> None:
    wait_all_up(lab, UP_S, ["clinic-1"])
    assert lab.fetch("clinic-1-host", "http://10.10.0.10/") == "This is centre-server at centre.\n"
    assert lab.fetch("clinic-1-host", "http://[fd00:10::10]/") == "This is centre-server at centre.\n"
    assert lab.fetch("clinic-1-host", "http://[fd00:10::10]:81/", timeout_s=0.5) is None


def test_a_removed_pair_takes_its_flow_along_and_leaves_the_others(lab: Lab) -> None:
    with (
        lab.flow("hospital-1-host", "cloud-server", rate=200) as removed,
        lab.flow("hospital-1-host", "centre-server", rate=200, port=7001) as kept,
    ):
        removed.wait_flowing(5)
        kept.wait_flowing(5)
        gone_at = _put_in_force(lab, [permit for permit in PERMITS if permit is not FLOW])
        time.sleep(1)
        ended_at = time.monotonic()
    for direction in (removed.result.up, removed.result.down):
        assert _delivered_after(direction, gone_at, ended_at) == 0
    assert kept.result.lost == 0

    with lab.flow("hospital-1-host", "cloud-server", rate=200) as again:
        time.sleep(0.5)
        assert again.received() == (0, 0)
        _put_in_force(lab, PERMITS)
        again.wait_flowing(5)
        wait_flows_again(again)


def test_removed_while_its_replies_flow(lab: Lab) -> None:
    """A flow lives by its pair, not by conntrack: also when the end that answers is the one that sends."""
    keep = [permit for permit in PERMITS if permit is not FLOW]
    with lab.flow("hospital-1-host", "cloud-server", rate=200) as flow:
        flow.wait_flowing(5)
        lab.run("hospital-1-host", "nft", "-f", "-", input=_MUTE)
        try:
            # What is told is up to 100 ms old, so some of these were asked before.
            heard = flow.received()[1] + 50
            wait_until("replies go on though the starter is mute", lambda: flow.received()[1] > heard, 5)
            gone_at = _put_in_force(lab, keep)
            time.sleep(1)
            ended_at = time.monotonic()
        finally:
            lab.run("hospital-1-host", "nft", "delete", "table", "ip", "mute")
    assert _delivered_after(flow.result.down, gone_at, ended_at) == 0
    _put_in_force(lab, PERMITS)


_MUTE = """
table ip mute {
  chain output {
    type filter hook output priority 0;
    udp dport 7000 drop
  }
}
"""


def _delivered_after(direction: Direction, moment_s: float, ended_s: float) -> int:
    """How many packets arrived later than this; exact if it is 0, and otherwise at least 1."""
    silent_from_s = direction.longest_gap_at_s
    silent_until_s = silent_from_s + direction.longest_gap_ms / 1000
    if silent_from_s <= moment_s and silent_until_s >= ended_s - 0.1:
        return 0
    return max(1, direction.received)


def _pings(lab: Lab, namespace: str, address: str) -> bool:
    return lab.run(namespace, "ping", "-n", "-c", "1", "-W", "1", address, check=False).status == 0
