"""By which uplink does the router's own traffic leave? Steps core.own_way at every verdict; the one writer of the
own_uplink Cell, which the routes target follows."""

from __future__ import annotations

import trio

from cpe_agent.core import own_way
from cpe_agent.log import get_logger
from cpe_agent.loops.bell import Bell, ring_on_change
from cpe_agent.loops.cells import Cells

log = get_logger()

# When an uplink dies, users' traffic is moved first; the router's own can wait for that, and for what else comes then.
GATHER_S = 0.5


async def keep_own_way(cells: Cells) -> None:
    """For ever."""
    bell = Bell()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ring_on_change, bell, "verdict", (cells.plan, cells.verdicts, cells.budgets))
        while True:
            await bell.wait()
            await trio.sleep(GATHER_S)
            plan = cells.plan.value
            if plan is None:
                continue
            chosen = own_way.choose(plan.document, cells.verdicts.value.tracks, cells.budgets.value, plan.link_up)
            if cells.own_uplink.set(chosen) and chosen is not None:
                log.info("own_way_changed", uplink=chosen)
