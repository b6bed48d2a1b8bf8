"""One kind of traffic rides the wire and another the air, at the same time; and who may still use a SIM card that is
nearly empty, or empty?

A lab of its own, in which hospital-1's modem has few bytes a month.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from cpe_agent.model.condition import Status
from tests.lab import provision, watch
from tests.lab.container import LabError
from tests.lab.lab import Lab
from tests.lab.site import RunningSite
from tests.scenarios.test_failover import wait_flows_again
from tests.scenarios.test_uplinks import BLAST, OUTSIDE

SITE, HOST = "hospital-1", "hospital-1-host"
# The records' class leaves a SIM card that is nearly empty; telemetry is worth any price; what is shared has no class.
RECORDS, TELEMETRY, SHARED = "centre/records", "cloud/telemetry", "centre+cloud"
MEGABYTE = 1_000_000
# A tenth of it is more than what a flow and the probes spend between two looks, a minute's worth.
MONTHLY = 24 * MEGABYTE
START_S, MOVE_S, BACK_S = 40.0, 5.0, 40.0
# Most of the month's bytes take eleven seconds where nobody else wants the processor.
SPEND_S = 60.0
# Bytes are looked at every ten seconds.
NOTICED_S = 15.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(name="classes") as lab:
        provision.provision(lab, _network(lab))
        lab.start()
        watch.wait_all_up(lab, START_S)
        yield lab
        lab.save_logs()
        assert lab.leaked() == {}, "private packets reached the internet"


def test_that_the_wire_and_the_air_carry_at_the_same_time(lab: Lab) -> None:
    wired = lab.site(SITE).uplink("wired")
    report = watch.wait_for(lab, SITE, "each is where its class has it", _at_home, BACK_S)
    assert {path.uplink for path in report.paths} == {"wired", "lte"}
    with (
        lab.flow(HOST, "centre-server") as records,
        lab.flow(HOST, "cloud-server", port=7001) as telemetry,
        lab.flow(HOST, "centre-shared", twin="cloud-shared", port=7002) as shared,
    ):
        for flow in (records, telemetry, shared):
            flow.wait_flowing(5)
        wired.cut()
        try:
            watch.wait_for(lab, SITE, "the air has it all", watch.carried(SHARED, uplink="lte"), MOVE_S)
            wait_flows_again(shared)
        finally:
            wired.restore()
        watch.wait_for(lab, SITE, "each is where its class has it", _at_home, BACK_S)
        assert shared.stop().lost > 0, "the cut was seen by what was on the wire"
        for flow in (records, telemetry):
            assert flow.stop().lost == 0, "who was on the air has noticed nothing"
    # One that remembers no failure: the next one would keep traffic on lte five times as long.
    lab.site(SITE).agent.restart()


def test_that_a_budget_is_left_and_kept_to(lab: Lab) -> None:
    site = lab.site(SITE)
    watch.wait_for(lab, SITE, "each is where its class has it", _at_home, BACK_S)
    with lab.flow(HOST, "centre-server") as records:
        records.wait_flowing(5)
        _spend(lab, 0.92)
        report = watch.wait_for(lab, SITE, "records have left", watch.carried(RECORDS, uplink="wired"), NOTICED_S)
        assert _bundle(report, RECORDS).moves.get("budget_near") == 1, report
        assert ("BudgetNear", "lte") in _conditions(report)
        assert records.stop().lost == 0, "near is a planned move"
    assert watch.carried(TELEMETRY, uplink="lte")(report), "it is worth any price"
    _spend(lab, 1.01)
    report = watch.wait_for(lab, SITE, "it is spent", lambda r: ("BudgetSpent", "lte") in _conditions(r), NOTICED_S)
    assert watch.carried(TELEMETRY, uplink="lte")(report)
    site.uplink("wired").cut()
    try:
        report = watch.wait_for(
            lab, SITE, "records wait", lambda r: ("BundleBarred", RECORDS) in _conditions(r), MOVE_S
        )
        watch.wait_for(lab, SITE, "what may goes on", watch.carried(SHARED, uplink="lte"), MOVE_S)
        watch.wait_for(lab, SITE, "records are carried by none", lambda r: not _bundle(r, RECORDS).installed, NOTICED_S)
        # An auditor is not told that something is amiss which the plan forbids.
        told = [str(one) for one in _differences(site)]
        assert told and not [words for words in told if RECORDS in words], told
        with lab.flow(HOST, "centre-server") as records, pytest.raises(LabError, match="goes both ways"):
            records.wait_flowing(2)
    finally:
        site.uplink("wired").restore()
    watch.wait_for(lab, SITE, "records are on the wire", watch.carried(RECORDS, uplink="wired"), BACK_S)
    # An agent that is restarted has forgotten none of it.
    site.agent.kill()
    site.agent.start()
    watch.wait_all_up(lab, BACK_S, [SITE])
    report = watch.wait_for(
        lab, SITE, "it is spent still", lambda r: ("BudgetSpent", "lte") in _conditions(r), NOTICED_S
    )
    assert watch.carried(RECORDS, uplink="wired")(report) and watch.carried(TELEMETRY, uplink="lte")(report)


def _network(lab: Lab) -> str:
    described: dict[str, Any] = yaml.safe_load(provision.network_yaml(lab.network))
    described["branches"][SITE]["uplinks"]["lte"]["monthly_bytes"] = MONTHLY
    described["classes"] = {
        "records": {"metered": "budget", "uplinks": ["cellular", "wired"]},
        "telemetry": {"uplinks": ["cellular"]},
    }
    for permit in described["permits"]:
        if permit["to"] == "service-10-10-0-0":
            permit["class"] = "records"
        if permit["to"] == "service-10-20-0-0":
            permit["class"] = "telemetry"
    return yaml.safe_dump(described, sort_keys=False)


def _spend(lab: Lab, share: float) -> None:
    """Until so much of the month's bytes is gone."""
    uplink = next(u for u in watch.status(lab, SITE).uplinks if u.name == "lte")
    count = round(share * MONTHLY) - (uplink.used_bytes or 0)
    source = str(lab.site(SITE).uplink("lte").address.ip)
    lab.site(SITE).run(sys.executable, "-S", "-c", BLAST, source, OUTSIDE, str(count), timeout_s=SPEND_S)


def _at_home(report: Status) -> bool:
    homes = {RECORDS: "lte", TELEMETRY: "lte", SHARED: "wired"}
    return watch.all_up(report) and all(watch.carried(name, uplink=uplink)(report) for name, uplink in homes.items())


def _bundle(report: Status, name: str) -> Any:
    return next(bundle for bundle in report.bundles if bundle.name == name)


def _conditions(report: Status) -> set[tuple[str, str]]:
    return {(condition.type, condition.subject) for condition in report.conditions}


def _differences(site: RunningSite) -> list[Any]:
    argv = [sys.executable, "-m", "cpe_agent", "verify", "--json", "--config", str(site.inside / "agent.yaml")]
    return list(json.loads(site.run(*argv, check=False).stdout)["differences"])
