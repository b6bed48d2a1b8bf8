"""What does somebody read who may not, or whose terminal is narrow?"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from pathlib import Path
from typing import TextIO

import pytest

from cpe_agent import cli, exits, printing

NOBODY = 65534


@pytest.mark.parametrize(
    ("words", "code", "said", "ends"),
    [
        ("kernel: ask for ESP: Operation not permitted", 69, "Operation not permitted: run it as root.", 77),
        ("/run/x.lock cannot be made: Permission denied", 69, "Permission denied: run it as root.", 77),
        ("cannot verify: nft: Operation not permitted", 3, "not permitted: run it as root.", 3),
        ("no agent is running", 69, "cpe-agent: no agent is running.", 69),
    ],
)
def test_who_is_not_root_is_told(
    words: str, code: int, said: str, ends: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert printing.failed(words, code) == ends
    assert capsys.readouterr().err.endswith(f"{said}\n")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert printing.failed(words, code) == code
    assert "as root" not in capsys.readouterr().err


@pytest.mark.parametrize("command", [["down"], ["status"], ["rollback"]])
def test_a_command_of_a_user(command: list[str]) -> None:
    """Where root alone may look."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        Path(place, "roots/run").mkdir(parents=True)
        Path(place, "roots").chmod(0o700)
        config, said = Path(place, "agent.yaml"), Path(place, "said")
        config.write_text(f"run_dir: {place}/roots/run\n")
        config.chmod(0o644)
        with said.open("w") as stderr:
            code = _as_nobody([*command, "-c", str(config)], stderr)
        assert code == exits.NO_PERMISSION, said.read_text()
        assert "root" in said.read_text() and said.read_text().count("\n") == 1


def _as_nobody(arguments: list[str], stderr: TextIO) -> int:
    """In a process of its own, which has all modules already: nobody may have no way to them."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            sys.stderr = stderr
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            code = cli.main(arguments)
        finally:
            stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_terminal_is_told_in_lines_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    words = "is not there: " + " ".join(["word"] * 40)
    printing.tell(words)
    lines = terminal.getvalue().splitlines()
    assert len(lines) > 2 and all(len(line) <= 80 for line in lines)
    assert " ".join(terminal.getvalue().split()) == f"cpe-agent: {words}."
