"""Paths that are bad and not dead, links that come and go, SIM cards that are spent: what does the whole loop do?"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from cpe_agent.core import silence
from cpe_agent.core.budget import Budget
from cpe_agent.loops.metering import LOOK_S
from cpe_agent.model.dataplane import stem_of
from cpe_agent.model.document import Class, Document, Probing, Uplink
from cpe_agent.model.observed import ChildSa
from tests.loops.documents import FAILBACK_S, INTERVAL_MS, MISSES, PAIRS, branch
from tests.loops.test_failover import DETECTION_S, HOME, INTERVAL_S, ON_LTE
from tests.loops.world import LINKS, World

BROWNOUT_S = 5.0
# As the document has it by default: the wired standby each second, the metered one each minute.
STANDBY = {
    "wired": Uplink("wired", 1, "10.255.101.2", probe=Probing(INTERVAL_MS, 1000, MISSES)),
    "lte": Uplink("cellular", 2, "10.255.101.3", probe=Probing(INTERVAL_MS, 60_000, MISSES)),
}


def of_class(needs: Class, **changes: Any) -> Document:
    """All pairs are of this class."""
    pairs = tuple(msgspec.structs.replace(pair, class_="all") for pair in PAIRS)
    return branch(pairs=pairs, classes={"all": needs}, **changes)


def named(world: World) -> dict[str, str]:
    """What is carried, with bundles called as without a class."""
    return {name.removesuffix("/all"): path for name, path in world.carried().items()}


async def test_that_a_link_that_flaps_for_ten_minutes_moves_a_bundle_three_times_at_most(
    autojump_clock: MockClock,
) -> None:
    world = World()
    world.publish(branch(uplinks=STANDBY))
    async with world.agent() as agent:
        await trio.sleep(30)
        flaps_at = trio.current_time()
        for _ in range(60):
            world.blackhole("wired")
            await trio.sleep(5)
            world.heal("wired")
            await trio.sleep(5)
        assert "PathFlapping wired.centre.wan" in await agent.conditions()
        for bundle in HOME:
            moved = [m for m in world.story.events("bundle_moved", flaps_at) if f"bundle={bundle} " in m.text]
            assert 1 <= len(moved) <= 3, moved
        await trio.sleep(20 * FAILBACK_S)
        assert world.carried() == HOME, "it is forgiven in the end"
        await trio.sleep(600)
        assert not [c for c in await agent.conditions() if c.startswith("PathFlapping")]


async def test_that_a_loss_of_a_tenth_is_left_and_gone_back_to_when_it_is_over(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch(uplinks=STANDBY))
    async with world.agent() as agent:
        await trio.sleep(30)
        fault_at = trio.current_time()
        world.loss["wired"] = 0.10
        await trio.sleep(BROWNOUT_S)
        moved = world.story.events("bundle_moved", fault_at)
        assert len(moved) == 3 and all("reason=degraded" in line.text for line in moved), moved
        assert world.carried() == ON_LTE
        told = (await agent.conditions())["PathDegraded wired.centre.wan"]
        assert "loss is" in told and "5 % are allowed for centre, centre+cloud" in told
        await trio.sleep(120)
        assert world.carried() == ON_LTE, "it is as bad as it was"
        world.loss.clear()
        await trio.sleep(20 * FAILBACK_S)
        assert world.carried() == HOME
        assert await agent.conditions() == {}


@pytest.mark.parametrize(
    ("rtt_s", "word"), [(0.14, "latency is 140 ms, 80 ms are allowed"), (0.9, "latency is 900 ms, 80 ms are allowed")]
)
async def test_that_latency_over_the_limit_is_left(rtt_s: float, word: str, autojump_clock: MockClock) -> None:
    """Whether it creeps over the limit, or is so late that it looks like a failure."""
    world = World()
    world.publish(of_class(Class(latency_ms=80), uplinks=STANDBY))
    async with world.agent() as agent:
        await trio.sleep(30)
        world.rtt_s["wired"] = rtt_s
        await trio.sleep(BROWNOUT_S)
        assert named(world) == ON_LTE
        await trio.sleep(5)
        assert word in (await agent.conditions())["PathDegraded wired.cloud.wan"]


async def test_that_a_standby_of_a_minute_is_asked_at_once_when_it_is_needed(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch(uplinks=STANDBY))
    async with world.agent():
        await trio.sleep(30)
        quiet_at = trio.current_time()
        await trio.sleep(600)
        asked = [at for at, uplink in world.asked if uplink == "lte" and at >= quiet_at]
        assert len(asked) <= 2 * 11, "one echo a round, to two hubs"
        fault_at = trio.current_time()
        world.blackhole("wired")
        await trio.sleep(DETECTION_S)
        assert world.carried() == ON_LTE
        moved_at = world.story.events("bundle_moved", fault_at)[0].at_s
        assert [at for at, uplink in world.asked if uplink == "lte" and fault_at <= at < moved_at], "nobody asked it"


async def test_that_a_standby_of_a_minute_that_is_dead_is_not_taken_for_alive(autojump_clock: MockClock) -> None:
    """What both hubs serve goes to the one that has answered just now."""
    world = World()
    uplinks = {
        **STANDBY,
        "wired": msgspec.structs.replace(STANDBY["wired"], probe=Probing(INTERVAL_MS, 60_000, MISSES)),
    }
    world.publish(branch(uplinks=uplinks))
    async with world.agent():
        await trio.sleep(62)
        world.blackhole("lte")
        centre = next(sa for sa in world.charon.ike_sas() if stem_of(sa.connection) == "wired.centre.wan")
        await trio.sleep(1)
        world.charon.drop(centre.unique_id)
        await trio.sleep(10)
        assert world.carried()["centre+cloud"].startswith("wired.")


@pytest.mark.parametrize("doubtful_s", [0.22, 0.27, 0.32, 0.37])
async def test_that_a_path_in_doubt_may_lose_its_address(doubtful_s: float, autojump_clock: MockClock) -> None:
    """The plan has it no longer, and steering has not left it yet."""
    world = World()
    world.publish(branch(uplinks=STANDBY))
    async with world.agent():
        await trio.sleep(30)
        whole = LINKS[0]
        world.blackhole("wired")
        await trio.sleep(doubtful_s)
        world.routes.set_link(msgspec.structs.replace(whole, addresses=(), gateways=()))
        await trio.sleep(2)
        assert world.carried() == ON_LTE
        world.routes.set_link(whole)
        world.heal("wired")
        await trio.sleep(60)
        assert world.carried() == HOME


async def test_that_rounds_are_sent_in_step(autojump_clock: MockClock) -> None:
    """It is the waking up that costs: all that is due goes out together."""
    world = World()
    world.publish(branch())
    async with world.agent():
        await trio.sleep(10)
        since = trio.current_time()
        await trio.sleep(10)
        sent_at = [at for at, _ in world.asked if at > since]
        assert 570 <= len(sent_at) <= 630, "four paths, ten rounds a second, two echoes where traffic is"
        assert len(set(sent_at)) <= 10 / INTERVAL_S + 2


async def test_that_a_sim_card_pays_for_one_echo_a_round(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch(uplinks=STANDBY))
    async with world.agent():
        await trio.sleep(10)
        world.blackhole("wired")
        await trio.sleep(30)
        assert world.carried() == ON_LTE
        since = trio.current_time()
        await trio.sleep(10)
        asked = [at for at, uplink in world.asked if uplink == "lte" and at > since]
        assert 190 <= len(asked) <= 210, "two paths, ten rounds a second"


# --- BundleSilent ---


def traffic(world: World, bundle: str) -> ChildSa:
    children = [c for sa in world.charon.ike_sas() for c in sa.children if c.name == f"traffic-{bundle}"]
    assert len(children) == 1, children
    return children[0]


async def flow(world: World, seconds: float, answered: bool) -> None:
    """The centre's servers are asked all the time."""
    until = trio.current_time() + seconds
    while trio.current_time() < until:
        child = traffic(world, "centre")
        bytes_in = child.bytes_in + (500 if answered else 0)
        world.charon.count_bytes(child.unique_id, bytes_in, child.bytes_out + 500)
        await trio.sleep(1)


