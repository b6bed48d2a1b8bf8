"""How does the service manager learn how we fare, and how do we ask it for the one thing that takes root?

In: its environment variables. Implements `ServicePort`: a datagram to systemd's notification socket (sd_notify(3)), and
a file that cpe-charon-restart.path waits for. Without a service manager (a lab, a shell) nothing is sent.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from cpe_agent.ports import EdgeError

CHARON_WISH = "restart-charon"


class ServiceManager:
    """A `ServicePort`. `run_dir` is /run/cpe-agent."""

    def __init__(self, environment: Mapping[str, str], run_dir: Path) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._run_dir = run_dir
        microseconds = environment.get("WATCHDOG_USEC", "")
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._watchdog_s = int(microseconds) / 1e6 if microseconds.isdigit() and ours else None

    @property
    def watchdog_s(self) -> float | None:
        """Seconds within which `tell("WATCHDOG=1")` is expected again; None if nobody waits for it."""
        return self._watchdog_s

    def tell(self, **state: str) -> None:
        """Variables as sd_notify(3) has them (READY, STATUS, WATCHDOG, STOPPING). A manager that does not listen is no
        error: it would not act on one either."""
        if not self._address:
            return
        # An abstract socket is written with a leading @.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        message = "\n".join(f"{name}={value}".replace("\n", " ") for name, value in state.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto(message.encode(), address)
        except OSError:
            return

    def wish_charon_restarted(self) -> None:
        """Ask for a new charon. Raises `EdgeError` if that cannot be asked."""
        try:
            (self._run_dir / CHARON_WISH).touch(mode=0o640)
        except OSError as error:
            raise EdgeError("charon", "ask for a restart", f"{self._run_dir}: {error.strerror}") from None
