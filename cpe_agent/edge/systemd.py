"""How does the agent speak to the service manager that has started it?

By datagrams to the socket that the environment names (sd_notify(3)): a path, or "@NAME" for an abstract one. Without
one there is nobody to tell, and nothing is an error.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence

from cpe_agent.ports import EdgeError

_US_PER_S = 1_000_000


class ServiceSocket:
    """A `ServicePort`. `environment`: where the socket is, and how long the manager waits for a sign of life."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self.watchdog_s = _watchdog_s(environment) if self._address else None
        self._socket: socket.socket | None = None

    def tell(self, lines: Sequence[str]) -> None:
        """All of `lines` in one message. Never waits. Raises `EdgeError`."""
        if not self._address:
            return
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                self._socket.setblocking(False)
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            raise EdgeError("systemd", "notify", error.strerror or str(error)) from None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _address(text: str) -> str:
    """As Python's sockets want it; "" if there is none that can be used."""
    if text.startswith("@") and len(text) > 1:
        return "\0" + text[1:]
    return text if text.startswith("/") else ""


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """None: nobody waits for a sign of life of this process."""
    waits = environment.get("WATCHDOG_USEC", "")
    whose = environment.get("WATCHDOG_PID", str(os.getpid()))
    if not waits.isdecimal() or int(waits) == 0 or whose != str(os.getpid()):
        return None
    return int(waits) / _US_PER_S
