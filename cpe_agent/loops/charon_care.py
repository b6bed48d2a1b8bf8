"""Who sees that charon is of no use, and asks root to start it anew? A look every few seconds; core decides."""

from __future__ import annotations

import trio

from cpe_agent.core.charon_care import Care, conditions, step
from cpe_agent.log import get_logger
from cpe_agent.loops.cells import Cells
from cpe_agent.ports import CharonCarePort, EdgeError

log = get_logger()

LOOK_S = 5.0


async def care_for_charon(cells: Cells, port: CharonCarePort) -> None:
    """For ever. The one writer of `cells.charon_care`."""
    care = Care()
    while True:
        signs, plan = await port.signs(), cells.plan.value
        missing = next((c.subject for c in plan.conditions if c.type == "TunnelDeviceMissing"), "") if plan else ""
        care, wish = step(care, signs, missing, trio.current_time())
        if wish:
            try:
                port.wish()
            except EdgeError as error:
                log.error("task_retried", target=error.target, op=error.op, cause=error.cause)
            else:
                log.warning("charon_restart_asked", reason=care.trouble, count=care.wishes)
        found = conditions(care, trio.current_time())
        if found != cells.charon_care.value:
            cells.charon_care.set(found)
        await trio.sleep(LOOK_S)
