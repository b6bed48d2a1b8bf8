"""Does an agent outlive whatever its links, its hubs and its charon do in a row, and come home?

On the simulated clock, so that many rows of faults take seconds: what comes between two turns of the loops (a path that
the plan has no longer and steering has not left yet) is met by chance here, and by nothing else. The seeds
are fixed; `SEEDS=500` for more of them.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import msgspec
import pytest
import trio
from trio.testing import MockClock

from cpe_agent.model.observed import Link
from tests.loops.documents import branch
from tests.loops.test_failover import HOME
from tests.loops.test_steering import STANDBY
from tests.loops.world import LINKS, World

SEEDS = int(os.environ.get("SEEDS", "10"))
FAULTS = 30
# Paths that fell often are held down for up to five times `failback_s` after a minute of dialling.
HOME_S = 600.0

WHOLE = {link.name: link for link in LINKS}
UPLINKS = ("wired", "lte")


def _readdress(world: World, chance: random.Random) -> None:
    """A lease that changes, or ends."""
    whole = WHOLE[chance.choice(UPLINKS)]
    addresses = tuple(msgspec.structs.replace(a, address=f"{a.address}9") for a in whole.addresses)
    world.routes.set_link(chance.choice((msgspec.structs.replace(whole, addresses=addresses), _bare(whole))))


def _bare(link: Link) -> Link:
    return msgspec.structs.replace(link, addresses=(), gateways=())


def _cut(world: World, chance: random.Random) -> None:
    name = chance.choice(UPLINKS)
    world.routes.set_link(msgspec.structs.replace(WHOLE[name], up=False))


def _remove(world: World, chance: random.Random) -> None:
    name = chance.choice(UPLINKS)
    world.routes.set_link(WHOLE[name])
    world.routes.remove_link(name)


def _blackhole(world: World, chance: random.Random) -> None:
    world.blackhole(chance.choice(UPLINKS))


def _kill_charon(world: World, chance: random.Random) -> None:
    world.start_charon()
    world.kill_charon()


def _end_an_ike_sa(world: World, chance: random.Random) -> None:
    if sas := world.charon.ike_sas():
        world.charon.drop(chance.choice(sas).unique_id)


def _mend(world: World, chance: random.Random) -> None:
    for name in UPLINKS:
        world.routes.set_link(WHOLE[name])
        world.heal(name)
    world.start_charon()


WHAT: tuple[Callable[[World, random.Random], None], ...] = (
    _readdress, _cut, _remove, _blackhole, _kill_charon, _end_an_ike_sa, _mend, _mend, _mend,
)  # fmt: skip


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_that_the_agent_outlives_a_row_of_faults(seed: int, autojump_clock: MockClock) -> None:
    chance = random.Random(seed)
    world = World()
    world.publish(branch(uplinks=STANDBY))
    async with world.agent():
        await trio.sleep(20)
        for _ in range(FAULTS):
            chance.choice(WHAT)(world, chance)
            await trio.sleep(chance.choice((0.0, chance.uniform(0, 0.5), chance.uniform(0, 5))))
        _mend(world, chance)
        await trio.sleep(HOME_S)
        assert world.carried() == HOME


async def test_that_a_charon_that_dies_during_an_initiation_is_waited_for(autojump_clock: MockClock) -> None:
    """When to look again is the retry's word then; the initiation's, long past, would have the agent look for ever."""
    world = World()
    world.publish(branch(uplinks=STANDBY))
    async with world.agent():
        await trio.sleep(20)
        world.blackhole("wired")
        await trio.sleep(2)
        world.kill_charon()
        # The world ends an agent that never waits.
        await trio.sleep(120)
        world.heal("wired")
        world.start_charon()
        await trio.sleep(HOME_S)
        assert world.carried() == HOME
