"""Does the service manager hear of a living agent only while kernel and charon are really looked after?"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from cpe_agent.core.heartbeat import STUCK_S
from cpe_agent.loops.heartbeat import LOOK_S, Heartbeat
from cpe_agent.loops.reconcile import BACKSTOP_S
from cpe_agent.model.ops import TunnelOp
from tests.fakes.service import FakeService
from tests.loops.documents import branch
from tests.loops.world import Agent, World

WATCHDOG_S = 45.0
FOR_EVER_S = 1e9


class _Heard(FakeService):
    """Also when."""

    def __init__(self) -> None:
        super().__init__(WATCHDOG_S)
        self.at: list[tuple[float, tuple[str, ...]]] = []

    def tell(self, lines: Sequence[str]) -> None:
        super().tell(lines)
        self.at.append((trio.current_time(), tuple(lines)))

    def fed(self) -> list[float]:
        return [at for at, lines in self.at if "WATCHDOG=1" in lines]

    def longest_pause_s(self, since: float) -> float:
        times = [since, *(at for at in self.fed() if at > since), trio.current_time()]
        return max(later - earlier for earlier, later in pairwise(times))


@asynccontextmanager
async def _agent(world: World) -> AsyncIterator[tuple[Agent, _Heard]]:
    service = _Heard()
    heartbeat = Heartbeat(service)
    async with world.agent() as agent, trio.open_nursery() as nursery:
        nursery.start_soon(heartbeat.run, agent.reporter.line, agent.reconciler.progress.last)
        await agent.reconciler.firewall_seen_to.wait()
        heartbeat.began()
        yield agent, service
        nursery.cancel_scope.cancel()


async def test_that_ready_comes_first_and_the_line_follows_the_site(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with _agent(world) as (_, service):
        assert sum("READY=1" in lines for _, lines in service.at) == 1
        await trio.sleep(30)
        said = [line for _, lines in service.at for line in lines if line.startswith("STATUS=")]
        assert said[-1] == "STATUS=hospital-1 (document 1.1): all is well"
        world.blackhole("wired")
        await trio.sleep(5)
        said = [line for _, lines in service.at for line in lines if line.startswith("STATUS=")]
        assert said[-1].startswith("STATUS=hospital-1 (document 1.1): degraded: PathDown wired.")
        assert sum("READY=1" in lines for _, lines in service.at) == 1


async def test_that_an_agent_at_rest_is_alive(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with _agent(world) as (_, service):
        began = trio.current_time()
        await trio.sleep(600)
        assert service.longest_pause_s(began) <= WATCHDOG_S / 2


async def test_that_rules_that_never_come_back_end_the_signs_of_life(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with _agent(world) as (_, service):
        await trio.sleep(60)
        world.kernel_takes_s = FOR_EVER_S
        world.firewall.change(None)
        stuck_at = trio.current_time()
        await trio.sleep(600)
        # Probes, reports and tunnels go on meanwhile; that is not what counts.
        assert stuck_at + STUCK_S - WATCHDOG_S / 2 <= service.fed()[-1] <= stuck_at + STUCK_S + LOOK_S
        assert service.heard[-1] == ("STATUS=stuck: rules got nowhere for 30 s",)


async def test_that_a_charon_that_never_tells_ends_them(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    world.publish(branch())
    async with _agent(world) as (_, service):
        await trio.sleep(60)
        monkeypatch.setattr(world.charon, "read", trio.sleep_forever)
        stuck_at = trio.current_time()
        await trio.sleep(600)
        assert service.fed()[-1] <= stuck_at + BACKSTOP_S + STUCK_S + LOOK_S
        assert service.heard[-1] == ("STATUS=stuck: tunnels got nowhere for 30 s",)


async def test_that_a_long_pass_that_gets_on_is_alive(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    apply = world.charon.apply
    took: list[float] = []

    async def slowly(op: TunnelOp) -> None:
        await trio.sleep(STUCK_S * 0.8)
        took.append(trio.current_time())
        await apply(op)

    async with _agent(world) as (_, service):
        await trio.sleep(10)
        monkeypatch.setattr(world.charon, "apply", slowly)
        began = trio.current_time()
        world.publish(branch())
        await trio.sleep(600)
        assert len(took) > 4 and took[4] - took[0] > STUCK_S * 2
        assert service.longest_pause_s(began) <= WATCHDOG_S


async def test_that_one_who_does_not_hear_is_told_later(autojump_clock: MockClock) -> None:
    service = _Heard()
    heartbeat = Heartbeat(service)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(heartbeat.run, lambda: "starting", {})
        service.deaf = True
        heartbeat.began()
        await trio.sleep(20)
        assert service.heard == []
        service.deaf = False
        # Longer than a look: of two tasks that wake in one instant, either may be first.
        await trio.sleep(LOOK_S * 1.5)
        assert service.heard[0] == ("READY=1", "STATUS=starting", "WATCHDOG=1")
        heartbeat.ending()
        assert service.heard[-1] == ("STOPPING=1",)
        nursery.cancel_scope.cancel()
