"""What should be, given the document, the links as they are, and whether this hub is willing to serve? Compiles
whenever one of them changes, each time from what it came to before."""

from __future__ import annotations

import trio

from cpe_agent.core.compile import Compiled, Site, compile_next
from cpe_agent.log import get_logger
from cpe_agent.loops.bell import Bell, ring_on_change
from cpe_agent.loops.cells import Cells, Plan
from cpe_agent.model.document import DocumentError

log = get_logger()


async def keep_plan(cells: Cells, site: Site) -> None:
    """For ever: the plan Cell follows document, links, readiness. A document that compiles was checked before."""
    bell = Bell()
    compiled: Compiled | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ring_on_change, bell, "plan", (cells.document, cells.links, cells.readiness))
        bell.ring("plan")
        while True:
            await bell.wait()
            document, links = cells.document.value, cells.links.value
            if document is None or links is None:
                continue
            readiness = cells.readiness.value
            if document.role == "hub" and readiness is None:
                # Not known yet: ready addresses must neither go nor come before it is.
                continue
            ready = readiness is not None and readiness.ready
            try:
                compiled = compile_next(compiled, document, links, site, ready)
            except DocumentError as error:
                # Links changed under an accepted document: keep what runs, and say so.
                log.error("document_rejected", field=error.path, reason=error.reason)
                continue
            link_up = {uplink.name: uplink.leads_out for uplink in compiled.uplinks}
            interfaces = {uplink.name: uplink.interface for uplink in compiled.uplinks}
            cells.plan.set(Plan(document, compiled.dataplane, compiled.conditions, link_up, interfaces))
