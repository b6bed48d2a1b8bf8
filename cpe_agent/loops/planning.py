"""What should be, given the document and the links as they are? Compiles anew whenever either changes."""

from __future__ import annotations

import trio

from cpe_agent.core.compile import Site, compile_dataplane
from cpe_agent.core.uplinks import resolve
from cpe_agent.log import get_logger
from cpe_agent.loops.bell import Bell, ring_on_change
from cpe_agent.loops.cells import Cells, Plan
from cpe_agent.model.document import DocumentError

log = get_logger()


async def keep_plan(cells: Cells, site: Site) -> None:
    """For ever: the plan Cell follows document and links. A document that compiles was checked before it got here."""
    bell = Bell()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ring_on_change, bell, "plan", (cells.document, cells.links))
        bell.ring("plan")
        while True:
            await bell.wait()
            document, links = cells.document.value, cells.links.value
            if document is None or links is None:
                continue
            try:
                dataplane, conditions = compile_dataplane(document, links, site)
            except DocumentError as error:
                # Links changed under an accepted document: keep what runs, and say so.
                log.error("document_rejected", field=error.path, reason=error.reason)
                continue
            uplinks, _ = resolve(document, links)
            cells.plan.set(Plan(document, dataplane, conditions, {uplink.name: uplink.up for uplink in uplinks}))
