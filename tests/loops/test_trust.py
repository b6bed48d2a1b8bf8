"""Whoever the document names is believed, from the moment that it is in force; on a revert those before it again."""

from __future__ import annotations

import msgspec
import trio
from trio.testing import MockClock

from cpe_agent.loops.cells import Cells
from cpe_agent.loops.trust import Trust
from cpe_agent.model.document import Document
from cpe_agent.ports import EdgeError
from tests.loops.documents import branch


def vouched(*cas: str, version: int = 1) -> Document:
    document = branch(version)
    return msgspec.structs.replace(document, trust=msgspec.structs.replace(document.trust, cas=cas))


async def test_each_change_is_told_once(autojump_clock: MockClock) -> None:
    cells, told = Cells(), list[tuple[str, ...]]()
    trust = Trust(cells, told.append)
    cells.document.set(vouched("old"))
    trust.load()
    assert told == [("old",)], "before anything connects"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trust.run)
        for document in (vouched("old", version=2), vouched("old", "new", version=3), vouched("old"), None):
            await trio.sleep(1)
            cells.document.set(document)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert told == [("old",), ("old", "new"), ("old",), ()]


async def test_what_cannot_be_used_is_said_and_the_next_is_used(autojump_clock: MockClock) -> None:
    cells, told = Cells(), list[tuple[str, ...]]()

    def believe(cas: tuple[str, ...]) -> None:
        told.append(cas)
        if "damaged" in cas:
            raise EdgeError("charon", "read authorities", "no PEM")

    trust = Trust(cells, believe)
    for cas in ("old", "damaged", "new"):
        cells.document.set(vouched(cas))
        trust.load()
    assert told == [("old",), ("damaged",), ("new",)]
