"""Does build/bench.json say what was measured, and keep what was not measured again?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cpe_controller.parse import parse
from tests.bench.__main__ import MEASURES, main
from tests.bench.bench import Measure
from tests.bench.figure import keep, summarise


def test_of_losses_the_worst_counts_and_of_all_else_the_median() -> None:
    worst = summarise("outage_ms", "ms", "userland", [300.04, 410, 305], worst=True)
    assert (worst.value, worst.n, worst.min, worst.median, worst.max) == (410, 3, 300.0, 305, 410)
    assert summarise("rate", "1/s", "userland", [1, 9, 2], worst=False).value == 2
    with pytest.raises(ValueError, match="no run"):
        summarise("rate", "1/s", "userland", [], worst=False)


def test_the_median_may_have_a_limit_besides_the_worst() -> None:
    measure = Measure("outage_ms", "ms", "", limit=500, median_limit=420, runs=3, take=lambda bench: [])
    assert measure.limits == "at most 500, median 420"

    def holds(*samples: float) -> bool:
        return measure.holds(summarise("outage_ms", "ms", "userland", samples, worst=True))

    assert holds(300, 420, 500)
    assert not holds(300, 420, 501)
    assert not holds(421, 421, 421)


def test_every_name_is_one_figure_and_every_lab_has_its_description() -> None:
    names = [measure.name for measure in MEASURES]
    assert len(set(names)) == len(names)
    for measure in MEASURES:
        network = parse(measure.setting.network_yaml())
        described = {site.name for site in (*network.hubs, *network.branches)}
        assert described == {site.name for site in measure.setting.network.sites}
    setting = next(measure.setting for measure in MEASURES if measure.name == "outage_blackhole_50x3_ms")
    assert setting.interval_s == 0.05
    for site in parse(setting.network_yaml()).branches:
        assert {(uplink.probe.active_interval_ms, uplink.probe.misses) for uplink in site.uplinks} == {(50, 3)}


def test_figures_measured_earlier_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "build" / "bench.json"
    keep(file, [summarise("b", "ms", "kernel", [1], worst=True), summarise("a", "ms", "kernel", [2], worst=True)])
    keep(file, [summarise("b", "ms", "userland", [3], worst=True)])
    figures = json.loads(file.read_text())
    assert [(figure["name"], figure["value"], figure["backend"]) for figure in figures] == [
        ("a", 2, "kernel"),
        ("b", 3, "userland"),
    ]
    assert set(figures[0]) == {"name", "value", "unit", "backend", "n", "min", "median", "max"}


def test_an_unknown_name_is_told_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["outage_ms"]) == 2
    said = capsys.readouterr().err
    assert "'outage_ms'" in said
    assert all(measure.name in said for measure in MEASURES)
