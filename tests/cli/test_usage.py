"""All commands: how they are called, what they print where, and what they exit with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cpe_agent import __version__, app, cli, exits
from cpe_agent.exits import USAGE
from cpe_agent.ports import EdgeError
from cpe_agent.settings import Settings
from tests.cli.conftest import CONFIG, Says
from tests.reports import HUB


class TestRun:
    def test_the_daemon_gets_the_settings_and_gives_the_code(
        self, config: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[str] = []

        def run(settings: Settings) -> int:
            seen.append(settings.site)
            return 0

        monkeypatch.setattr(app, "run", run)
        assert cli.main(["run", "-c", config]) == 0
        assert seen == ["van-1"]

    @pytest.mark.parametrize("depth", [0, 1, 2])
    def test_a_start_that_is_impossible_is_one_sentence(
        self, config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], depth: int
    ) -> None:
        def run(settings: Settings) -> int:
            error: Exception = EdgeError("identity", "load", "/x.pem is not there: enrol this site, or put it there")
            for _ in range(depth):
                error = ExceptionGroup("from a nursery", [error])
            raise error

        monkeypatch.setattr(app, "run", run)
        assert cli.main(["run", "-c", config]) == exits.UNAVAILABLE
        sentence = "cpe-agent: identity: load: /x.pem is not there: enrol this site, or put it there.\n"
        assert capsys.readouterr() == ("", sentence)

    def test_a_bug_is_not_hidden_by_an_expected_failure_beside_it(
        self, config: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def run(settings: Settings) -> int:
            raise ExceptionGroup("from a nursery", [EdgeError("control", "listen", "taken"), KeyError("bug")])

        monkeypatch.setattr(app, "run", run)
        with pytest.raises(ExceptionGroup) as caught:
            cli.main(["run", "-c", config])
        assert [type(error) for error in caught.value.exceptions] == [KeyError]


class TestUsage:
    def test_settings_may_be_named_before_the_command_or_behind_it(
        self, config: str, report: Says, capsys: pytest.CaptureFixture[str]
    ) -> None:
        report(HUB)
        for arguments in (["-c", config, "status"], ["status", "-c", config], ["-c", "/no", "status", "-c", config]):
            assert cli.main(arguments) == 0, arguments
        assert cli.main(["--config", "/no", "status"]) == exits.CONFIGURATION

    def test_the_help_of_a_command_says_what_it_does(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            cli.main(["drill", "--help"])
        assert "On a branch: take an uplink or a hub out, measure," in capsys.readouterr().out

    def test_a_number_that_is_none(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            cli.main(["capture", "records", "--seconds", "soon"])
        assert "'soon' is no number: 0.1 to 3600 is possible" in capsys.readouterr().err

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            cli.main(["--version"])
        assert caught.value.code == 0
        assert capsys.readouterr().out == f"cpe-agent {__version__}\n"
        assert cli.main(["version"]) == 0
        assert capsys.readouterr().out == f"cpe-agent {__version__}\n"

    @pytest.mark.parametrize("command", ["run", "status"])
    def test_settings_that_are_wrong_are_named(
        self, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "agent.yaml"
        path.write_text(CONFIG.replace("van-1", "Van 1"))
        assert cli.main([command, "-c", str(path)]) == exits.CONFIGURATION
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith(f"cpe-agent: {path}:1: site: ")
        assert said.err.count("\n") == 1

    @pytest.mark.parametrize(
        "arguments", [[], ["enroll"], ["status", "--json", "--watch"], ["status", "--jsno"], ["run", "now"]]
    )
    def test_a_misspelt_command_is_no_verdict_about_the_site(
        self, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == USAGE
        assert "usage: cpe-agent" in capsys.readouterr().err

    def test_a_reader_that_has_read_enough_is_no_error(self, config: str) -> None:
        script = (
            "import sys; from cpe_agent import app, cli; from tests.reports import HUB;"
            "app.fetch_status = lambda settings: HUB; sys.stdin.readline();"
            f"raise SystemExit(cli.main(['status', '--watch', '-c', {config!r}]))"
        )
        reading, writing = os.pipe()
        with subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=writing, stderr=subprocess.PIPE
        ) as process:
            os.close(writing)
            os.close(reading)
            _, errors = process.communicate(b"\n", timeout=60)
        assert (process.returncode, errors) == (0, b"")

    @pytest.mark.parametrize("arguments", [["version"], ["--help"], ["status", "--help"], ["drill", "--records"]])
    def test_whoever_reads_may_stop_and_a_full_disk_is_said(self, arguments: list[str], config: str) -> None:
        command = [sys.executable, "-m", "cpe_agent", *arguments]
        if arguments[0] == "drill":
            command += ["--config", config]
        reading, writing = os.pipe()
        os.close(reading)
        stopped = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False)
        os.close(writing)
        assert (stopped.returncode, stopped.stderr) == (0, b"")
        with open("/dev/full", "wb") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
        words = b"cpe-agent: the answer cannot be written: No space left on device.\n"
        assert (done.returncode, done.stderr) == (exits.CANNOT_WRITE, words)
