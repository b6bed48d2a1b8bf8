"""When is a hub willing to serve, what does it tell its data centre, and whom does it recognise twice?

A lab of its own: its hubs check their LANs, and there is a box more, `clone`, with nothing on it but van-1's key.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import yaml

from cpe_agent.model.condition import Status
from tests.lab import watch
from tests.lab.container import Completed, wait_until
from tests.lab.lab import Lab
from tests.lab.pace import patience
from tests.lab.provision import apply, network_yaml, provision
from tests.lab.topology import NETWORK, Site, lan, uplink
from tests.scenarios.looking import wait_at_rest
from tests.scenarios.publishing import served

SHARED = "centre+cloud"
SHARED_PAGE = "http://10.50.0.10/"
HUBS = ("centre", "cloud")
BRANCHES = ("hospital-1", "van-1")
CLONE = Site(
    "clone",
    "branch",
    uplinks=(uplink("lte", "cellular", "203.0.113.34/28", "203.0.113.33"),),
    lans=(lan("lan0", "10.103.0.0/24", "clone-host"),),
)
CHECKS = {"centre": {"lan0": "10.10.0.10"}, "cloud": {"lan0": "10.20.0.10", "lan1": "10.50.0.10"}}
START_S = 40.0
# Probes of 100 ms, three missed; then a move, and a failback.
MOVE_S = 15.0
# Twice as long as IKE_SAs may overlap, and a look at charon every ten seconds.
DUPLICATE_S = 80.0
# One round trip of an IKE exchange takes less by far.
LONGEST_GAP_MS = 200.0
# Inner addresses of hubs that had no document yet.
fresh: dict[str, set[str]] = {}


@pytest.fixture(scope="module")
def hub_lab() -> Iterator[Lab]:
    with Lab(dataclasses.replace(NETWORK, sites=(*NETWORK.sites, CLONE)), name="hub-service") as lab:
        provision(lab, _network())
        for site in HUBS:
            lab.site(site).start()
            watch.wait_for(lab, site, "it has no document", lambda report: "NoDocument" in _names(report), START_S)
            fresh[site] = _inner_addresses(lab, site)
        lab.controller.start()
        for site in BRANCHES:
            lab.site(site).start()
        _wait_home(lab)
        yield lab


@pytest.fixture
def lab(hub_lab: Lab) -> Iterator[Lab]:
    yield hub_lab
    _wait_home(hub_lab)
    assert hub_lab.leaked() == {}, "private packets reached the internet"


def test_that_a_hub_without_a_document_is_not_ready(lab: Lab) -> None:
    assert fresh == {"centre": set(), "cloud": set()}
    assert all(_answering(lab, hub, address) for hub in HUBS for address in _ready(lab, hub))


def test_that_a_drained_hub_is_left_without_a_loss_and_taken_again(lab: Lab) -> None:
    with (
        lab.flow("hospital-1-host", "cloud-server", rate=200, port=7001) as steady,
        lab.flow("hospital-1-host", "centre-shared", twin="cloud-shared", rate=200) as flow,
    ):
        steady.wait_flowing(5)
        flow.wait_flowing(5)
        first = _ask(lab, "centre", "drain")
        assert first.status == 0 and "is drained now" in first.stdout, first
        again = _ask(lab, "centre", "drain")
        assert again.status == 0 and "was drained already" in again.stdout, again
        for site in BRANCHES:
            watch.wait_for(lab, site, "the shared bundle is at the cloud", _shared_at("cloud"), MOVE_S)
        assert _names(watch.status(lab, "centre")) == {"Draining"}
        # What only the centre serves stays there.
        assert watch.active_path(watch.status(lab, "hospital-1"), "centre") == "wired.centre.wan"

        undrained = _ask(lab, "centre", "undrain")
        assert undrained.status == 0 and "is no longer drained: it serves" in undrained.stdout, undrained
        assert json.loads(_ask(lab, "centre", "undrain", "--json").stdout)["changed"] is False
        for site in BRANCHES:
            watch.wait_for(lab, site, "the shared bundle is back", _shared_at("centre"), MOVE_S)
        assert _names(watch.status(lab, "centre")) == set()
        time.sleep(1)
    assert flow.result.up.lost == 0, flow.result.up
    # The server that was left goes on sending, to nobody: what counts is that the host hears one of the two. A machine
    # that stands still does so for the flow that nobody moves as well.
    stood_still_ms = steady.result.down.longest_gap_ms
    assert flow.result.down.longest_gap_ms < patience(LONGEST_GAP_MS) + stood_still_ms, (flow.result, steady.result)


def test_that_a_drained_hub_stays_so_when_its_agent_restarts(lab: Lab) -> None:
    _ask(lab, "centre", "drain")
    watch.wait_for(lab, "van-1", "the shared bundle is at the cloud", _shared_at("cloud"), MOVE_S)
    lab.site("centre").agent.kill()
    lab.site("centre").agent.start()
    watch.wait_for(lab, "centre", "it is drained", lambda report: _names(report) == {"Draining"}, MOVE_S)
    assert _inner_addresses(lab, "centre") >= _ready(lab, "centre")
    assert not any(_answering(lab, "centre", address) for address in _ready(lab, "centre"))
    branch = watch.status(lab, "van-1")
    assert [path.ready for path in branch.paths if path.peer == "centre"] == [False], "a running probe is answered"
    assert _shared_at("cloud")(watch.status(lab, "van-1"))
    _ask(lab, "centre", "undrain")


def test_that_a_branch_is_not_drained(lab: Lab) -> None:
    refused = _ask(lab, "van-1", "drain")
    assert refused.status != 0 and "is a branch" in refused.stderr


def test_that_the_document_drains_a_hub(lab: Lab) -> None:
    apply(lab, _network(lambda network: network["hubs"]["centre"].update(drain=True)))
    watch.wait_for(lab, "van-1", "the shared bundle is at the cloud", _shared_at("cloud"), MOVE_S)
    undrained = _ask(lab, "centre", "undrain")
    assert "does not serve yet" in undrained.stdout and "the document drains this hub" in undrained.stdout
    apply(lab, _network())
    watch.wait_for(lab, "van-1", "the shared bundle is back", _shared_at("centre"), MOVE_S)


def test_that_a_hub_whose_server_is_silent_is_left(lab: Lab) -> None:
    with lab.flow("van-1-host", "centre-shared", twin="cloud-shared") as flow:
        flow.wait_flowing(5)
        _silence(lab, "centre-server", True)
        watch.wait_for(lab, "van-1", "the shared bundle is at the cloud", _shared_at("cloud"), MOVE_S)
        failed = watch.status(lab, "centre")
        assert [(c.type, c.subject) for c in failed.conditions] == [("LanCheckFailed", "lan0")]
        assert "10.10.0.10 does not answer" in failed.conditions[0].reason
        _silence(lab, "centre-server", False)
        watch.wait_for(lab, "van-1", "the shared bundle is back", _shared_at("centre"), MOVE_S)
        time.sleep(1)
    assert flow.result.up.lost == 0, flow.result.up


def test_that_a_hub_whose_lan_has_no_carrier_is_left_at_once(lab: Lab) -> None:
    lab.run("centre-server", "ip", "link", "set", "eth0", "down")
    since = time.monotonic()
    watch.wait_for(lab, "centre", "it says so", lambda report: "LanCheckFailed" in _names(report), MOVE_S)
    assert time.monotonic() - since < patience(1.0)
    watch.wait_for(lab, "van-1", "the shared bundle is at the cloud", _shared_at("cloud"), MOVE_S)
    lab.run("centre-server", "ip", "link", "set", "eth0", "up")
    lab.run("centre-server", "ip", "route", "replace", "default", "via", "10.10.0.1")
    watch.wait_for(lab, "van-1", "the shared bundle is back", _shared_at("centre"), MOVE_S)


def test_that_return_routes_come_and_go_with_branches(lab: Lab) -> None:
    assert {"10.101.0.0/24", "10.102.0.0/24"} <= _return_routes(lab, "centre")
    assert {"10.101.0.0/24", "10.102.0.0/24"} <= _return_routes(lab, "cloud")
    lab.site("van-1").agent.stop()
    lab.site("van-1").charon.stop()
    for hub in HUBS:
        wait_until(f"{hub} has no route to the van", partial(_has_route, lab, hub, "10.102.0.0/24", False), 5)
        assert "10.101.0.0/24" in _return_routes(lab, hub)
    # Without them the van's subnet is as shut as before.
    refused = lab.run("centre", "ip", "route", "get", "10.102.0.10", "from", "10.10.0.10", "iif", "lan0", check=False)
    assert lab.backend.device in refused.stdout or refused.status != 0
    lab.site("van-1").start()
    for hub in HUBS:
        wait_until(f"{hub} has a route to the van", partial(_has_route, lab, hub, "10.102.0.0/24", True), START_S)


def test_that_an_agent_that_restarts_takes_no_return_route_away(lab: Lab) -> None:
    log = lab.path("/run/lab/route-monitor")
    with open(log, "wb") as stdout:
        monitor = lab.container.spawn(["ip", "-4", "monitor", "route"], namespace="centre", stdout=stdout)
    lab.site("centre").agent.kill()
    lab.site("centre").agent.start()
    watch.wait_for(lab, "centre", "it is back", watch.all_up, START_S)
    time.sleep(2)
    monitor.signal(signal.SIGTERM)
    monitor.wait(5)
    assert "10.101.0.0/24" not in log.read_text()


def test_that_a_hub_hides_branches_from_servers_without_a_route(lab: Lab) -> None:
    url = "http://10.10.0.10/"
    lab.run("centre-server", "ip", "route", "del", "default")
    try:
        assert lab.fetch("hospital-1-host", url, 1) is None
        apply(lab, _network(lambda network: network["hubs"]["centre"].update(hub_nat=True)))
        wait_until("the server is reached", lambda: lab.fetch("hospital-1-host", url, 1) is not None, MOVE_S)
        assert (lab.fetch("van-1-host", url) or "").strip() == "This is centre-server at centre."
        watch.wait_for(lab, "centre", "the chain is as it was wanted", watch.all_up, MOVE_S)
        # What is not listed is not let in by being translated.
        offer = lab.offer("hospital-1-host", "10.10.0.1", "udp", 20)
        assert offer.arrived == {}
    finally:
        lab.run("centre-server", "ip", "route", "replace", "default", "via", "10.10.0.1")
        apply(lab, _network())
    wait_until("it is routed again", lambda: lab.fetch("hospital-1-host", url, 1) is not None, MOVE_S)


def test_that_a_cloned_key_is_noticed_and_forgotten(lab: Lab) -> None:
    clone = lab.site("clone")
    for name in ("key.pem", "certificate.pem"):
        shutil.copy(lab.path(f"/run/van-1/{name}"), lab.path(f"/run/clone/{name}"))
    settings = yaml.safe_load((clone.outside / "agent.yaml").read_text())
    (clone.outside / "agent.yaml").write_text(yaml.safe_dump({**settings, "site": "van-1"}))
    lab.run("clone", "ip", "addr", "add", "10.102.0.1/24", "dev", "lan0")
    clone.start()
    report = watch.wait_for(lab, "centre", "the clone is noticed", _has("IdentityDuplicated"), DUPLICATE_S)
    found = next(condition for condition in report.conditions if condition.type == "IdentityDuplicated")
    assert found.subject == "van-1" and found.severity.value == "degraded"
    assert "203.0.113.34" in found.reason and "203.0.113.100" in found.reason
    metrics = lab.run("centre", "curl", "-sf", "--max-time", str(patience(3)), "http://127.0.0.1:9273/metrics").stdout
    assert 'cpe_agent_condition{type="IdentityDuplicated"} 1.0' in metrics
    clone.agent.stop()
    clone.charon.stop()
    watch.wait_for(lab, "centre", "it is forgotten", lambda r: not _has("IdentityDuplicated")(r), 60)


def _network(change: Callable[[dict[str, Any]], None] | None = None) -> str:
    described: dict[str, Any] = yaml.safe_load(
        network_yaml(dataclasses.replace(NETWORK, sites=(*NETWORK.sites, CLONE)))
    )
    for hub, lans in CHECKS.items():
        for name, address in lans.items():
            described["hubs"][hub]["lans"][name]["check"] = address
    if change is not None:
        change(described)
    return yaml.safe_dump(described, sort_keys=False)


def _ask(lab: Lab, site: str, *command: str) -> Completed:
    config = str(lab.site(site).inside / "agent.yaml")
    return lab.site(site).run(sys.executable, "-m", "cpe_agent", *command, "--config", config, check=False)


def _names(report: Status) -> set[str]:
    return {condition.type for condition in report.conditions}


def _has(type_: str) -> watch.Predicate:
    return lambda report: type_ in _names(report)


def _shared_at(hub: str) -> watch.Predicate:
    return watch.carried(SHARED, peer=hub)


def _wait_home(lab: Lab) -> None:
    """Until all is as every test of this lab begins: also at the hubs, which say that a document is on trial."""
    for site in BRANCHES:
        watch.wait_for(lab, site, "all is up", lambda r: watch.all_up(r) and _shared_at("centre")(r), START_S)
        wait_at_rest(lab, site)
    for site in HUBS:
        watch.wait_for(lab, site, "nothing is wrong", lambda report: not report.conditions, START_S)


def _inner_addresses(lab: Lab, site: str) -> set[str]:
    """What is on lo, apart from 127.0.0.1."""
    found: set[str] = set()
    for link in json.loads(lab.run(site, "ip", "-j", "-4", "addr", "show", "dev", "lo").stdout):
        found |= {address["local"] for address in link["addr_info"]}
    return found - {"127.0.0.1"}


def _answering(lab: Lab, hub: str, address: str) -> bool:
    """Does the hub's table let the address answer echo?"""
    element = ["nft", "get", "element", "inet", "cpe_agent", "answering4", f"{{ {address} }}"]
    return lab.run(hub, *element, check=False).status == 0


def _ready(lab: Lab, hub: str) -> set[str]:
    """The hub's ready addresses, by the document that it is served: its own copy may be on trial still."""
    return {endpoint["ready_address"] for endpoint in served(lab, hub)["endpoints"]}


def _return_routes(lab: Lab, hub: str) -> set[str]:
    listed = json.loads(lab.run(hub, "ip", "-j", "-4", "route", "show", "table", "main", "proto", "155").stdout)
    assert all(route["dev"] == lab.backend.device and "gateway" not in route for route in listed), listed
    return {route["dst"] for route in listed}


def _has_route(lab: Lab, hub: str, subnet: str, there: bool) -> bool:
    return (subnet in _return_routes(lab, hub)) is there


def _silence(lab: Lab, host: str, silent: bool) -> None:
    lab.run(host, "sysctl", "-qw", f"net.ipv4.icmp_echo_ignore_all={int(silent)}")
