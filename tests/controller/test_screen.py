"""What is printed: as wide as the terminal, whole for programs, and no traceback when nobody can read it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from cpe_controller import screen, setup
from tests.controller.conftest import EXAMPLE

COMMAND = (sys.executable, "-m", "cpe_controller")
LONG = "  van-1: the controller says " + "one thing after the other " * 10 + "cpe1." + "x" * 200


def test_a_long_row_goes_on_below_itself() -> None:
    first, *more = screen.fitted(LONG, 80).split("\n")
    assert first.startswith("  van-1: the controller") and all(line.startswith("    ") for line in more)
    assert max(len(line) for line in [first, *more[:-1]]) <= 80
    assert more[-1] == "    cpe1." + "x" * 200  # a word to copy is never broken
    assert " ".join(line.strip() for line in [first, *more]) == LONG.strip()


@pytest.mark.parametrize("width", [None, 80])
def test_what_fits_and_what_goes_to_a_program_stays_as_it_is(width: int | None) -> None:
    rows = "site    state\nvan-1   well"
    assert screen.fitted(rows, width) == rows
    assert screen.fitted(LONG, None) == LONG


def test_a_terminal_is_never_overrun(state: Path) -> None:
    """audit, whose rows name every site, in a terminal of 80 columns."""
    setup.apply(state, EXAMPLE)
    for site in ("hospital-1", "van-1"):
        subprocess.run([*COMMAND, "--state", state, "token", site], check=True, stdout=subprocess.DEVNULL, timeout=30)
    subprocess.run([*COMMAND, "--state", state, "apply", EXAMPLE], check=True, stdout=subprocess.DEVNULL, timeout=30)
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80"}
    command = [*COMMAND, "--state", str(state), "audit"]
    subprocess.run(command, check=True, stdout=theirs, env=environment, timeout=30)
    os.close(theirs)
    told = b""
    with suppress(OSError):  # nobody writes any more
        while part := os.read(ours, 65536):
            told += part
    os.close(ours)
    shown = told.decode().replace("\r\n", "\n").splitlines()
    assert len(shown) > 4 and max(map(len, shown)) <= 80
    piped = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.splitlines()
    assert len(piped) == 4 and max(map(len, piped)) > 80


@pytest.mark.parametrize("command", ["audit", "status", "token van-1 --json", "check " + str(EXAMPLE)])
def test_a_reader_that_goes_away_is_no_failure(state: Path, command: str) -> None:
    setup.apply(state, EXAMPLE)
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [*COMMAND, "--state", state, *command.split()], stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=30
    )
    os.close(theirs)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_is_said(state: Path) -> None:
    setup.apply(state, EXAMPLE)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "--state", state, "token", "van-1"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=30
        )
    assert done.returncode == 1
    assert done.stderr == "cpe-controller: what came of it cannot be printed: No space left on device\n"
