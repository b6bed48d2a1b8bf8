"""Who hands the document's time servers to whatever sets the clock? At each new document, until it is done."""

from __future__ import annotations

import trio

from cpe_agent.core.time_servers import drop_in
from cpe_agent.log import get_logger
from cpe_agent.loops.cells import Cells
from cpe_agent.ports import EdgeError, TimeServersPort

log = get_logger()

RETRY_S = 60.0


async def hand_over_time_servers(cells: Cells, port: TimeServersPort) -> None:
    """For ever."""
    while True:
        seen = cells.document.revision
        document = cells.document.value
        retry_s = float("inf")
        if document is not None:
            servers = document.management.time_servers
            try:
                if port.use(drop_in(servers)):
                    log.info("time_servers_changed", text=" ".join(servers))
            except EdgeError as error:
                log.error("task_retried", target=error.target, op=error.op, cause=error.cause)
                retry_s = RETRY_S
        with trio.move_on_after(retry_s):
            await cells.document.wait_changed(seen)
