"""Does a real Prometheus server behind a hub see the whole network, and do dashboard and alerts get answers there?

It is a host in the hub's LAN: it asks the sites at their overlay addresses, through the tunnels, by a permit; its own
hub at its LAN address. The controller is asked by another one on its machine.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from tests.lab import provision, watch
from tests.lab.container import REPOSITORY
from tests.lab.lab import Lab
from tests.lab.pace import patience
from tests.lab.prometheus import Prometheus
from tests.scenarios.conftest import START_S, wait_whole
from tests.scenarios.publishing import served

CONFIGS = REPOSITORY / "configs" / "prometheus"
SEER = "centre-server"  # where the server is
LAN_OF_SEER, ITS_ROUTER = "10.10.0.0/24", "10.10.0.1"
PORT = 9273
SEEN_S, ANSWER_S, PENDING_S = 30.0, 60.0, 20.0

pytestmark = pytest.mark.timeout(400)


@dataclass(frozen=True)
class Seen:
    """`inside`: the server that asks the sites; `beside`: the one that asks the controller."""

    lab: Lab
    inside: Prometheus
    beside: Prometheus

    def asked_of(self, expression: str) -> Prometheus:
        return self.beside if "controller" in expression.replace("cpe_agent_controller", "") else self.inside


def described(lab: Lab) -> str:
    """The lab's network with what a Prometheus there needs, and with what only some networks have."""
    network: dict[str, Any] = yaml.safe_load(provision.network_yaml(lab.network))
    network["management"] = {"metrics_from": [LAN_OF_SEER]}
    network["permits"] += [
        {"from": "centre.lan0", "to": {"site": site}, "protocol": "tcp", "ports": PORT}
        for site in ("branches", "cloud")
    ]
    network["branches"]["hospital-1"]["uplinks"]["lte"]["monthly_bytes"] = 10**9
    network["services"]["service-10-10-0-0"]["probe"] = {"kind": "icmp", "address": "10.10.0.10"}
    return yaml.safe_dump(network, sort_keys=False)


@pytest.fixture(scope="module")
def seen() -> Iterator[Seen]:
    with Lab(name="prometheus") as lab, ExitStack() as servers:
        provision.provision(lab, described(lab))
        at = {site: served(lab, site)["site_address"] for site in lab.sites} | {"centre": ITS_ROUTER}
        for name, site in lab.sites.items():
            settings = yaml.safe_load((site.outside / "agent.yaml").read_text())
            # An overlay address, which the router will only have once it has a document.
            (site.outside / "agent.yaml").write_text(yaml.safe_dump(settings | {"metrics": f"{at[name]}:{PORT}"}))
        lab.start()
        wait_whole(lab, START_S)
        jobs = {"cpe-agent": {f"{address}:{PORT}": {"site": name} for name, address in at.items()}}
        inside = servers.enter_context(Prometheus(lab, SEER, jobs))
        beside = servers.enter_context(
            Prometheus(lab, lab.network.controller, {"cpe-controller": {"127.0.0.1:9274": {}}})
        )
        yield Seen(lab, inside, beside)


def until(what: str, wanted: list[str], check: Any, timeout_s: float) -> None:
    """Until `check` holds of each; what never does is listed."""
    left, deadline = list(wanted), time.monotonic() + patience(timeout_s)
    while left := [one for one in left if not check(one)]:
        assert time.monotonic() < deadline, f"{what}: {left}"
        time.sleep(1)


def test_that_every_site_and_the_controller_are_scraped(seen: Seen) -> None:
    def scraped(server: Prometheus, job: str, count: int) -> bool:
        return [sample["value"][1] for sample in server.query(f'up{{job="{job}"}}')] == ["1"] * count

    until(
        "not scraped",
        ["inside", "beside"],
        lambda one: (
            scraped(seen.inside, "cpe-agent", 4) if one == "inside" else scraped(seen.beside, "cpe-controller", 1)
        ),
        SEEN_S,
    )
    assert set(seen.inside.targets().values()) == {""}


def test_that_nobody_else_can_ask(seen: Seen) -> None:
    address = served(seen.lab, "hospital-1")["site_address"]
    url = f"http://{address}:{PORT}/metrics"
    assert "cpe_agent_build_info" in (seen.lab.fetch(SEER, url) or "")
    for stranger in ("hospital-1-host", "van-1-host", "cloud-server", "outside"):
        assert seen.lab.fetch(stranger, url, 1) is None, stranger


def test_that_every_query_of_the_dashboard_answers(seen: Seen) -> None:
    """With something: an empty panel is a panel that is wrong."""
    dashboard = json.loads((CONFIGS / "dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert len(queries) > 40
    asked = [query.replace("$__rate_interval", "10s").replace("$site", ".+") for query in queries]
    until("no answer", asked, lambda query: seen.asked_of(query).query(query), ANSWER_S)


def test_that_every_alert_is_evaluated_and_speaks_of_what_there_is(seen: Seen) -> None:
    rules = {rule["name"]: rule for rule in seen.inside.rules()}
    assert len(rules) > 20

    def evaluated(name: str) -> bool:
        found = {rule["name"]: rule for server in (seen.inside, seen.beside) for rule in server.rules()}
        return bool(found[name]["health"] == "ok")

    until("not evaluated", list(rules), evaluated, SEEN_S)
    metrics = {name for rule in rules.values() for name in re.findall(r"\bcpe_\w+|\bup\b", rule["query"])}
    # Conditions are there only while they hold.
    until("no such series", sorted(metrics - {"cpe_agent_condition"}), lambda m: seen.asked_of(m).query(m), ANSWER_S)


def test_that_the_network_being_well_nothing_fires(seen: Seen) -> None:
    for server in (seen.inside, seen.beside):
        assert {rule["name"]: rule["state"] for rule in server.rules() if rule["state"] == "firing"} == {}


def test_that_a_dead_uplink_and_its_moves_are_seen(seen: Seen) -> None:
    wired = seen.lab.site("hospital-1").uplink("wired")
    before = _value(seen, 'sum(cpe_agent_outage_seconds_count{site="hospital-1"})')
    wired.blackhole()
    try:

        def pending(name: str) -> bool:
            alerts = next(rule for rule in seen.inside.rules() if rule["name"] == name)["alerts"]
            return any(alert["labels"]["site"] == "hospital-1" for alert in alerts)

        until("not pending", ["CpePathDown"], pending, PENDING_S)
        moves = 'sum(cpe_agent_bundle_moves_total{site="hospital-1",reason="path_down_probes"})'
        until("not counted", [moves], lambda query: _value(seen, query) >= 3, PENDING_S)
        until(
            "no outage counted",
            ['sum(cpe_agent_outage_seconds_count{site="hospital-1"})'],
            lambda query: _value(seen, query) >= before + 3,
            PENDING_S,
        )
        # The site is still seen: what Prometheus asks goes over the other uplink now.
        assert _value(seen, 'up{site="hospital-1"}') == 1
    finally:
        wired.heal()
        watch.wait_all_up(seen.lab, START_S, ["hospital-1"])


def _value(seen: Seen, query: str) -> float:
    found = seen.inside.query(query)
    return float(found[0]["value"][1]) if found else 0.0
