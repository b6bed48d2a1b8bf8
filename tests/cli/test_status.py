"""`cpe-agent status`: what it prints, and what its exit status says."""

from __future__ import annotations

import io
import sys

import msgspec
import pytest

from cpe_agent import app, cli, exits
from cpe_agent.model.condition import Condition, Severity, Status
from cpe_agent.ports import EdgeError
from cpe_agent.render import render
from cpe_agent.settings import Settings
from tests.cli.conftest import Says
from tests.reports import BLANK, BRANCH, HUB

DEGRADED = msgspec.structs.replace(
    BRANCH, conditions=tuple(c for c in BRANCH.conditions if c.severity is not Severity.DOWN)
)


class TestStatus:
    @pytest.mark.parametrize(("status", "code"), [(HUB, 0), (DEGRADED, 1), (BRANCH, 2), (BLANK, 2)])
    def test_the_exit_code_says_how_the_site_fares(
        self, config: str, report: Says, capsys: pytest.CaptureFixture[str], status: Status, code: int
    ) -> None:
        report(status)
        assert cli.main(["status", "-c", config]) == code
        assert capsys.readouterr() == (render(status), "")

    def test_a_document_that_has_run_out_and_says_block_is_blocked(
        self, config: str, report: Says, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for severity, code in ((Severity.DOWN, exits.BLOCKED), (Severity.DEGRADED, exits.DEGRADED)):
            report(msgspec.structs.replace(HUB, conditions=(Condition("DocumentExpired", "", "expired", severity),)))
            assert cli.main(["status", "-c", config]) == code
            assert "DocumentExpired" in capsys.readouterr().out

    def test_all_and_names(self, config: str, report: Says, capsys: pytest.CaptureFixture[str]) -> None:
        report(HUB)
        assert cli.main(["status", "-c", config, "--all"]) == 0
        assert capsys.readouterr().out == render(HUB, rows_max=None)
        assert cli.main(["status", "-c", config, "van-03", "isp"]) == 0
        assert capsys.readouterr().out == render(HUB, only=("van-03", "isp"))

    def test_json_is_the_whole_report(self, config: str, report: Says, capsys: pytest.CaptureFixture[str]) -> None:
        report(BRANCH)
        assert cli.main(["status", "--json", "--config", config]) == 2
        assert msgspec.json.decode(capsys.readouterr().out, type=Status) == BRANCH

    def test_no_agent(self, config: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["status", "-c", config]) == 3
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("cpe-agent: no agent is running: ")
        assert said.err.count("\n") == 1

    def test_not_being_allowed_to_ask_is_not_the_same_as_no_agent(
        self, config: str, report: Says, capsys: pytest.CaptureFixture[str]
    ) -> None:
        report(EdgeError("control", "authorise", "be root"))
        assert cli.main(["status", "-c", config]) == exits.NO_PERMISSION
        assert capsys.readouterr() == ("", "cpe-agent: be root.\n")

    def test_watch_goes_on_until_interrupted_and_through_a_restart(
        self, config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        script: list[Status | BaseException] = [
            HUB,
            EdgeError("control", "connect", "no agent is running"),
            DEGRADED,
            KeyboardInterrupt(),
        ]

        def fetch_status(settings: Settings) -> Status:
            found = script.pop(0)
            if isinstance(found, BaseException):
                raise found
            return found

        monkeypatch.setattr(app, "fetch_status", fetch_status)
        monkeypatch.setattr(cli, "WATCH_INTERVAL_S", 0.0)
        assert cli.main(["status", "--watch", "-c", config]) == 1
        out = capsys.readouterr().out
        assert out == f"{render(HUB)}\ncpe-agent: no agent is running.\n\n{render(DEGRADED)}\n"

    def test_watch_draws_over_the_last_report_on_a_terminal(
        self, config: str, report: Says, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        times = iter([HUB, HUB])

        def fetch_status(settings: Settings) -> Status:
            for found in times:
                return found
            raise KeyboardInterrupt

        terminal = Terminal()
        monkeypatch.setattr(app, "fetch_status", fetch_status)
        monkeypatch.setattr(cli, "WATCH_INTERVAL_S", 0.0)
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setenv("NO_COLOR", "1")
        assert cli.main(["status", "--watch", "-c", config]) == 0
        assert terminal.getvalue() == f"{cli.CLEAR_SCREEN}{render(HUB)}\n" * 2

    def test_colour_is_for_terminals_that_want_it(
        self, config: str, report: Says, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        report(BRANCH)
        monkeypatch.setenv("TERM", "xterm")
        for no_color, colour in (("", True), ("1", False)):
            monkeypatch.setenv("NO_COLOR", no_color)
            terminal = Terminal()
            monkeypatch.setattr(sys, "stdout", terminal)
            cli.main(["status", "-c", config])
            assert terminal.getvalue() == render(BRANCH, colour=colour)
