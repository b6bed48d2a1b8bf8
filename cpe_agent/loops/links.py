"""Which links are there now? Netlink's events become the links Cell, and wake the routes target."""

from __future__ import annotations

from contextlib import aclosing

import trio

from cpe_agent.log import get_logger
from cpe_agent.loops.bell import Bell
from cpe_agent.loops.cells import Cells
from cpe_agent.model.observed import Links
from cpe_agent.ports import EdgeError, RoutePort

log = get_logger()

RETRY_S = 1.0


async def watch_links(cells: Cells, port: RoutePort, bell: Bell) -> None:
    """For ever: one look at the links per burst of events."""
    while True:
        try:
            async with aclosing(port.changes()) as changes:
                async for _ in changes:
                    links = await port.links()
                    before = cells.links.value or Links()
                    if cells.links.set(links):
                        _say_what_changed(before, links)
                    bell.ring("routes")
        except EdgeError as error:
            log.warning("target_failed", target="netlink", op=error.op, cause=error.cause)
        await trio.sleep(RETRY_S)


def _say_what_changed(before: Links, after: Links) -> None:
    for name in sorted(before.by_name.keys() | after.by_name.keys()):
        link = after.by_name.get(name)
        if link != before.by_name.get(name):
            addresses = " ".join(f"{a.address}/{a.prefix_length}" for a in link.addresses) if link else ""
            state = "gone" if link is None else "up" if link.up else "down"
            log.info("link_changed", interface=name, state=state, address=addresses)
