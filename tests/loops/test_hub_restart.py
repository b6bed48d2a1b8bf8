"""Does a failover wait for an IKE_SA of which the hub knows nothing any more, because its charon was restarted?"""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.fakes.charon import Answer
from tests.loops.documents import INTERVAL_MS, MISSES, branch
from tests.loops.world import World

INTERVAL_S = INTERVAL_MS / 1000
# The answer to the last probe is under way, then `MISSES` rounds, each given the path's patience.
DETECTION_S = INTERVAL_S * (MISSES + 1) + 0.1
USUAL_S = INTERVAL_S * MISSES + 0.08
STANDBY, BUNDLE = "lte.centre.wan", "centre"


class Restarted(World):
    """In which a hub can lose IKE_SAs: to new ones it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.lost: set[int] = set()

    def lose(self, path: str) -> None:
        """What its kernel still answered probes of this path by is gone too."""
        self.lost |= {sa.unique_id for sa in self.charon.ike_sas() if self._probes(sa, path)}

    def _has_probe(self, stem: str) -> bool:
        sas = [sa for sa in self.charon.ike_sas() if sa.unique_id not in self.lost]
        return any(self._probes(sa, stem) for sa in sas)


@pytest.mark.parametrize("before_s", [0.35, 0.5, 0.8, 1.2, 1.6, 3.0])
async def test_that_the_path_that_stands_by_is_dialled_anew_at_once(autojump_clock: MockClock, before_s: float) -> None:
    """It fell so long before the one that carries the traffic did."""
    world = Restarted()
    world.publish(branch())
    async with world.agent():
        await trio.sleep(35)
        world.lose(STANDBY)
        await trio.sleep(before_s)
        fault_at = trio.current_time()
        world.blackhole("wired")
        while world.carried()[BUNDLE] != STANDBY:
            await trio.sleep(0.01)
            assert trio.current_time() - fault_at <= 3 * USUAL_S
        assert not world.lost & {sa.unique_id for sa in world.charon.ike_sas()}


async def test_that_a_short_gap_of_both_uplinks_costs_no_ike_sa(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent():
        await trio.sleep(35)
        before = {sa.unique_id for sa in world.charon.ike_sas()}
        for uplink in ("wired", "lte"):
            world.blackhole(uplink)
        await trio.sleep(DETECTION_S + 0.3)
        assert len(world.story.events("path_down", 35)) == 4
        for uplink in ("wired", "lte"):
            world.heal(uplink)
        await trio.sleep(3)
        assert {sa.unique_id for sa in world.charon.ike_sas()} == before


async def test_that_who_does_not_answer_is_not_dialled_again_and_again(autojump_clock: MockClock) -> None:
    world = Restarted()
    world.publish(branch())
    async with world.agent():
        await trio.sleep(35)
        world.lose(STANDBY)
        await trio.sleep(0.5)
        world.charon.answers[STANDBY] = Answer.SILENT
        fault_at = trio.current_time()
        world.blackhole("wired")
        await trio.sleep(10)
        dialled = [line for line in world.story.since(fault_at, "tunnels") if f"initiate {STANDBY}" in line.text]
        assert len(dialled) <= 2, dialled
