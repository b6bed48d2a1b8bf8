"""Is the door of a box that belongs to no site shut? It forwards nothing, and only what it began itself comes in."""

from __future__ import annotations

import trio

from cpe_agent.core import firewall
from cpe_agent.core.wanted_ruleset import ruleset
from cpe_agent.log import get_logger
from cpe_agent.model.dataplane import Backend
from cpe_agent.ports import EdgeError, FirewallPort

log = get_logger()

RETRY_S = 5.0


async def shut_door(port: FirewallPort, backend: Backend) -> None:
    """Until it is shut. A table of ours that is there already is shut but for the pairs of its document."""
    while True:
        try:
            if await port.read() is None:
                await port.apply(firewall.diff(ruleset(None, backend), None)[0])
        except EdgeError as error:
            log.error("target_failed", target=error.target, op=error.op, cause=error.cause)
        else:
            return
        await trio.sleep(RETRY_S)
