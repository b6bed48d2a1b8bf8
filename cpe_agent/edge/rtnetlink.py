"""Who speaks rtnetlink for the edge? pyroute2's `IPRoute`, with its errors and without the rest of pyroute2.

`import pyroute2` loads every tool that the library has (databases of interfaces, wireless, plan 9, a DHCP client): 5 MB
of a small router's memory, and a tenth of a second of each start. The agent uses one class, so the package is entered
by its side door: it is known under its name, with its path, and its `__init__` is not run. A program that has imported
pyroute2 before keeps what it has.
"""

from __future__ import annotations

import importlib.util
import sys


def _enter(package: str) -> None:
    if package in sys.modules:
        return
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    sys.modules[package] = importlib.util.module_from_spec(spec)


_enter("pyroute2")

from pyroute2.iproute import IPRoute  # noqa: E402 - its package has to be entered first
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError  # noqa: E402

__all__ = ["IPRoute", "NetlinkDumpInterrupted", "NetlinkError"]
