"""Does a failover wait for an IKE_SA of which the hub knows nothing any more, because its charon was restarted?

The hub's kernel answers probes by what the killed charon has left, until its agent deletes that: first of paths that
stand by (core.kernel_ipsec). In a lost IKE_SA nothing is answered; a new one is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from tests.loops.documents import INTERVAL_MS, MISSES, branch
from tests.loops.world import World

# Of a failover to a path that is up: the rounds, the last one's patience, and what comes after it.
USUAL_S = INTERVAL_MS / 1000 * MISSES + 0.08
# As soon as that a hub's agent has seen to it: charon is asked for each half second, and two looks are 0.25 s apart.
HUB_SILENCES_S = 0.8
BUNDLE = "centre"
PATHS = {"wired": "wired.centre.wan", "lte": "lte.centre.wan"}


class Restarted(World):
    """In which a hub's charon has been restarted."""

    def __init__(self) -> None:
        super().__init__()
        self.silenced: set[int] = set()

    def restart_charon_of(self, hub: str) -> None:
        self.charon.forgotten |= {sa.unique_id for sa in self.charon.ike_sas() if f".{hub}." in sa.connection}

    def silence(self, path: str) -> None:
        """What the hub's kernel still answered probes of this path by is gone too."""
        self.silenced |= {sa.unique_id for sa in self.charon.ike_sas() if self._probes(sa, path)}

    def is_back(self, path: str) -> bool:
        """Has it been dialled anew?"""
        return any(sa.unique_id not in self.charon.forgotten and self._probes(sa, path) for sa in self.charon.ike_sas())

    def _has_probe(self, stem: str) -> bool:
        return any(sa.unique_id not in self.silenced and self._probes(sa, stem) for sa in self.charon.ike_sas())


async def _until(holds: Callable[[], bool]) -> None:
    for _ in itertools.takewhile(lambda _: not holds(), itertools.count()):
        await trio.sleep(0.01)


async def _hubs_agent(world: Restarted) -> None:
    await trio.sleep(HUB_SILENCES_S)
    world.silence(PATHS["lte"])
    await _until(lambda: world.is_back(PATHS["lte"]))
    world.silence(PATHS["wired"])


@pytest.mark.parametrize("after_s", [0.2, 0.6, 0.75, 0.85, 1.0, 1.15, 1.5, 3.0, 5.0, 30.0])
async def test_that_a_failover_after_it_takes_no_longer_than_three(autojump_clock: MockClock, after_s: float) -> None:
    world = Restarted()
    world.publish(branch())
    async with world.agent() as agent, trio.open_nursery() as nursery:
        await trio.sleep(35)
        world.restart_charon_of("centre")
        nursery.start_soon(_hubs_agent, world)
        await trio.sleep(after_s)
        active = agent.cells.active.value[BUNDLE]
        assert active is not None
        other = "lte" if active.uplink == "wired" else "wired"
        world.blackhole(active.uplink)
        with trio.fail_after(3 * USUAL_S):
            await _until(lambda: world.carried().get(BUNDLE) == PATHS[other])
        assert world.is_back(PATHS[other])
        nursery.cancel_scope.cancel()
