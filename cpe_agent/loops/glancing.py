"""Has somebody loaded, unloaded or cleared something in charon, which tells nobody? A glance each second finds out.

In: charon's names and keys, and what was last read of it. What is to be done about a difference is the bell's matter.
"""

from __future__ import annotations

import trio

from cpe_agent.core.verify import TUNNELS
from cpe_agent.loops.bell import Bell
from cpe_agent.loops.cells import Cells
from cpe_agent.model.observed import Charon
from cpe_agent.ports import EdgeError, TunnelPort

# A glance costs charon and us 1 ms, and some 3 us more for each connection: so paced, less than 1 % of a core however
# many there are.
GLANCE_S = 1.0
GLANCE_CONNECTIONS = 2000


def glance_pause_s(connections: int) -> float:
    """Between two glances at a charon that holds so many connections."""
    return max(GLANCE_S, GLANCE_S * connections / GLANCE_CONNECTIONS)


async def glance_at_charon(cells: Cells, port: TunnelPort, lock: trio.Lock, bell: Bell) -> None:
    """For ever. `lock`: who holds it is changing charon, or has not told yet what was read."""
    while True:
        try:
            async with lock:
                glance, known = await port.glance(), cells.charon.value
            altered = known is not None and glance.differs(known)
        except EdgeError:
            # It is away, or hangs without a word: a pass will say so.
            altered = True
        if altered:
            bell.ring(TUNNELS)
        known = cells.charon.value or Charon()
        await trio.sleep(glance_pause_s(len(known.connections)))