async def test_that_a_child_sa_through_which_nothing_comes_back_is_made_anew(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch(uplinks=STANDBY))
    async with world.agent() as agent:
        await trio.sleep(5)
        await flow(world, 60, answered=True)
        first, silent_at = traffic(world, "centre").unique_id, trio.current_time()
        await flow(world, 2 * silence.SILENT_S, answered=False)
        second = traffic(world, "centre").unique_id
        assert second != first and world.carried() == HOME
        assert [str(line) for line in world.story.since(silent_at, "tunnels")] == [
            "tunnels end wired.centre.wan traffic-centre",
            "tunnels initiate wired.centre.wan traffic-centre",
        ]
        assert "made anew (1 times)" in (await agent.conditions())["BundleSilent centre"]
        await flow(world, 30, answered=True)
        assert traffic(world, "centre").unique_id == second
        (told,) = (await agent.status()).conditions
        assert told.severity.value == "ok" and "all is well again" in told.reason
        await flow(world, 60, answered=True)
        assert await agent.conditions() == {}


async def test_that_one_way_traffic_has_its_child_sa_made_anew_ever_more_rarely(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch(uplinks=STANDBY))
    async with world.agent() as agent:
        await trio.sleep(5)
        await flow(world, 900, answered=False)
        ended = [line for line in world.story.since(5, "tunnels") if line.text.startswith("end ")]
        assert 4 <= len(ended) <= 6, ended
        status = await agent.status()
        assert [(c.type, c.severity.value) for c in status.conditions] == [("BundleSilent", "ok")]


async def test_that_who_sends_nothing_is_not_silent(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch(uplinks=STANDBY))
    async with world.agent() as agent:
        await trio.sleep(300)
        assert await agent.conditions() == {}
        assert not [line for line in world.story.since(5, "tunnels") if line.text.startswith("end ")]


# --- Budgets ---


async def test_that_a_spent_budget_ends_what_has_nowhere_else_to_go(autojump_clock: MockClock) -> None:
    world = World()
    document = of_class(Class(metered="budget"))
    metered = msgspec.structs.replace(document.uplinks["lte"], monthly_bytes=1_000_000)
    world.publish(msgspec.structs.replace(document, uplinks={**document.uplinks, "lte": metered}))
    async with world.agent() as agent:
        await trio.sleep(5)
        world.blackhole("wired")
        await trio.sleep(15)
        assert named(world) == ON_LTE
        world.routes.carry("lte", 950_000)
        await trio.sleep(LOOK_S + 1)
        assert agent.cells.budgets.value == {"lte": Budget.NEAR}
        assert named(world) == ON_LTE, "it is near, and nothing else is there"
        world.routes.carry("lte", 100_000)
        await trio.sleep(LOOK_S + 1)
        assert named(world) == {}
        assert "BundleBarred centre/all" in await agent.conditions()
        world.heal("wired")
        await trio.sleep(30)
        assert named(world) == HOME
