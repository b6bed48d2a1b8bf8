"""Every test runs in a network namespace of its own making, so that none can touch the machine's network."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading

import pytest

from cpe_agent.edge.ipsec import resolve
from tests.lab.pace import BACKEND, FACTOR

_CLONE_NEWNET = 0x40000000


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Every report, also a quiet one, says on which backend it was measured."""
    slow = f", {FACTOR:g} times as patient as usual" if FACTOR != 1 else ""
    terminalreporter.write_line(f"IPsec in labs: {resolve(BACKEND).value}{slow}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits for networks comes first: the many quick files then keep all workers busy until the end."""
    items.sort(key=lambda item: "scenarios" not in item.path.parts)


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
