"""Do the kernel and charon still agree about IPsec? Kernel backend only.

Whatever changes in the kernel's IPsec wakes the routes target (our block policies are with it) and one comparison:
charon is asked, the kernel listed, charon asked again, and core.kernel_ipsec decides.
"""

from __future__ import annotations

import math
import time
from contextlib import aclosing

import trio

from cpe_agent.core.kernel_ipsec import Seen, step
from cpe_agent.log import get_logger
from cpe_agent.loops.bell import Bell, ring_on_change
from cpe_agent.loops.cells import Cells
from cpe_agent.ports import EdgeError, IpsecPort, TunnelPort

log = get_logger()

# An event may get lost, and charon may be the one that changed.
BACKSTOP_S = 10.0
RETRY_S = 1.0
# A hub's charon changes the kernel all day: so many comparisons in a second and no more and, where a listing takes
# long, no more of the time than a fifth. A look that the last one has asked for comes in its time: a failover may wait
# for what it decides.
SPACING_S = 0.25
REST = 4.0


async def keep_ipsec(cells: Cells, port: IpsecPort, charon: TunnelPort, routes: Bell) -> None:
    """For ever: the broken Cell follows, and what is left over goes."""
    bell = Bell()
    seen = Seen()
    wake_at = math.inf
    failing = ""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, port, bell, routes)
        # A charon that is back after a crash tells nobody of what it has left in the kernel.
        nursery.start_soon(ring_on_change, bell, "ipsec", (cells.charon, cells.plan))
        while True:
            await bell.wait(min(wake_at, trio.current_time() + BACKSTOP_S))
            plan = cells.plan.value
            began = trio.current_time()
            if plan is not None:
                try:
                    before = await charon.read()
                    kernel = await port.read()
                    after = await charon.read()
                    found = step(seen, plan.document, before, kernel, after, trio.current_time(), time.time())
                    if found.sas or found.policies:
                        await port.delete(found.sas, found.policies)
                        log.warning("ipsec_pruned", sas=len(found.sas), policies=len(found.policies))
                except EdgeError as error:
                    if failing != str(error):
                        log.warning("task_retried", target=error.target, op=error.op, cause=error.cause)
                    failing = str(error)
                    wake_at = trio.current_time() + RETRY_S
                    continue
                failing = ""
                if found.broken - cells.broken.value:
                    log.warning("ipsec_broken", ike_sas=len(found.broken))
                cells.broken.set(found.broken)
                seen, wake_at = found.seen, math.inf if found.wake_at is None else found.wake_at
            now = trio.current_time()
            await trio.sleep(max(SPACING_S, min(REST * (now - began), wake_at - now)))


async def _watch(port: IpsecPort, bell: Bell, routes: Bell) -> None:
    while True:
        try:
            async with aclosing(port.changes()) as changes:
                async for _ in changes:
                    routes.ring("routes")
                    bell.ring("ipsec")
        except EdgeError as error:
            log.warning("task_retried", target=error.target, op=error.op, cause=error.cause)
        await trio.sleep(RETRY_S)
