"""Commands that ask the agent, or the router, to do something: what they print, and what they exit with."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from cpe_agent import app, capture, cli, comparison, down, exits, newcomer
from cpe_agent.core.enrolment import TokenError
from cpe_agent.edge.tap import Tapped
from cpe_agent.model.condition import DrainAnswer, RollbackAnswer
from cpe_agent.ports import EdgeError
from cpe_agent.settings import Settings


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
