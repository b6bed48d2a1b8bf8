"""How does one target of the data plane fare: is it as wanted, has somebody altered it, when is it tried again?"""

from __future__ import annotations

import math
import random
import time

import msgspec
import trio

from cpe_agent.core.backoff import backoff_s
from cpe_agent.log import get_logger
from cpe_agent.loops.cells import Cells, TargetState
from cpe_agent.ports import EdgeError

log = get_logger()

RETRY_FIRST_S = 0.2
RETRY_MAX_S = 15.0


class Target:
    """Keeps its `TargetState` in the targets Cell. `retry_at`: when to try again after a refusal (trio's clock)."""

    def __init__(self, name: str, cells: Cells) -> None:
        self.name = name
        self.retry_at = math.inf
        self._cells = cells
        self._failures = 0
        self._set(TargetState())

    @property
    def state(self) -> TargetState:
        return self._cells.targets.value[self.name]

    def seen(self, in_sync: bool, drifted: int = 0) -> None:
        """Looked at, and nothing was refused. `in_sync`: what was READ was as wanted; what has been changed since is in
        sync once it is read again. `drifted`: operations that somebody else's change had made necessary."""
        if self._failures:
            log.info("target_recovered", target=self.name)
        if drifted:
            log.warning("target_repaired", target=self.name, ops=drifted)
        self._failures, self.retry_at = 0, math.inf
        self._set(TargetState(in_sync, self.state.drift_total + (drifted > 0), time.time(), ""))

    def asked(self) -> None:
        """Something else is wanted now: whether it is there is not known before it was looked at with that in mind."""
        self._set(msgspec.structs.replace(self.state, in_sync=False))

    def failed(self, error: EdgeError) -> None:
        """Refused: say so once per cause, try again later."""
        if self.state.error != str(error):
            log.error("target_failed", target=self.name, op=error.op, cause=error.cause)
        self._failures += 1
        self.retry_at = trio.current_time() + backoff_s(self._failures, RETRY_FIRST_S, RETRY_MAX_S, random.random())
        self._set(msgspec.structs.replace(self.state, in_sync=False, error=str(error)))

    def _set(self, state: TargetState) -> None:
        self._cells.targets.set({**self._cells.targets.value, self.name: state})
