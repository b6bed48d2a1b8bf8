"""What does the controller hear of this site? At changes, every minute, and when it asks, over whatever uplink works.

There is no queue: what is sent is what holds when it is sent, so a day without the controller leaves nothing behind.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import trio

from cpe_agent import __version__
from cpe_agent.core.backoff import backoff_s
from cpe_agent.core.site_report import Facts, news, site_report
from cpe_agent.loops.bell import Bell
from cpe_agent.loops.cells import Cells
from cpe_agent.loops.report import Reporter
from cpe_agent.model.site_report import Box, SiteReport
from cpe_agent.ports import ControllerPort, EdgeError

# A change is told at most so often,
CHANGE_S = 2.0
# and that nothing changed so often.
TICK_S = 60.0
RETRY_FIRST_S = 4.0
RETRY_MAX_S = 60.0
RETRY_AFTER_MAX_S = 600.0


class Announcer:
    """Sends reports. `ways`: our addresses to go out by, best first. `asked` is rung when one is wanted."""

    def __init__(
        self,
        cells: Cells,
        port: ControllerPort,
        reporter: Reporter,
        box: Box,
        ways: Callable[[], Sequence[str]],
        asked: Bell,
    ) -> None:
        self._cells = cells
        self._port = port
        self._reporter = reporter
        self._box = box
        self._ways = ways
        self._asked = asked

    async def run(self) -> None:
        """For ever."""
        told: object = None
        failures = 0
        due = look_at = trio.current_time()
        while True:
            # Who has asked by now is answered by what is made now.
            if await self._asked.wait(look_at):
                due = trio.current_time()
            report = self._report()
            if news(report) == told and trio.current_time() < due:
                look_at = trio.current_time() + CHANGE_S
                continue
            error = await self._send(report)
            if error is None:
                told, failures = news(report), 0
                due = trio.current_time() + TICK_S * random.uniform(0.9, 1.1)
                await trio.sleep(CHANGE_S)
                continue
            failures += 1
            wait = backoff_s(failures, RETRY_FIRST_S, RETRY_MAX_S, random.random())
            asked = getattr(error, "retry_after_s", None) or 0.0
            await trio.sleep(max(wait, min(asked, RETRY_AFTER_MAX_S)))

    def _report(self) -> SiteReport:
        """From what is known; nothing is read for it, since on a hub that would cost more than all else."""
        document, standing = self._cells.document.value, self._cells.standing.value
        conditions = self._reporter.conditions()
        readiness, reverted = self._cells.readiness.value, standing.reverted
        if document is not None and document.role == "hub":
            serving = readiness is not None and readiness.ready
        else:
            serving = document is not None and not any(condition.type == "BundleDown" for condition in conditions)
        facts = Facts(
            agent_version=__version__,
            order=document.order if document is not None else None,
            since=standing.since,
            confirmed=not standing.pending,
            # What may be taken up again is to be offered again.
            refused=standing.refused or (reverted if reverted is not None and not reverted.acquitted else None),
            conditions=conditions,
            paths={str(path): track.state.value for path, track in self._reporter.tracks.items()},
            serving=serving,
        )
        return site_report(facts, self._box)

    async def _send(self, report: SiteReport) -> EdgeError | None:
        """Over the first way that works; the last error if none does. The follower has said already that it is lost."""
        error: EdgeError | None = None
        for local_address in self._ways():
            try:
                await self._port.report(local_address, report)
                return None
            except EdgeError as found:
                error = found
                if getattr(found, "answered", False):
                    break  # another way would be told the same
        return error
