"""The commands: what they print where, and what they exit with."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from cpe_agent import __version__, app, capture, cli, comparison, down, exits, newcomer
from cpe_agent.core.enrolment import TokenError
from cpe_agent.edge.tap import Tapped
from cpe_agent.exits import USAGE
from cpe_agent.model.condition import Condition, DrainAnswer, RollbackAnswer, Severity, Status
from cpe_agent.ports import EdgeError
from cpe_agent.render import render
from cpe_agent.settings import Settings
from tests.reports import BLANK, BRANCH, HUB

DEGRADED = msgspec.structs.replace(
    BRANCH, conditions=tuple(c for c in BRANCH.conditions if c.severity is not Severity.DOWN)
)

CONFIG = """\
site: van-1
controllers: [https://controller.example:8443]
signing_keys: {a: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "agent.yaml"
    path.write_text(CONFIG + f"run_dir: {tmp_path}/run\n")
    return str(path)


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Callable[[Status | EdgeError], None]:
    """Sets what the running agent says."""

    def says(found: Status | EdgeError) -> None:
        def fetch_status(settings: Settings) -> Status:
            assert settings.site == "van-1"
            if isinstance(found, EdgeError):
                raise found
            return found

        monkeypatch.setattr(app, "fetch_status", fetch_status)

    return says


Says = Callable[[Status | EdgeError], None]


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


class TestDrain:
    @pytest.fixture
    def says(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[DrainAnswer | EdgeError], None]:
        def answers(found: DrainAnswer | EdgeError) -> None:
            def drain(settings: Settings, drained: bool) -> DrainAnswer:
                if isinstance(found, EdgeError):
                    raise found
                assert found.drained is drained
                return found

            monkeypatch.setattr(app, "drain", drain)

        return answers

    @pytest.mark.parametrize(
        ("command", "answer", "words"),
        [
            ("drain", DrainAnswer(True, True, False), "This hub is drained now: its ready addresses do not answer"),
            ("drain", DrainAnswer(True, False, False), "This hub was drained already: "),
            ("undrain", DrainAnswer(False, True, True), "This hub is no longer drained: it serves.\n"),
            ("undrain", DrainAnswer(False, False, True), "This hub was not drained: it serves.\n"),
            (
                "undrain",
                DrainAnswer(False, True, False, ("lan0 has no carrier",)),
                "This hub is no longer drained, but does not serve yet.\nIn the way: lan0 has no carrier.\n",
            ),
            ("drain", DrainAnswer(True, True, False, (), "a restart would forget it"), "Warning: a restart would"),
        ],
    )
    def test_it_says_what_became_of_it(
        self,
        config: str,
        says: Callable[[DrainAnswer | EdgeError], None],
        capsys: pytest.CaptureFixture[str],
        command: str,
        answer: DrainAnswer,
        words: str,
    ) -> None:
        says(answer)
        assert cli.main([command, "-c", config]) == 0
        said = capsys.readouterr()
        assert words in said.out and said.err == ""
        assert cli.main([command, "--json", "-c", config]) == 0
        assert msgspec.json.decode(capsys.readouterr().out, type=DrainAnswer) == answer

    @pytest.mark.parametrize(
        ("op", "code"),
        [("connect", exits.NOT_RUNNING), ("authorise", exits.NO_PERMISSION), ("drain", exits.UNAVAILABLE)],
    )
    def test_a_refusal_is_one_sentence(
        self,
        config: str,
        says: Callable[[DrainAnswer | EdgeError], None],
        capsys: pytest.CaptureFixture[str],
        op: str,
        code: int,
    ) -> None:
        says(EdgeError("control", op, "van-1 is a branch: only hubs are drained"))
        assert cli.main(["drain", "-c", config]) == code
        assert capsys.readouterr() == ("", "cpe-agent: van-1 is a branch: only hubs are drained.\n")


class TestRollback:
    @pytest.mark.parametrize(
        ("found", "code", "words"),
        [
            (RollbackAnswer((1, 3), (1, 2)), 0, "Document 1.2 is in force again, and 1.3 is given up here."),
            (RollbackAnswer((1, 3), (1, 2), "disk full"), 0, "Warning: a restart of the agent would forget it"),
            (EdgeError("control", "rollback", "there is no document before the one in force"), 1, "no document before"),
            (EdgeError("control", "connect", "no agent is running"), exits.NOT_RUNNING, "no agent is running"),
        ],
    )
    def test_it_says_what_became_of_it(
        self,
        config: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        found: RollbackAnswer | EdgeError,
        code: int,
        words: str,
    ) -> None:
        def rollback(settings: Settings) -> RollbackAnswer:
            if isinstance(found, EdgeError):
                raise found
            return found

        monkeypatch.setattr(app, "rollback", rollback)
        assert cli.main(["rollback", "-c", config]) == code
        said = capsys.readouterr()
        assert words in " ".join((said.out + said.err).split())


class TestNewcomer:
    TOKEN = "cpe1.eyJ9"

    def _enroll(self, monkeypatch: pytest.MonkeyPatch, found: newcomer.LetIn | Exception) -> None:
        def enroll(settings: Settings, text: str, tell: Callable[[str], None]) -> newcomer.LetIn:
            tell("the DNS does not answer")
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(newcomer, "enroll", enroll)

    @pytest.mark.parametrize(
        ("found", "code", "words"),
        [
            (newcomer.LetIn("van-1", running=True), 0, "This box is van-1 now.\n"),
            (
                newcomer.LetIn("van-1", running=False),
                0,
                "This box is van-1 now.\nNo agent runs yet: systemctl enable --now cpe-agent\n",
            ),
            (newcomer.NotLetIn("is it up?"), exits.NOT_LET_IN, "cpe-agent: is it up?\n"),
            (newcomer.NotLetIn("used by another box"), exits.NOT_LET_IN, "used by another box"),
            (TokenError("the token is damaged"), exits.BAD_DATA, "the token is damaged"),
            (EdgeError("control", "enroll", "this box is van-2 already"), exits.UNAVAILABLE, "van-2 already"),
        ],
    )
    def test_enroll(
        self,
        config: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        found: newcomer.LetIn | Exception,
        code: int,
        words: str,
    ) -> None:
        self._enroll(monkeypatch, found)
        assert cli.main(["enroll", "-c", config, self.TOKEN]) == code
        said = capsys.readouterr()
        assert words in said.out + said.err and "the DNS does not answer" in said.err

    @pytest.mark.parametrize(("typed", "done"), [("reset\n", True), ("no\n", False), ("", False)])
    def test_reset_asks(
        self,
        config: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        typed: str,
        done: bool,
    ) -> None:
        asked: list[str] = []
        monkeypatch.setattr(down, "take_down", lambda settings: asked.append("down"))
        monkeypatch.setattr(newcomer, "forget", lambda state_dir: asked.append("forget"))
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        assert cli.main(["reset", "-c", config]) == (0 if done else 1)
        assert asked == ["down", "forget"] * done
        assert cli.main(["reset", "--yes", "-c", config]) == 0
        assert asked == ["down", "forget"] * (1 + done)

    def test_reset_forgets_nothing_while_an_agent_runs(
        self, config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def running(settings: Settings) -> None:
            raise EdgeError("control", "listen", "another agent is running")

        monkeypatch.setattr(down, "take_down", running)
        monkeypatch.setattr(newcomer, "forget", lambda state_dir: pytest.fail("it was forgotten"))
        assert cli.main(["reset", "--yes", "-c", config]) == exits.UNAVAILABLE
        assert "another agent is running" in capsys.readouterr().err


class TestCapture:
    FOUND = capture.Captured(
        "records",
        1.0,
        "/x-before.pcap",
        "/x-after.pcap",
        Tapped({"lan0": 2}, {}, 0, False),
        Tapped({}, {}, 0, False),
        (),
    )
    BOTH = msgspec.structs.replace(FOUND, after_packets=Tapped({"wan": 2}, {"wan": 1}, 3, True), carried_by=("a: b",))

    @pytest.mark.parametrize(
        ("found", "code", "words"),
        [
            (BOTH, 0, "after encryption: in 1 on wan; out 2 on wan (full: there were more) (3 more came too fast)"),
            (FOUND, exits.NOTHING_CAPTURED, "Nothing went into a tunnel: `cpe-agent status` says whether one is up."),
            (capture.NoPair("van-1 has no pair 'x': it has y"), exits.BAD_DATA, "van-1 has no pair 'x': it has y."),
            (
                comparison.NoDocument("never accepted one"),
                exits.NOT_VERIFIED,
                "nothing to capture: never accepted one.",
            ),
            (EdgeError("capture", "open", "run it as root"), exits.NO_PERMISSION, "run it as root."),
            (EdgeError("capture", "write", "/x cannot be made: it is full"), exits.CANNOT_WRITE, "cannot be made"),
            (EdgeError("capture", "lan0", "nothing can be captured"), exits.UNAVAILABLE, "nothing can be captured."),
        ],
    )
    def test_what_became_of_it(
        self,
        config: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        found: capture.Captured | Exception,
        code: int,
        words: str,
    ) -> None:
        def captured(settings: Settings, pair: str, bounds: capture.Bounds, directory: Path) -> capture.Captured:
            assert (pair, bounds, directory) == ("records", capture.Bounds(2.5, 7, True), Path("/x"))
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(capture, "capture", captured)
        options = ["--seconds", "2.5", "--packets", "7", "--whole", "-o", "/x", "-c", config]
        assert cli.main(["capture", "records", *options]) == code
        said = capsys.readouterr()
        assert words in said.out + said.err

    @pytest.mark.parametrize("options", [["--seconds", "0"], ["--packets", "100000000"], ["--seconds", "soon"], []])
    def test_bounds_that_are_none(self, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            cli.main(["capture", *(["records", *options] if options else [])])
        assert caught.value.code == exits.USAGE
