"""Which links are there now? Netlink's events become the links Cell, and wake the routes target."""

from __future__ import annotations

import trio

from cpe_agent.log import logger
from cpe_agent.loops.bell import Bell
from cpe_agent.loops.cells import Cells
from cpe_agent.ports import EdgeError, RoutePort

log = logger(__name__)

RETRY_S = 1.0


async def watch_links(cells: Cells, port: RoutePort, bell: Bell) -> None:
    """For ever: one look at the links per burst of events."""
    while True:
        try:
            async for _ in port.changes():
                links = await port.links()
                if cells.links.set(links):
                    log.info("link_changed", links=_summary(links.by_name))
                bell.ring("routes")
        except EdgeError as error:
            log.warning("target_failed", target="netlink", op=error.op, cause=error.cause)
        await trio.sleep(RETRY_S)


def _summary(links: object) -> str:
    assert isinstance(links, dict)
    return " ".join(f"{name}:{'up' if link.up else 'down'}" for name, link in sorted(links.items()))
