"""The alert rules, the dashboard and the example configuration: well made, tested, and about metrics that there are.

That they answer on a real server which scrapes a real network, tests/scenarios/test_prometheus.py shows.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
import yaml

from cpe_agent.edge.metric_table import METRICS

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs" / "prometheus"
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((CONFIGS / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
TESTS: list[dict[str, Any]] = yaml.safe_load((CONFIGS / "alerts_test.yml").read_text())["tests"]


@pytest.mark.parametrize(
    "command",
    [["check", "rules", "alerts.yml"], ["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]],
)
def test_promtool_is_content(command: list[str]) -> None:
    done = subprocess.run(["promtool", *command], cwd=CONFIGS, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_would_find_a_rule_that_does_not_fire(tmp_path: Path) -> None:
    """Else the tests above say nothing."""
    rules = (CONFIGS / "alerts.yml").read_text()
    assert "cpe_agent_dataplane_in_sync == 0" in rules
    (tmp_path / "alerts.yml").write_text(rules.replace("cpe_agent_dataplane_in_sync == 0", "cpe_agent_in_sync == 0"))
    (tmp_path / "alerts_test.yml").write_text((CONFIGS / "alerts_test.yml").read_text())
    done = subprocess.run(
        ["promtool", "test", "rules", "alerts_test.yml"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and "CpeNotInSync" in done.stdout + done.stderr


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}, rule["alert"]
        assert len(rule["annotations"]["runbook"]) > 40, rule["alert"]


def test_every_alert_was_seen_to_fire_and_to_be_quiet() -> None:
    checks = [check for test in TESTS for check in test["alert_rule_test"]]
    names = {rule["alert"] for rule in ALERTS}
    assert {check["alertname"] for check in checks if check.get("exp_alerts")} == names
    assert {check["alertname"] for check in checks if not check.get("exp_alerts")} == names
    assert len(names) == len(ALERTS)


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\bcpe_(?:agent|controller)_\w+", expression))


def known() -> set[str]:
    """Every name under which Prometheus finds a sample of ours."""
    names: set[str] = set()
    for name, metric in METRICS.items():
        sample = metric.sample_name(name)
        names |= {f"{sample}{end}" for end in ("_bucket", "_count", "_sum")} if metric.kind == "histogram" else {sample}
    source = (ROOT / "cpe_controller" / "metrics.py").read_text()
    return names | set(re.findall(r"\"(cpe_controller_\w+)\"", source))


def test_alerts_and_dashboard_speak_of_metrics_that_there_are() -> None:
    said = {name for rule in ALERTS for name in names_in(rule["expr"])}
    said |= {name for query in queries() for name in names_in(query)}
    assert said <= known()


def test_the_dashboard_shows_everything_that_the_agent_tells() -> None:
    shown = {name for query in queries() for name in names_in(query)}
    assert known() - shown <= {"cpe_agent_outage_seconds_count", "cpe_agent_outage_seconds_sum", "cpe_controller_build"}


def test_the_page_of_metrics_knows_the_controllers_too() -> None:
    page = (ROOT / "docs" / "METRICS.md").read_text()
    for name in known():
        assert name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum") in page


# ---- the dashboard, as Grafana's schema 38 has it


class Datasource(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["prometheus"]
    uid: Literal["${datasource}"]


class GridPos(msgspec.Struct, forbid_unknown_fields=True):
    h: int
    w: int
    x: int
    y: int


class Target(msgspec.Struct, forbid_unknown_fields=True):
    refId: str
    datasource: Datasource
    expr: str
    legendFormat: str
    instant: bool
    range: bool
    format: Literal["time_series", "table", "heatmap"]


class Step(msgspec.Struct, forbid_unknown_fields=True):
    color: str
    value: float | None


class Thresholds(msgspec.Struct, forbid_unknown_fields=True):
    mode: Literal["absolute"]
    steps: list[Step]


class Defaults(msgspec.Struct, forbid_unknown_fields=True):
    unit: Literal["short", "s", "percentunit", "bytes", "Bps", "pps"]
    color: dict[str, str]
    mappings: list[dict[str, Any]]
    thresholds: Thresholds
    custom: dict[str, Any] = {}
    min: float | None = None


class FieldConfig(msgspec.Struct, forbid_unknown_fields=True):
    defaults: Defaults
    overrides: list[dict[str, Any]]


class Panel(msgspec.Struct, forbid_unknown_fields=True):
    id: int
    type: Literal["row", "stat", "timeseries", "table", "state-timeline", "bargauge"]
    title: str
    gridPos: GridPos
    description: str = ""
    datasource: Datasource | None = None
    fieldConfig: FieldConfig | None = None
    targets: list[Target] = []
    options: dict[str, Any] = {}
    transformations: list[dict[str, Any]] = []
    collapsed: bool = False
    panels: list[Any] = []


class Variable(msgspec.Struct):
    name: str
    type: Literal["datasource", "query"]
    query: str | dict[str, str]


class Templating(msgspec.Struct, forbid_unknown_fields=True):
    variables: list[Variable] = msgspec.field(name="list")


class Dashboard(msgspec.Struct):
    title: str
    uid: str
    schemaVersion: int
    version: int
    time: dict[str, str]
    refresh: str
    panels: list[Panel]
    templating: Templating
    annotations: dict[str, list[Any]]


def dashboard() -> Dashboard:
    return msgspec.json.decode((CONFIGS / "dashboard.json").read_bytes(), type=Dashboard)


def queries() -> Iterator[str]:
    return (target.expr for panel in dashboard().panels for target in panel.targets)


def test_the_dashboard_keeps_to_its_schema() -> None:
    found = dashboard()
    assert found.schemaVersion >= 36 and len(found.uid) <= 40
    ids = [panel.id for panel in found.panels]
    assert len(set(ids)) == len(ids)
    for panel in found.panels:
        assert panel.title
        if panel.type == "row":
            assert not panel.targets
            continue
        assert panel.datasource and panel.targets and panel.fieldConfig and panel.options, panel.title
        references = [target.refId for target in panel.targets]
        assert len(set(references)) == len(references)
        assert all(target.instant is not target.range for target in panel.targets)
    assert [variable.name for variable in found.templating.variables] == ["datasource", "site"]
    used = set(re.findall(r"\$\{?(\w+)", (CONFIGS / "dashboard.json").read_text()))
    assert used == {"datasource", "site", "__rate_interval", "__all"}


def test_no_panel_lies_on_another() -> None:
    places = [panel.gridPos for panel in dashboard().panels]
    assert all(place.w > 0 and place.h > 0 and place.x >= 0 and place.x + place.w <= 24 for place in places)
    for one, other in itertools.combinations(places, 2):
        apart_across = one.x + one.w <= other.x or other.x + other.w <= one.x
        apart_down = one.y + one.h <= other.y or other.y + other.h <= one.y
        assert apart_across or apart_down, (one, other)


def test_the_example_names_the_jobs_that_alerts_and_dashboard_ask_for() -> None:
    config = yaml.safe_load((CONFIGS / "prometheus.yml").read_text())
    jobs = {scrape["job_name"] for scrape in config["scrape_configs"]}
    asked = set(re.findall(r'job="([\w-]+)"', json.dumps(ALERTS).replace('\\"', '"') + " ".join(queries())))
    assert asked == jobs == {"cpe-agent", "cpe-controller"}
    agents = next(scrape for scrape in config["scrape_configs"] if scrape["job_name"] == "cpe-agent")
    assert all("site" in targets["labels"] for targets in agents["static_configs"])
