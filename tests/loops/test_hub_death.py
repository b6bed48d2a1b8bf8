"""Is a hub that vanishes left for the other at once, though its path over the other uplink is still believed in?"""

from __future__ import annotations

import msgspec
import pytest
import trio
from trio.testing import MockClock

from cpe_agent.model.dataplane import stem_of
from cpe_agent.model.document import Probing, Uplink
from tests.fakes.charon import Answer
from tests.loops.documents import INTERVAL_MS, MISSES, branch
from tests.loops.world import RTT_S, World

INTERVAL_S = INTERVAL_MS / 1000
# The answer to the last probe is under way, then `MISSES` rounds, each given the path's patience.
DETECTION_S = INTERVAL_S * (MISSES + 1) + 0.1
BUNDLE = "centre+cloud"


class Dying(World):
    """In which hubs can vanish."""

    def __init__(self) -> None:
        super().__init__()
        self.gone: set[str] = set()

    def vanish(self, hub: str) -> None:
        self.gone.add(hub)
        for uplink in RTT_S:
            self.charon.answers[f"{uplink}.{hub}.wan"] = Answer.SILENT

    def answers(self, source: str, target: str) -> bool:
        hub = {"1": "centre", "2": "cloud"}[target.split(".")[2]]
        return hub not in self.gone and super().answers(source, target)


@pytest.mark.parametrize("standby_s", [1, 10])
@pytest.mark.parametrize("phase_s", [0.0, 0.03, 0.06, 0.09])
async def test_that_no_other_path_to_it_is_tried(autojump_clock: MockClock, phase_s: float, standby_s: int) -> None:
    """One that stands by is asked so seldom that it would be believed in for many seconds."""
    world = Dying()
    world.publish(branch(uplinks=_with_standby(standby_s)))
    async with world.agent():
        await trio.sleep(35 + phase_s)
        fault_at = trio.current_time()
        world.vanish("centre")
        await trio.sleep(8)
        moved = [line for line in world.story.events("bundle_moved", fault_at) if f"bundle={BUNDLE} " in line.text]
        assert len(moved) == 1 and "to_path=wired.cloud.wan" in moved[0].text, moved
        assert moved[0].at_s - fault_at <= DETECTION_S
        assert world.carried()[BUNDLE] == "wired.cloud.wan"


async def test_that_a_hub_which_dies_right_after_a_move_to_it_is_left_as_soon(autojump_clock: MockClock) -> None:
    """The hub before it has its child still, for late answers; the newer one is not to stand in its way."""
    world = Dying()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(35)
        agent.cells.taken_out.set(frozenset(p for p in agent.cells.verdicts.value.tracks if p.peer == "centre"))
        await trio.sleep(5)
        assert world.carried()[BUNDLE] == "wired.cloud.wan"
        agent.cells.taken_out.set(frozenset())
        back_at = trio.current_time()
        for _ in range(600):
            await trio.sleep(0.05)
            if world.carried()[BUNDLE] == "wired.centre.wan":
                break
        assert _pinned(world) == {"wired.centre.wan", "wired.cloud.wan"}, trio.current_time() - back_at
        await trio.sleep(0.2)
        world.vanish("centre")
        await trio.sleep(DETECTION_S + 0.1)
        assert _pinned(world) == {"wired.cloud.wan"}


def _pinned(world: World) -> set[str]:
    """Whose paths hold the bundle's child, also one that waits for an answer to its end: charon still sends into it."""
    sas = world.charon.ike_sas()
    return {stem_of(sa.connection) for sa in sas if any(c.name == f"traffic-{BUNDLE}" for c in sa.children)}


def _with_standby(standby_s: int) -> dict[str, Uplink]:
    pace = Probing(INTERVAL_MS, standby_s * 1000, MISSES)
    return {name: msgspec.structs.replace(uplink, probe=pace) for name, uplink in branch().uplinks.items()}
