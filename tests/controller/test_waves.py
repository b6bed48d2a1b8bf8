"""A rollout as it happens: a real controller, sites that call it over TLS, and a restart in the middle."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from cpe_agent.model.document_check import decode
from cpe_controller import commands, control, setup
from tests.controller.conftest import Served, serving

SITES = ("hospital-1", "van-1", "centre", "cloud")
LIMIT_S = 40.0


class Sites:
    """Each takes what it is offered, says so, and notes in which order all of them did."""

    def __init__(self, served: Served, stack: ExitStack, took: list[tuple[str, int]]) -> None:
        self.clients: dict[str, httpx.Client] = {site: stack.enter_context(served.client(site)) for site in SITES}
        self.took = took

    def call(self) -> None:
        for site, client in self.clients.items():
            version = decode(client.get("/v1/document").content).version
            if (site, version) not in self.took:
                self.took.append((site, version))
            client.post("/v1/status", json=_report(version)).raise_for_status()


def _report(version: int) -> dict[str, Any]:
    paths = [{"path": f"lte.{hub}.wan", "state": "up"} for hub in ("centre", "cloud")]
    return {"applied": {"epoch": 1, "version": version}, "confirmed": True, "paths": paths}


def test_a_restarted_controller_goes_on_with_its_rollout(state: Path, text: str) -> None:
    setup.apply(state, text)
    took: list[tuple[str, int]] = []
    changed = text.replace("failback_s: 60", "failback_s: 61")
    with serving(state) as served, ExitStack() as stack:
        sites = Sites(served, stack, took)
        sites.call()
        _wait(state, "4 behind", False)
        answer = control.ask(state / "control.sock", commands.Apply(changed, "x"))
        assert answer is not None and len(answer.data["waves"]) == 4
        deadline = time.monotonic() + LIMIT_S
        while ("centre", 2) not in took:
            assert time.monotonic() < deadline, took
            sites.call()
            time.sleep(0.5)
    assert ("cloud", 2) not in took
    with serving(state) as served, ExitStack() as stack:
        sites = Sites(served, stack, took)
        deadline = time.monotonic() + LIMIT_S
        while len(took) < 8:
            assert time.monotonic() < deadline, took
            sites.call()
            time.sleep(0.5)
        _wait(state, "done", True)
        metrics = httpx.get(served.metrics_url, trust_env=False).text
        assert 'cpe_controller_rollout{phase="running"} 0.0' in metrics
        assert 'cpe_controller_sites{state="well"} 4.0' in metrics
    assert [site for site, version in took if version == 2] == ["hospital-1", "centre", "cloud", "van-1"]


def _wait(state: Path, words: str, rollout: bool) -> None:
    """Until what the operator is told has (of the rollout) or has no more (of the fleet) these words in it."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        command = commands.Roll("show") if rollout else commands.Status()
        answer = control.ask(state / "control.sock", command)
        assert answer is not None and time.monotonic() < deadline, answer
        said = "\n".join(answer.lines)
        if (words in said) is rollout and (rollout or "4 well" in said):
            return
        time.sleep(0.2)


def test_a_bad_report_stops_it_before_the_other_hub(state: Path, text: str) -> None:
    setup.apply(state, text)
    took: list[tuple[str, int]] = []
    with serving(state) as served, ExitStack() as stack:
        sites = Sites(served, stack, took)
        sites.call()
        _wait(state, "4 behind", False)
        changed = text.replace("failback_s: 60", "failback_s: 61")
        control.ask(state / "control.sock", commands.Apply(changed, "x"))
        bad = {**_report(1), "rejected": {"epoch": 1, "version": 2, "reason": "lost centre", "reverted": True}}
        deadline = time.monotonic() + LIMIT_S
        while True:
            assert time.monotonic() < deadline
            client = sites.clients["hospital-1"]
            if decode(client.get("/v1/document").content).version == 2:
                client.post("/v1/status", json=bad).raise_for_status()
                break
            time.sleep(0.1)
        _wait(state, "halted", True)
        metrics = httpx.get(served.metrics_url, trust_env=False).text
        assert 'cpe_controller_rollout{phase="halted"} 1.0' in metrics
        with pytest.raises(control.Refusal, match="no rollout"):
            control.ask(state / "control.sock", commands.Roll("abort"))
            control.ask(state / "control.sock", commands.Roll("pause"))
        time.sleep(2)
        for site in ("centre", "cloud", "van-1"):
            assert decode(sites.clients[site].get("/v1/document").content).version == 1
