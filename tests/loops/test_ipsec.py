"""Is what somebody does to the kernel's IPsec noticed by its event, and what a killed charon left pruned?"""

from __future__ import annotations

import time

import msgspec
import pytest
import trio

from cpe_agent.core.compile import Site, compile_dataplane
from cpe_agent.core.kernel_ipsec import CONFIRM_S, MOVE_S
from cpe_agent.loops.bell import Bell
from cpe_agent.loops.cells import Cells, Plan
from cpe_agent.loops.ipsec import keep_ipsec
from cpe_agent.model.dataplane import Backend
from cpe_agent.model.observed import Charon, KernelIpsec, KernelPolicy
from cpe_agent.ports import EdgeError
from tests.core.documents import HUB_LINKS, OWN_LAN, hub
from tests.core.test_kernel_ipsec import KERNEL, PROBE_1, PROBE_2, WHOLE
from tests.fakes.charon import FakeCharon
from tests.fakes.ipsec import FakeIpsec


class OneCharon(FakeCharon):
    """Its account is given."""

    def __init__(self, account: Charon) -> None:
        super().__init__()
        self.account = account
        self.away = False
        self.listing_takes_s = 0.0

    async def read(self) -> Charon:
        await trio.sleep(self.listing_takes_s)
        if self.away:
            raise EdgeError("charon", "connect", "refused")
        return self.account


class World:
    def __init__(self) -> None:
        self.cells, self.routes = Cells(), Bell()
        self.ipsec, self.charon = FakeIpsec(KERNEL), OneCharon(WHOLE)
        site = Site("centre.city", Backend.KERNEL)
        dataplane, conditions = compile_dataplane(hub(), HUB_LINKS, site)
        self.cells.plan.set(Plan(hub(), dataplane, conditions, {}))

    def start(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(keep_ipsec, self.cells, self.ipsec, self.charon, self.routes)


async def test_that_a_flush_is_noticed_by_its_event(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    async with trio.open_nursery() as nursery:
        world.start(nursery)
        await trio.sleep(5)
        assert world.cells.broken.value == frozenset()
        await world.routes.wait(trio.current_time())
        world.ipsec.set(msgspec.structs.replace(KERNEL, sas=frozenset()))
        since = trio.current_time()
        await world.cells.broken.wait_changed(world.cells.broken.revision)
        assert trio.current_time() - since < 0.5
        assert world.cells.broken.value == {1, 2}
        # Our block policies are the routes target's.
        assert await world.routes.wait(trio.current_time() + 1) == {"routes"}
        world.ipsec.set(KERNEL)
        await world.cells.broken.wait_changed(world.cells.broken.revision)
        assert world.cells.broken.value == frozenset()
        nursery.cancel_scope.cancel()


async def test_that_a_stray_policy_goes(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    stray = KernelPolicy("out", "10.10.0.0/24", OWN_LAN, 6, 0, 0, 5)
    async with trio.open_nursery() as nursery:
        world.start(nursery)
        await trio.sleep(5)
        world.ipsec.set(KernelIpsec(KERNEL.sas, KERNEL.policies | {stray}))
        await trio.sleep(CONFIRM_S + 0.6)
        assert world.ipsec.held == KERNEL
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("listing_takes_s", [0.0, 0.5])
async def test_that_what_a_killed_charon_left_is_seen_when_it_is_back(
    autojump_clock: trio.testing.MockClock, listing_takes_s: float
) -> None:
    """Two looks are enough, and the second does not wait for the first one's rest: a failover may wait for it."""
    world = World()
    world.charon.listing_takes_s = listing_takes_s
    old = {msgspec.structs.replace(sa, added=time.time() - 60) for sa in KERNEL.sas}
    world.ipsec.set(msgspec.structs.replace(KERNEL, sas=frozenset(old)))
    async with trio.open_nursery() as nursery:
        world.start(nursery)
        await trio.sleep(5)
        world.charon.away = True
        world.cells.charon.set(Charon())
        await trio.sleep(5)
        assert len(world.ipsec.held.sas) == len(KERNEL.sas), "nothing is pruned while nobody can say what is in use"
        world.charon.away, world.charon.account = False, Charon(credentials_loaded=True)
        world.cells.charon.set(world.charon.account)
        await trio.sleep(CONFIRM_S + 0.6 + 4 * listing_takes_s)
        gone = {sa.spi for sa in old} - {sa.spi for sa in world.ipsec.held.sas}
        assert gone == {PROBE_2.spi_out}
        await trio.sleep(MOVE_S + 1 + 2 * listing_takes_s)
        gone = {sa.spi for sa in old} - {sa.spi for sa in world.ipsec.held.sas}
        assert gone == {PROBE_1.spi_out, PROBE_2.spi_out}
        nursery.cancel_scope.cancel()
