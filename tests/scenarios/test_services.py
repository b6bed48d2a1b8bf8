"""Servers die behind hubs that live, uplinks are drilled, and nobody is fooled.

A lab of its own: its services are probed.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from cpe_agent import exits
from cpe_agent.model.condition import Status
from tests.bench import planned
from tests.lab import watch
from tests.lab.container import Completed, wait_until
from tests.lab.lab import Lab
from tests.lab.provision import network_yaml, provision
from tests.lab.topology import NETWORK
from tests.scenarios.looking import wait_at_rest

SHARED = "centre+cloud"
SITE = "hospital-1"
START_S = 40.0
# A round of ten seconds, two quick ones, three patiences of two seconds; a trial; a move.
NOTICED_S = 25.0
# The first return trial waits 15 s, and a failback three.
RETURN_S = 60.0


@pytest.fixture(scope="module")
def service_lab() -> Iterator[Lab]:
    with Lab(name="services") as lab:
        provision(lab, _network())
        lab.start()
        watch.wait_all_up(lab, START_S)
        yield lab
        lab.save_logs()


@pytest.fixture
def lab(service_lab: Lab) -> Iterator[Lab]:
    _wait_home(service_lab)
    yield service_lab
    assert service_lab.leaked() == {}, "private packets reached the internet"


def test_that_servers_are_asked_through_the_pairs_own_rules(lab: Lab) -> None:
    report = watch.status(lab, SITE)
    states = {service.server: (service.state, service.peer) for service in report.services}
    assert states == {
        "10.10.0.10 (tcp 80)": ("answering", "centre"),
        "10.20.0.10 (echo)": ("answering", "cloud"),
        "10.50.0.10 (echo)": ("answering", "centre"),
    }
    # Nothing else leaves by the address that asks.
    ping = lab.run(SITE, "ping", "-c1", "-W1", "-I", "10.101.0.1", "10.10.0.10", check=False)
    assert ping.status != 0, "an echo to a server that is asked by tcp"
    wait_until("verify finds nothing", lambda: _ask(lab, SITE, "verify").status == 0, NOTICED_S, 0.5)


def test_that_a_bundle_leaves_a_hub_whose_server_is_dead_and_comes_back(lab: Lab) -> None:
    _silence(lab, "centre-shared", True)
    try:
        since = time.monotonic()
        report = watch.wait_for(lab, SITE, "it is at the cloud", watch.carried(SHARED, peer="cloud"), NOTICED_S)
        print(f"moved after {time.monotonic() - since:.1f} s")
        assert all(path.state == "up" for path in report.paths), "no path had failed"
        wait_until("the trial is over", lambda: not _trial_children(lab), 5)
        assert watch.active_path(report, "centre") == "wired.centre.wan", "the others stay"
        time.sleep(5)
        assert watch.carried(SHARED, peer="cloud")(watch.status(lab, SITE)), "it stays away"
    finally:
        _silence(lab, "centre-shared", False)
    watch.wait_for(lab, SITE, "it is back", watch.carried(SHARED, peer="centre"), RETURN_S)


def test_that_nothing_moves_when_the_server_is_dead_behind_both(lab: Lab) -> None:
    for host in ("centre-shared", "cloud-shared"):
        _silence(lab, host, True)
    try:
        silent = watch.wait_for(lab, SITE, "it is noticed", _silent("10.50.0.10"), NOTICED_S)
        condition = next(c for c in silent.conditions if c.type == "ServerSilent")
        assert "10.50.0.10 (echo) does not answer behind centre" in condition.reason
        moves = _moves(silent)
        until = time.monotonic() + 30
        while time.monotonic() < until:
            assert watch.carried(SHARED, peer="centre")(watch.status(lab, SITE))
            time.sleep(0.2)
        assert _moves(watch.status(lab, SITE)) == moves
    finally:
        for host in ("centre-shared", "cloud-shared"):
            _silence(lab, host, False)
    wait_until("it answers again", lambda: not _silent("10.50.0.10")(watch.status(lab, SITE)), NOTICED_S)


def test_that_a_drill_takes_an_uplink_out_and_loses_nothing(lab: Lab) -> None:
    with lab.flow("hospital-1-host", "centre-server", rate=100) as flow:
        flow.wait_flowing(5)
        done = _ask(lab, SITE, "drill", "uplink", "wired")
        assert done.status == exits.DRILL_UNMEASURED, "nothing is known of one bundle"
        assert "taking out uplink wired" in done.stdout and "all have left" in done.stdout
    assert flow.result.lost == 0, flow.result
    records = [json.loads(line) for line in _ask(lab, SITE, "drill", "--records", "--json").stdout.splitlines()]
    assert [record["outcome"] for record in records[-2:]] == ["began", "done"]
    assert {move["to_path"] for move in records[-1]["moves"]} == {"lte.centre.wan", "lte.cloud.wan"}
    assert {stream["bundle"] for stream in records[-1]["streams"]} == {"cloud", SHARED}
    assert all(stream["lost"] == 0 and stream["sent"] > 300 for stream in records[-1]["streams"])
    assert records[-1]["unmeasured"] == ["centre"], "its probe is no echo"
    assert _ask(lab, SITE, "drill", "--check").status == 0


def test_that_a_drain_without_the_controller_loses_nothing(lab: Lab) -> None:
    assert planned.drain(lab) == 0


def test_that_a_failback_loses_nothing(lab: Lab) -> None:
    assert planned.failback(lab) == 0


def test_that_a_drill_is_refused_when_the_alternative_is_not_well(lab: Lab) -> None:
    assert "there is no uplink 'dsl'" in _refused(_ask(lab, SITE, "drill", "uplink", "dsl"))
    assert "no other path at all" in _refused(_ask(lab, "van-1", "drill", "uplink", "lte"))
    assert "this is a hub" in _refused(_ask(lab, "centre", "drill", "uplink", "wan"))
    lte = lab.site(SITE).uplink("lte")
    lte.blackhole()
    try:
        watch.wait_for(
            lab, SITE, "lte is down", lambda r: all(p.state == "down" for p in r.paths if p.uplink == "lte"), 10
        )
        words = _refused(_ask(lab, SITE, "drill", "uplink", "wired"))
        assert "bundle centre has no healthy alternative (lte.centre.wan)" in words
    finally:
        lte.heal()


def test_that_an_interrupted_drill_is_put_back_and_written_down(lab: Lab) -> None:
    agent = lab.site(SITE).agent
    for number in (signal.SIGTERM, signal.SIGKILL):
        command = _begun(lab)
        watch.wait_for(lab, SITE, "it has left", watch.carried("centre", uplink="lte"), 10)
        agent.restart(number)
        command.wait(10)
        _wait_home(lab)
        records = [json.loads(line) for line in _ask(lab, SITE, "drill", "--records", "--json").stdout.splitlines()]
        assert [record["outcome"] for record in records[-2:]] == ["began", "interrupted"], number
        assert _ask(lab, SITE, "drill", "--check").status == 0
    file = lab.path(f"/run/{SITE}/state/drills.jsonl")
    written = file.read_bytes()
    try:
        file.write_bytes(written.replace(b'"wired"', b'"wires"', 1))
        altered = _ask(lab, SITE, "drill", "--check")
        assert altered.status == 1 and "one of them was changed" in altered.stderr
    finally:
        file.write_bytes(written)


def _begun(lab: Lab) -> Any:
    config = str(lab.site(SITE).inside / "agent.yaml")
    argv = [sys.executable, "-m", "cpe_agent", "drill", "uplink", "wired", "--config", config]
    with open(lab.path("/run/lab/drill"), "wb") as output:
        return lab.container.spawn(argv, namespace=SITE, stdout=output, stderr=output)


def _network() -> str:
    described: dict[str, Any] = yaml.safe_load(network_yaml(NETWORK))
    described["services"]["service-10-10-0-0"]["probe"] = {"kind": "tcp", "port": 80, "address": "10.10.0.10"}
    for name, address in (("service-10-20-0-0", "10.20.0.10"), ("service-10-50-0-0", "10.50.0.10")):
        described["services"][name]["probe"] = {"kind": "icmp", "address": address}
    return yaml.safe_dump(described, sort_keys=False)


def _ask(lab: Lab, site: str, *command: str) -> Completed:
    config = str(lab.site(site).inside / "agent.yaml")
    argv = [sys.executable, "-m", "cpe_agent", *command, "--config", config]
    return lab.site(site).run(*argv, timeout_s=60, check=False)


def _refused(answer: Completed) -> str:
    assert answer.status == 2, answer
    return answer.stderr


def _silent(server: str) -> watch.Predicate:
    return lambda report: any(s.server.startswith(server) and s.state == "silent" for s in report.services)


def _moves(report: Status) -> int:
    return sum(sum(bundle.moves.values()) for bundle in report.bundles)


def _trial_children(lab: Lab) -> list[str]:
    vici = f"unix://{lab.site(SITE).vici_socket}"
    listing = lab.run(SITE, "swanctl", "--list-sas", "--uri", vici).stdout
    return [line for line in listing.splitlines() if line.strip().startswith("trial-")]


def _silence(lab: Lab, host: str, silent: bool) -> None:
    lab.run(host, "sysctl", "-qw", f"net.ipv4.icmp_echo_ignore_all={int(silent)}")


def _wait_home(lab: Lab) -> None:
    home = {"centre": "wired.centre.wan", "cloud": "wired.cloud.wan", SHARED: "wired.centre.wan"}

    def settled(report: Status) -> bool:
        answering = all(service.state == "answering" for service in report.services)
        there = {bundle.name: bundle.active_path for bundle in report.bundles} == home
        return watch.all_up(report) and there and answering and bool(report.services)

    watch.wait_for(lab, SITE, "all is on its best path, and servers answer", settled, START_S)
    wait_at_rest(lab, SITE)
