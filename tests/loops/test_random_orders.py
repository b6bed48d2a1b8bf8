"""Does an agent outlive whatever its controller and its operator ask of it in a row, while links and servers fail?

As test_random_faults, which does this to the links: here documents come that take away or bring back what another loop
still counts with (a bundle that is being drilled, an uplink that is measured, a service on trial), drills and rollbacks
are asked for in the middle of it, the disk is full for a while, and the agent is restarted. The seeds are fixed;
`SEEDS=500` for more of them.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from cpe_agent.model.document import Class, Document, Policy, ServiceProbe
from cpe_agent.ports import EdgeError
from tests.loops.documents import CENTRE, CLOUD, PAIRS, branch
from tests.loops.test_random_faults import WHAT, _mend
from tests.loops.test_steering import STANDBY
from tests.loops.world import Agent, World

SEEDS = int(os.environ.get("SEEDS", "6"))
ORDERS = 30
# What was given up is tried again, and paths that fell often are held down.
HOME_S = 600.0

PROBED = tuple(
    msgspec.structs.replace(pair, probe=ServiceProbe("icmp", address=f"{pair.remote.removesuffix('0/24')}10"))
    for pair in PAIRS
)
POLICY = Policy(failback_s=10, confirm_s=10)


def _peers(pairs: Any, names: tuple[str, ...]) -> Any:
    kept = ((pair, tuple(peer for peer in pair.peers if peer in names)) for pair in pairs)
    return tuple(msgspec.structs.replace(pair, peers=peers) for pair, peers in kept if peers)


def _document(chance: random.Random, version: int) -> Document:
    pairs = tuple(pair for pair in PROBED if chance.random() < 0.7)
    if chance.random() < 0.3:
        pairs = tuple(msgspec.structs.replace(pair, class_="voice") for pair in pairs)
    if chance.random() < 0.3:
        pairs = tuple(msgspec.structs.replace(pair, probe=None) for pair in pairs)
    names = chance.choice((("centre",), ("cloud",), ("centre", "cloud"), ("centre", "cloud")))
    uplinks = {name: uplink for name, uplink in STANDBY.items() if chance.random() < 0.8}
    if chance.random() < 0.3:
        uplinks = {f"{name}-new": msgspec.structs.replace(up, interface=name) for name, up in uplinks.items()}
    if chance.random() < 0.3:
        uplinks = {n: msgspec.structs.replace(up, monthly_bytes=chance.choice((1, 10**9))) for n, up in uplinks.items()}
    return branch(
        version,
        pairs=_peers(pairs, names),
        peers={hub.name: hub.peer for hub in (CENTRE, CLOUD) if hub.name in names},
        uplinks=uplinks,
        classes={"voice": Class(30, 10, 1, metered=chance.choice(("always", "budget", "never")))},
        policy=POLICY,
        allow_mass_removal=True,
    )


class Orders:
    def __init__(self, world: World, agent: Agent, chance: random.Random, version: int) -> None:
        self.world = world
        self.agent = agent
        self.chance = chance
        self.version = version

    def apply(self) -> None:
        self.version += 1
        self.world.publish(_document(self.chance, self.version))

    def drill(self) -> None:
        with suppress(EdgeError):
            if self.chance.random() < 0.5:
                self.agent.drills.start("uplink", self.chance.choice(("wired", "lte")))
            else:
                self.agent.drills.start("hub", self.chance.choice(("centre", "cloud")))

    def roll_back(self) -> None:
        with suppress(EdgeError):
            self.agent.in_force.roll_back()

    def servers(self) -> None:
        servers = ("10.10.0.10", "10.20.0.10", "10.50.0.10")
        dead = {(server, hub) for server in servers for hub in ("centre", "cloud") if self.chance.random() < 0.4}
        self.world.dead_servers = dead

    def hubs(self) -> None:
        self.world.unready = {hub for hub in ("centre", "cloud") if self.chance.random() < 0.4}

    def losses(self) -> None:
        self.world.loss = {name: self.chance.choice((0.0, 0.1, 0.5)) for name in ("wired", "lte")}

    def disk(self) -> None:
        full = self.chance.random() < 0.5
        self.world.store.refusal = "No space left on device" if full else None
        self.world.records.full = full

    def controller(self) -> None:
        self.world.controller.fault = self.chance.choice((None, None, "timed out"))

    def fault(self) -> None:
        self.chance.choice(WHAT)(self.world, self.chance)

    def traffic(self) -> None:
        with suppress(KeyError):  # there is no such link now
            self.world.routes.carry(self.chance.choice(("wired", "lte")), self.chance.randrange(10**9))


WHAT_ELSE: tuple[Callable[[Orders], None], ...] = (
    Orders.apply, Orders.apply, Orders.apply, Orders.drill, Orders.drill, Orders.roll_back, Orders.servers, Orders.hubs,
    Orders.losses, Orders.disk, Orders.controller, Orders.fault, Orders.traffic,
)  # fmt: skip


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_that_the_agent_outlives_a_row_of_orders(seed: int, autojump_clock: MockClock) -> None:
    chance = random.Random(seed)
    world = World()
    version = 1
    world.publish(branch(uplinks=STANDBY, pairs=PROBED, policy=POLICY))
    for _ in range(3):
        async with world.agent() as agent:
            await trio.sleep(chance.uniform(0, 20))
            orders = Orders(world, agent, chance, version)
            for _ in range(ORDERS // 3):
                chance.choice(WHAT_ELSE)(orders)
                await trio.sleep(chance.choice((0.0, chance.uniform(0, 0.5), chance.uniform(0, 5))))
                await agent.status()
            version = orders.version
    _mend(world, chance)
    world.dead_servers, world.unready, world.loss = set(), set(), {}
    world.store.refusal, world.records.full, world.controller.fault = None, False, None
    async with world.agent() as agent:
        await trio.sleep(HOME_S)
        world.publish(branch(version + 1, uplinks=STANDBY, pairs=PROBED, policy=POLICY))
        await trio.sleep(HOME_S)
        status = await agent.status()
        assert status.document_version == version + 1 and status.document_confirmed
        assert {name: path.partition(".")[2] for name, path in world.carried().items()} == {
            "centre": "centre.wan",
            "cloud": "cloud.wan",
            "centre+cloud": "centre.wan",
        }
        assert await agent.conditions() == {}
