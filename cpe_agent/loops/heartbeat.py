"""Who tells the service manager that the agent is ready, how the site fares, and that it is alive?

A look each second; core decides what is told. One that cannot be told is told later: nothing else waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio

from cpe_agent.core.heartbeat import Beat, Told, step
from cpe_agent.log import get_logger
from cpe_agent.ports import EdgeError, ServicePort

log = get_logger()

LOOK_S = 1.0


class Heartbeat:
    """Lives as long as the process does, through both of the daemon's lives; `running` is set by whoever has begun all
    loops."""

    def __init__(self, port: ServicePort) -> None:
        self.running = False
        self._port = port
        self._told = Told()
        self._failing = False

    async def run(self, status: Callable[[], str], progress: Mapping[str, float]) -> None:
        """For ever. `status`: the line for people, as of now; `progress`: of loops, see `core.heartbeat`."""
        while True:
            self._look(Beat(self.running, progress, status()))
            await trio.sleep(LOOK_S)

    def began(self) -> None:
        """All loops run: whoever waits for that hears it now."""
        self.running = True
        self._look(Beat(True, {}, self._told.status))

    def _look(self, beat: Beat) -> None:
        told, lines = step(self._told, beat, self._port.watchdog_s, trio.current_time())
        if not lines:
            return
        try:
            self._port.tell(lines)
        except EdgeError as error:
            if not self._failing:
                log.warning("task_retried", target=error.target, op=error.op, cause=error.cause)
            self._failing = True
        else:
            self._told, self._failing = told, False

    def ending(self) -> None:
        """The agent was told to end, and does."""
        try:
            self._port.tell(("STOPPING=1",))
        except EdgeError as error:
            log.warning("task_retried", target=error.target, op=error.op, cause=error.cause)
