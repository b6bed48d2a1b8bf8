"""Which links are there now? Netlink's events become the links Cell, and wake the routes target.

A link that is told to be lost counts as down at once, before the links are read: traffic waits for that.
"""

from __future__ import annotations

from collections.abc import Set
from contextlib import aclosing

import msgspec
import trio

from cpe_agent.log import get_logger
from cpe_agent.loops.bell import Bell
from cpe_agent.loops.cells import Cells
from cpe_agent.model.observed import Links
from cpe_agent.ports import EdgeError, RoutePort

log = get_logger()

RETRY_S = 1.0
ANY = ""  # the name of no interface


async def watch_links(cells: Cells, port: RoutePort, bell: Bell) -> None:
    """For ever: one look at the links per burst of events."""
    look = Bell()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_read_links, cells, port, bell, look)
        while True:
            try:
                async with aclosing(port.changes()) as changes:
                    async for lost in changes:
                        if cells.links.value is not None:
                            _set(cells, _without(cells.links.value, lost))
                        look.ring(ANY, *lost)
            except EdgeError as error:
                log.warning("target_failed", target="netlink", op=error.op, cause=error.cause)
            await trio.sleep(RETRY_S)


async def _read_links(cells: Cells, port: RoutePort, bell: Bell, look: Bell) -> None:
    """Whenever `look` is rung: with the names of what was lost, and `ANY`."""
    while True:
        await look.wait()
        try:
            links = await port.links()
        except EdgeError as error:
            log.warning("target_failed", target="netlink", op=error.op, cause=error.cause)
            await trio.sleep(RETRY_S)
            look.ring(ANY)
            continue
        # What was lost meanwhile may have been read before; the next look will tell.
        _set(cells, _without(links, look.rung))
        bell.ring("routes")


def _without(links: Links, lost: Set[str]) -> Links:
    """The same with these down. What else is to be said of them, a reading says."""
    down = {name: msgspec.structs.replace(links.by_name[name], up=False) for name in lost & links.by_name.keys()}
    return Links({**links.by_name, **down})


def _set(cells: Cells, links: Links) -> None:
    before = cells.links.value or Links()
    if cells.links.set(links):
        _say_what_changed(before, links)


def _say_what_changed(before: Links, after: Links) -> None:
    for name in sorted(before.by_name.keys() | after.by_name.keys()):
        link = after.by_name.get(name)
        if link != before.by_name.get(name):
            addresses = " ".join(f"{a.address}/{a.prefix_length}" for a in link.addresses) if link else ""
            state = "gone" if link is None else "up" if link.up else "down"
            log.info("link_changed", interface=name, state=state, address=addresses)
