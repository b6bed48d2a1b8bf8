"""Are bytes counted across agents, reboots and modems, saved rarely enough, and budgets told at once?"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import trio
from trio.testing import MockClock

from cpe_agent.core.budget import Budget
from cpe_agent.loops.cells import Cells
from cpe_agent.loops.metering import LOOK_S, SAVE_APART_S, SAVE_BYTES, SAVE_S, Metering
from cpe_agent.model.document import Document, Uplink
from cpe_agent.model.observed import Link, LinkAddress
from tests.fakes.routes import FakeRoutes
from tests.fakes.store import FakeStore
from tests.loops.documents import branch
from tests.loops.world import LINKS, START_OF_2026_S, World

DAY_S = 86400.0
MONTHLY = 1_000_000_000
MODEM = Link("lte", True, (LinkAddress("100.64.1.10", 24),), ("100.64.1.1",))
SOON_S = LOOK_S + 1


def metered(monthly: int | None = MONTHLY, version: int = 1) -> Document:
    uplinks = dict(branch().uplinks)
    uplinks["lte"] = msgspec.structs.replace(uplinks["lte"], monthly_bytes=monthly, budget_day=5)
    return branch(version, uplinks=uplinks)


class Meter:
    """The loop alone, on a kernel, a disk and a clock that tests set."""

    def __init__(self) -> None:
        self.kernel = FakeRoutes()
        self.store = FakeStore()
        self.document = metered()
        self.wall_offset_s = START_OF_2026_S
        for link in LINKS:
            self.kernel.set_link(link)

    def wall_clock(self) -> float:
        return self.wall_offset_s + trio.current_time()

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[Cells]:
        cells = Cells()
        metering = Metering(cells, self.kernel, self.store, self.wall_clock)
        cells.document.set(self.document)
        metering.load()
        cells.links.set(await self.kernel.links())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(metering.run)
            yield cells
            nursery.cancel_scope.cancel()


async def test_budgets_follow_what_the_kernel_counts(autojump_clock: MockClock) -> None:
    meter = Meter()
    meter.kernel.carry("lte", 10**12)  # before anybody metered it
    async with meter.agent() as cells:
        await trio.sleep(SOON_S)
        assert cells.budgets.value == {"lte": Budget.FREE}
        meter.kernel.carry("lte", MONTHLY // 2, MONTHLY // 3)
        await trio.sleep(SOON_S)
        assert cells.budgets.value == {"lte": Budget.FREE}
        meter.kernel.carry("lte", MONTHLY // 10)
        await trio.sleep(SOON_S)
        assert cells.budgets.value == {"lte": Budget.NEAR}
        meter.kernel.carry("lte", MONTHLY)
        await trio.sleep(SOON_S)
        assert cells.budgets.value == {"lte": Budget.SPENT}
        # The operator has bought more.
        cells.document.set(metered(10 * MONTHLY, 2))
        await trio.sleep(SOON_S)
        assert cells.budgets.value == {"lte": Budget.FREE}
        cells.document.set(metered(MONTHLY, 3))
        await trio.sleep(SOON_S)
        assert cells.budgets.value == {"lte": Budget.SPENT}
        # 5 January.
        await trio.sleep(4 * DAY_S)
        assert cells.budgets.value == {"lte": Budget.FREE}
        assert (cells.usages.value["lte"].month, cells.usages.value["lte"].month_bytes) == ("2026-01-05", 0)


async def test_what_is_counted_is_told(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(metered())
    async with world.agent() as agent:
        await trio.sleep(SOON_S)
        world.routes.carry("lte", MONTHLY, 5)
        await trio.sleep(SOON_S)
        (report,) = [uplink for uplink in (await agent.status()).uplinks if uplink.name == "lte"]
        assert (report.remaining_bytes, report.budget, report.month) == (0, "spent", "2025-12-05")
        assert report.used_bytes == report.bytes_total == MONTHLY + 5
        assert "BudgetSpent lte" in await agent.conditions()
        told = [line.text for line in world.story.events("budget_changed")]
        assert told == ["budget_changed state=spent uplink=lte"]


async def test_a_spent_uplink_is_spent_before_the_first_look(autojump_clock: MockClock) -> None:
    meter = Meter()
    async with meter.agent():
        await trio.sleep(SOON_S)
        meter.kernel.carry("lte", MONTHLY)
        await trio.sleep(SOON_S)
    async with meter.agent() as cells:
        assert cells.budgets.value == {"lte": Budget.SPENT}


async def test_a_crash_right_after_the_first_look_costs_no_byte(autojump_clock: MockClock) -> None:
    meter = Meter()
    async with meter.agent():
        await trio.sleep(1)
        found = meter.store.usages
        assert set(found) == {"wired", "lte"}
    meter.store.usages = found
    meter.kernel.carry("lte", 1000)
    async with meter.agent() as cells:
        await trio.sleep(SOON_S)
        assert cells.usages.value["lte"].month_bytes == 1000


async def test_restarts_reboots_and_modems_cost_no_byte(autojump_clock: MockClock) -> None:
    meter = Meter()
    async with meter.agent() as cells:
        await trio.sleep(SOON_S)
        meter.kernel.carry("lte", 1000)
        await trio.sleep(SOON_S)
        assert cells.usages.value["lte"].month_bytes == 1000
    meter.kernel.carry("lte", 200)  # while no agent is there
    async with meter.agent() as cells:
        await trio.sleep(SOON_S)
        assert cells.usages.value["lte"].month_bytes == 1200
        # Another modem, with the same name.
        meter.kernel.remove_link("lte")
        cells.links.set(await meter.kernel.links())
        await trio.sleep(SOON_S)
        meter.kernel.set_link(MODEM)
        cells.links.set(await meter.kernel.links())
        meter.kernel.carry("lte", 30)
        await trio.sleep(SOON_S)
        assert cells.usages.value["lte"].month_bytes == 1230
    meter.kernel.reboot()
    meter.kernel.carry("lte", 4000)  # more than before
    async with meter.agent() as cells:
        await trio.sleep(SOON_S)
        assert cells.usages.value["lte"].month_bytes == 5230
        assert cells.usages.value["wired"].month_bytes == 0


async def test_a_power_cut_forgives_no_more_than_it_may(autojump_clock: MockClock) -> None:
    meter = Meter()
    async with meter.agent() as cells:
        await trio.sleep(SOON_S + SAVE_APART_S)
        step, cut = 700_000, 0
        for _ in range(200):
            meter.kernel.carry("lte", step)
            await trio.sleep(LOOK_S)
            held = cells.usages.value["lte"].month_bytes
            cut = max(cut, held - meter.store.usages["lte"].month_bytes)
        assert 0 < cut < SAVE_BYTES
    assert meter.store.usages["lte"] == cells.usages.value["lte"], "an agent that ends saves all"


async def test_a_fast_link_does_not_wear_the_flash(autojump_clock: MockClock) -> None:
    meter = Meter()
    async with meter.agent():
        await trio.sleep(SOON_S)
        before, began_at = meter.store.usages_saved, trio.current_time()
        for _ in range(100):
            meter.kernel.carry("lte", 10 * SAVE_BYTES)
            await trio.sleep(LOOK_S)
        assert meter.store.usages_saved - before <= (trio.current_time() - began_at) / SAVE_APART_S + 1


async def test_a_standby_link_is_saved_once_an_hour_and_an_idle_one_never(autojump_clock: MockClock) -> None:
    meter = Meter()
    async with meter.agent():
        await trio.sleep(SAVE_S)
        before = meter.store.usages_saved
        await trio.sleep(10 * SAVE_S)
        assert meter.store.usages_saved == before
        for _ in range(24 * 6):
            meter.kernel.carry("lte", 5000)
            await trio.sleep(SAVE_S / 6)
        assert 23 <= meter.store.usages_saved - before <= 25


async def test_a_wrong_clock_forgives_nothing(autojump_clock: MockClock) -> None:
    meter = Meter()
    async with meter.agent() as cells:
        await trio.sleep(SOON_S)
        meter.kernel.carry("lte", MONTHLY)
        await trio.sleep(SOON_S)
        right = meter.wall_offset_s
        # Before the document was signed; a month ahead; ten years ahead; right again.
        for offset_s in (0.0, right + 30 * DAY_S, right + 3650 * DAY_S, right):
            meter.wall_offset_s = offset_s
            meter.kernel.carry("lte", 1000)
            await trio.sleep(SOON_S)
        assert cells.budgets.value == {"lte": Budget.SPENT}
        assert cells.usages.value["lte"].month_bytes == MONTHLY + 4000


async def test_a_full_disk_does_not_stop_the_count(autojump_clock: MockClock) -> None:
    meter = Meter()
    async with meter.agent() as cells:
        await trio.sleep(SOON_S)
        meter.store.refusal = "No space left on device"
        for _ in range(5):
            meter.kernel.carry("lte", 2 * SAVE_BYTES)
            await trio.sleep(SAVE_APART_S + LOOK_S)
        assert cells.usages.value["lte"].month_bytes == 10 * SAVE_BYTES
        assert meter.store.usages["lte"].month_bytes == 0
        meter.store.refusal = None
        meter.kernel.carry("lte", 2 * SAVE_BYTES)
        await trio.sleep(SAVE_APART_S + LOOK_S)
        assert meter.store.usages["lte"].month_bytes == 12 * SAVE_BYTES


async def test_an_uplink_that_leaves_the_document_keeps_its_count(autojump_clock: MockClock) -> None:
    meter = Meter()
    async with meter.agent() as cells:
        await trio.sleep(SOON_S)
        meter.kernel.carry("lte", 1000)
        await trio.sleep(SOON_S)
        only: dict[str, Uplink] = {"wired": branch().uplinks["wired"]}
        cells.document.set(branch(2, uplinks=only))
        await trio.sleep(SOON_S)
        assert cells.budgets.value == {}
        cells.document.set(metered(version=3))
        await trio.sleep(SOON_S)
        assert cells.usages.value["lte"].month_bytes == 1000


async def test_a_clock_that_goes_behind_the_floor_forgives_nothing(autojump_clock: MockClock) -> None:
    meter = Meter()
    meter.wall_offset_s += 70 * DAY_S
    async with meter.agent() as cells:
        await trio.sleep(SOON_S)
        meter.kernel.carry("lte", MONTHLY // 2)
        await trio.sleep(SOON_S)
        # It says January for a while; the document was issued before that.
        cells.clock_floor.set(meter.wall_clock())
        meter.wall_offset_s -= 60 * DAY_S
        meter.kernel.carry("lte", MONTHLY // 2)
        await trio.sleep(SOON_S)
        assert cells.budgets.value == {"lte": Budget.SPENT}
        meter.wall_offset_s += 60 * DAY_S
        cells.clock_floor.set(None)
        await trio.sleep(SOON_S)
        assert cells.budgets.value == {"lte": Budget.SPENT}
