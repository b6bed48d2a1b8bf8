"""How is a long-running program of a site (charon, the agent) or of the controller started, killed and restarted?"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.container import Container, LabError, Process
from tests.lab.init import LOGS


@dataclass(frozen=True)
class Command:
    """What to start. `env` is added to the lab's own."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)


class Daemon:
    """One program in one namespace. All its runs write to one log. `command` is asked anew at each start."""

    def __init__(self, container: Container, name: str, namespace: str, command: Callable[[], Command]) -> None:
        self.name = name
        self.namespace = namespace
        self._container = container
        self._command = command
        self._process: Process | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    @property
    def pid(self) -> int:
        """Its process id inside the lab."""
        if self._process is None:
            raise LabError(f"{self.name} has not been started")
        return self._process.pid

    @property
    def log(self) -> Path:
        return self._container.path(f"{LOGS}/{self.name}.log")

    def start(self) -> None:
        """Start it, without waiting until it is of use. One that runs already is left alone."""
        if self.running:
            return
        command = self._command()
        with open(self.log, "ab") as log:
            log.write(f"--- started at {time.monotonic():.3f}: {' '.join(command.argv)}\n".encode())
            log.flush()
            self._process = self._container.spawn(command.argv, namespace=self.namespace, stdout=log, env=command.env)

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 15.0) -> None:
        """Signal it and wait until it has gone. One that does not run is no error; one that does not go is."""
        if self._process is None:
            return
        self._process.signal(number)
        if self._process.wait(timeout_s) is None:
            raise LabError(f"{self.name} still runs {timeout_s} s after {number.name}")

    def kill(self) -> None:
        """kill -9, which it cannot see coming."""
        self.stop(signal.SIGKILL)

    def restart(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.stop(number)
        self.start()

    def close(self) -> None:
        """Forget it. It goes on; the end of the lab ends it."""
        if self._process is not None:
            self._process.close()
