"""Every test runs in a network namespace of its own making, so that none can touch the machine's network."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading

import hypothesis
import pytest

from cpe_agent.edge.ipsec import resolve
from tests.lab.pace import BACKEND, FACTOR

WITH_LABS = {"scenarios", "lab_selftest"}
# Files of tests/scenarios that take 40 s and more, the longest first.
LONGEST = (
    "test_hub_service", "test_services", "test_rotation", "test_documented", "test_rollout", "test_random_faults",
    "test_confirm", "test_fail_closed", "test_failover", "test_kills", "test_flood", "test_hub_at_scale",
    "test_enrolment", "test_controller_faults", "test_downloads", "test_service", "test_uplinks", "test_brownout",
    "test_silence",
)  # fmt: skip

_CLONE_NEWNET = 0x40000000

# A machine that stands still for a moment is no fault of what is tried on it, and the same code is judged alike in
# every run. Who looks for examples that nobody has tried asks for them: `--hypothesis-profile=searching`.
hypothesis.settings.register_profile(
    "searching", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("alike", hypothesis.settings.get_profile("searching"), derandomize=True)
hypothesis.settings.load_profile("alike")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Every report, also a quiet one, says on which backend it was measured."""
    slow = f", {FACTOR:g} times as patient as usual" if FACTOR != 1 else ""
    terminalreporter.write_line(f"IPsec in labs: {resolve(BACKEND).value}{slow}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits for networks comes first, the longest files before the others: so the workers end them together, and
    the many quick files then keep all of them busy until the end."""
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    if not WITH_LABS.intersection(item.path.parts):
        return len(LONGEST) + 1
    return LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST)


def pytest_configure(config: pytest.Config) -> None:
    """Move this process into a fresh network namespace, before any thread exists (a thread would stay behind)."""
    if os.geteuid() != 0:
        pytest.exit("The tests make network namespaces: run them as root.", returncode=pytest.ExitCode.USAGE_ERROR)
    # A worker of pytest-xdist talks to its parent in a thread of its own, which may stay behind.
    if threading.active_count() != 1 and not hasattr(config, "workerinput"):
        pytest.exit("A thread exists before the tests have left the machine's network.", returncode=3)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        reason = os.strerror(ctypes.get_errno())
        pytest.exit(f"The tests cannot make a network namespace: {reason}.", returncode=pytest.ExitCode.USAGE_ERROR)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
