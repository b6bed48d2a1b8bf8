"""Is a command in a guest as good as one here, and is nothing left of a guest, however it ended?"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.launch import TIMED_OUT
from tests.lab.container import REPOSITORY, wait_until

# It takes both processors for a minute, which is no company for tests that measure time.
pytestmark = [
    pytest.mark.skipif("CPE_GUEST_SELFTEST" not in os.environ, reason="make test-kernel runs it, before all else"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs make guest-bootstrap"),
]

# An emulated computer on a busy machine.
BOOT_S = 120.0
GONE_S = 5.0


def _guest(command: str, *options: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "tests.guest", "--memory-mib", "512", *options, "--", command]
    return subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _run(command: str, *options: str) -> tuple[int, str, str]:
    with _guest(command, *options) as guest:
        out, err = guest.communicate(timeout=BOOT_S)
        return guest.returncode, out, err


def _descendants(pid: int) -> list[int]:
    """All processes that this one has started, and theirs."""
    parents: dict[int, int] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            stat = (process / "stat").read_text()
        except OSError:
            continue
        parents[int(process.name)] = int(stat.rpartition(")")[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {pid})


def _there(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def _temporary() -> set[str]:
    return {path.name for path in Path("/tmp").glob("cpe-guest-*")}


def test_that_status_output_and_files_are_the_commands() -> None:
    seen = "head -c 100000 /dev/zero | tr '\\0' x; echo; echo to-err >&2; test -e setup.cfg && pwd; echo $CPE_BACKEND"
    with_backend = os.environ.get("CPE_BACKEND", "")
    status, out, err = _run(f"{seen}; exit 7")
    assert status == 7
    assert out == "x" * 100_000 + f"\n{REPOSITORY}\n{with_backend}\n"
    assert err == "to-err\n"


def test_that_this_machines_files_cannot_be_changed_but_results_can() -> None:
    result = REPOSITORY / "build" / f"guest-selftest-{os.getpid()}"
    marker = REPOSITORY / "README.md"
    before = marker.read_bytes(), marker.stat().st_mtime_ns
    try:
        # In the guest it seems to work: the layer in its memory takes it.
        status, out, _ = _run(f"echo gone > {marker} && cat {marker} && echo kept > {result}")
        assert (status, out) == (0, "gone\n")
        assert result.read_text() == "kept\n"
        # Under that layer the share itself is read-only, also for who is root in the guest.
        status, _, _ = _run("mkdir /m && mount -t virtiofs -o rw machine /m && touch /m/tmp/written-by-guest")
        assert status != 0 and not Path("/tmp/written-by-guest").exists()
    finally:
        result.unlink(missing_ok=True)
    assert (marker.read_bytes(), marker.stat().st_mtime_ns) == before


def test_that_time_is_limited() -> None:
    left = _temporary()
    began = time.monotonic()
    status, out, err = _run("echo begun; sleep 1000", "--limit-s", "25")
    assert time.monotonic() - began < 60
    assert (status, out) == (TIMED_OUT, "begun\n") and "time is up" in err
    assert _temporary() == left


@pytest.fixture
def running() -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A guest whose command has begun, and the processes behind it."""
    with _guest("echo begun; sleep 1000") as guest:
        try:
            assert guest.stdout is not None and guest.stdout.readline() == "begun\n"
            behind = _descendants(guest.pid)
            assert len(behind) >= 3  # the emulator and two file servers
            yield guest, behind
        finally:
            guest.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_that_nothing_is_left(running: tuple[subprocess.Popen[str], list[int]], number: signal.Signals) -> None:
    guest, behind = running
    guest.send_signal(number)
    wait_until("all its processes have gone", lambda: not any(map(_there, behind)), GONE_S)
    status = guest.wait(GONE_S)
    assert status == (-number if number == signal.SIGKILL else 128 + number)
