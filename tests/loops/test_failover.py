"""Document, probe samples and faults: which operations follow on a branch?"""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
import trio
from trio.testing import MockClock

from cpe_agent.model.dataplane import MAIN, OWN, Route, Ruleset
from cpe_agent.model.document import Probing
from cpe_agent.model.observed import Link
from tests.loops.documents import FAILBACK_S, INTERVAL_MS, MISSES, branch
from tests.loops.story import Line, expect
from tests.loops.world import World

INTERVAL_S = INTERVAL_MS / 1000
# At the worst phase: the answer to the last probe is under way, then `MISSES` rounds, each given the path's patience,
# which for a steady path settles near its round trip but is 50 ms at least.
DETECTION_S = INTERVAL_S * (MISSES + 1) + 0.1

HOME = {"centre": "wired.centre.wan", "cloud": "wired.cloud.wan", "centre+cloud": "wired.centre.wan"}
ON_LTE = {"centre": "lte.centre.wan", "cloud": "lte.cloud.wan", "centre+cloud": "lte.centre.wan"}

KERNEL = ("rules", "routes", "tunnels")


async def test_start_of_a_branch(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(3)
        lines = world.story.since(0, "rules", "tunnels")
        expect(
            lines[:-3],
            [
                "rules replace table",
                "rules add protected4 *, add uplinks lte wired",
                "tunnels load credentials",
                "tunnels load lte.centre.wan",
                "tunnels load lte.cloud.wan",
                "tunnels load wired.centre.wan",
                "tunnels load wired.cloud.wan",
                "tunnels initiate lte.centre.wan probe",
                "tunnels initiate lte.cloud.wan probe",
                "tunnels initiate wired.centre.wan probe",
                "tunnels initiate wired.cloud.wan probe",
                "rules add answering4 * local_pairs4 *",
            ],
        )
        # Paths are independent: only within one is there an order.
        expect(
            _about("centre", lines[-3:]),
            [
                "tunnels initiate wired.centre.wan traffic-centre",
                "tunnels initiate wired.centre.wan traffic-centre+cloud",
            ],
        )
        expect(_about("cloud", lines[-3:]), ["tunnels initiate wired.cloud.wan traffic-cloud"])
        texts = [str(line) for line in world.story.lines]
        assert texts.index("rules replace table") < texts.index("routes forwarding 4 on")
        assert world.carried() == HOME
        assert await agent.conditions() == {}
        assert (await agent.status()).controller_last_contact is not None


async def test_that_nothing_is_done_once_all_is_well(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(6)  # and its document is confirmed, and the report has said so
        settled_at = trio.current_time()
        await trio.sleep(90)
        expect(world.story.since(settled_at), [])
        assert all(target.in_sync and target.drift_total == 0 for target in (await agent.status()).targets)


async def test_that_a_slow_kernel_does_not_change_the_order(autojump_clock: MockClock) -> None:
    """As with ten thousand pairs: whoever comes up meanwhile must not be ahead of the locks."""
    world = World()
    world.publish(branch())
    world.kernel_takes_s = 1.0
    async with world.agent():
        await trio.sleep(10)
        lines = world.story.since(0, "rules", "routes", "tunnels")
        first = {topic: min(line.at_s for line in lines if line.topic == topic) for topic in ("rules", "tunnels")}
        locked_at = max(line.at_s for line in lines if line.topic == "routes" and not _own_way(line))
        assert first["rules"] < locked_at <= first["tunnels"], "a tunnel came up before its routes were there"
        protected_at = min(line.at_s for line in lines if "add" in line.text and "protected4" in line.text)
        assert protected_at <= first["tunnels"], "what is sent into tunnels is not yet protected from leaving elsewhere"
        assert world.carried() == HOME


async def test_blackhole_of_the_active_uplink_and_its_healing(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(10.03)
        fault_at = trio.current_time()
        world.blackhole("wired")
        await trio.sleep(9)
        moved = world.story.events("bundle_moved", fault_at)
        assert len(moved) == 3 and all("reason=path_down_probes" in line.text for line in moved), moved
        assert all(line.at_s - fault_at <= DETECTION_S for line in moved), moved
        # How many children a dead IKE_SA is asked to end before it is ended by force does not matter.
        lines = [line for line in world.story.since(fault_at, *KERNEL) if not _ends_child(line) and not _own_way(line)]
        expect(
            _about("centre", lines),
            [
                "tunnels initiate lte.centre.wan traffic-centre",
                "tunnels initiate lte.centre.wan traffic-centre+cloud",
                "tunnels end wired.centre.wan whole by force",
                "tunnels initiate wired.centre.wan probe",
            ],
        )
        expect(
            _about("cloud", lines),
            [
                "tunnels initiate lte.cloud.wan traffic-cloud",
                "tunnels end wired.cloud.wan whole by force",
                "tunnels initiate wired.cloud.wan probe",
            ],
        )
        assert len(lines) == 7, lines
        assert world.carried() == ON_LTE
        assert {"PathDown wired.centre.wan", "PathDown wired.cloud.wan"} == set(await agent.conditions())
        outages = (await agent.status()).outages
        assert outages is not None and sum(outages.counts) == 3, "one of each bundle"
        assert 3 * INTERVAL_S * MISSES < outages.sum_s < 3 * (DETECTION_S + 0.2)

        healed_at = trio.current_time()
        world.heal("wired")
        await trio.sleep(60)
        back_at = max(line.at_s for line in world.story.events("path_up", healed_at))
        moved = world.story.events("bundle_moved", healed_at)
        assert len(moved) == 3 and all("reason=failback" in line.text for line in moved), moved
        assert (await agent.status()).outages == outages, "a planned move is none"
        assert all(0 <= line.at_s - back_at - FAILBACK_S <= INTERVAL_S + 0.01 for line in moved), moved
        lines = [line for line in world.story.since(back_at, *KERNEL) if not _own_way(line)]
        expect(
            _about("centre", lines),
            [
                "tunnels initiate wired.centre.wan traffic-centre",
                "tunnels initiate wired.centre.wan traffic-centre+cloud",
                "tunnels end lte.centre.wan traffic-centre",
                "tunnels end lte.centre.wan traffic-centre+cloud",
            ],
        )
        expect(
            _about("cloud", lines),
            ["tunnels initiate wired.cloud.wan traffic-cloud", "tunnels end lte.cloud.wan traffic-cloud"],
        )
        assert len(lines) == 6, lines
        assert world.carried() == HOME
        assert await agent.conditions() == {}


async def test_that_two_lost_probes_move_nothing(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent():
        await trio.sleep(10.01)
        fault_at = trio.current_time()
        world.blackhole("wired")
        await trio.sleep(INTERVAL_S * (MISSES - 1))
        world.heal("wired")
        await trio.sleep(10)
        expect(world.story.since(fault_at), [])


async def test_that_a_short_blackhole_leaves_the_ike_sas_alone(autojump_clock: MockClock) -> None:
    """Healed before anybody dialled anew: the same IKE_SAs carry on, and failback has to be earned."""
    world = World()
    world.publish(branch())
    async with world.agent():
        await trio.sleep(10)
        before = {sa.unique_id for sa in world.charon.ike_sas()}
        world.blackhole("wired")
        await trio.sleep(DETECTION_S + 0.1)
        assert world.carried() == ON_LTE
        world.heal("wired")
        await trio.sleep(FAILBACK_S - 1)
        assert world.carried() == ON_LTE
        await trio.sleep(60)
        assert world.carried() == HOME
        assert before >= {sa.unique_id for sa in world.charon.ike_sas() if sa.connection.startswith("cpe-lte")}


async def test_that_a_lost_link_counts_at_once(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(10)
        fault_at = trio.current_time()
        world.blackhole("wired")
        world.routes.set_carrier("wired", False)
        await trio.sleep(0.5)
        moved = world.story.events("bundle_moved", fault_at)
        assert {line.at_s for line in moved} == {fault_at}
        assert all("path_down_link" in line.text for line in moved)
        assert "UplinkDown wired" in await agent.conditions()
        assert world.carried() == ON_LTE


@pytest.mark.parametrize("goes", ["carrier", "device"])
async def test_that_a_lost_link_waits_for_no_reading(autojump_clock: MockClock, goes: str) -> None:
    """Rules, routes, links and IKE_SAs are listed beside it, for as long as that takes."""
    world = World()
    world.publish(branch())
    async with world.agent():
        await trio.sleep(10)
        world.kernel_takes_s = world.reading_takes_s = 2.0
        # A listing is under way already.
        world.routes.foreign_routes.add(Route(MAIN, "192.0.2.0/24", "lan0"))
        world.routes.set_carrier("lan0", False)
        await trio.sleep(0.5)
        fault_at = trio.current_time()
        world.blackhole("wired")
        if goes == "carrier":
            world.routes.set_carrier("wired", False)
        else:
            world.routes.remove_link("wired")
        await trio.sleep(0.5)
        assert {line.at_s for line in world.story.events("bundle_moved", fault_at)} == {fault_at}
        # One exchange at a time in each IKE_SA: the second bundle to the centre waits for the first, and for a look.
        started = world.story.since(fault_at, "tunnels")
        expect(
            started, ["tunnels initiate lte.centre.wan traffic-centre", "tunnels initiate lte.cloud.wan traffic-cloud"]
        )
        assert {line.at_s for line in started} == {fault_at}
        await trio.sleep(5)
        assert world.carried() == ON_LTE
        doubled = [line for line in world.story.since(fault_at, "tunnels") if "initiate lte" in line.text]
        assert len(doubled) == 3, doubled
        said = [line.text for line in world.story.events("link_changed", fault_at) if "interface=wired" in line.text]
        assert said and not any("state=up" in text for text in said), f"a reading from before was believed: {said}"


async def test_that_an_ended_ike_sa_counts_at_once(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent():
        await trio.sleep(10)
        fault_at = trio.current_time()
        active = next(sa for sa in world.charon.ike_sas() if sa.connection.startswith("cpe-wired.centre"))
        world.charon.drop(active.unique_id)
        await trio.sleep(0.1)
        moved = world.story.events("bundle_moved", fault_at)
        assert {line.at_s for line in moved} == {fault_at}
        assert world.carried()["centre"] == "lte.centre.wan"
        await trio.sleep(60)
        assert world.carried() == HOME


async def test_that_a_hub_that_is_not_willing_is_left_before_it_goes(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(10)
        drain_at = trio.current_time()
        world.unready.add("centre")
        await trio.sleep(5)
        lines = [str(line) for line in world.story.since(drain_at, "tunnels")]
        # What only the centre serves stays with it: it may still do, and nobody else can.
        assert world.carried()["centre+cloud"] == "wired.cloud.wan"
        assert world.carried()["centre"].split(".")[1] == "centre"
        assert lines.index("tunnels initiate wired.cloud.wan traffic-centre+cloud") < max(
            i for i, line in enumerate(lines) if line.startswith("tunnels end") and "traffic-centre+cloud" in line
        )
        assert not [line for line in lines if "whole" in line]
        assert {"PeerNotReady wired.centre.wan", "PeerNotReady lte.centre.wan"} == set(await agent.conditions())
        world.unready.clear()
        await trio.sleep(FAILBACK_S + 5)
        assert world.carried() == HOME


async def test_all_paths_down_and_one_back(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(10)
        for uplink in ("wired", "lte"):
            world.blackhole(uplink)
        await trio.sleep(5)
        down = await agent.conditions()
        assert {"BundleDown centre", "BundleDown cloud", "BundleDown centre+cloud"} <= set(down)
        assert "down" in (await agent.status()).severity.value
        world.heal("lte")
        await trio.sleep(40)
        assert world.carried() == ON_LTE
        assert not any(condition.startswith("BundleDown") for condition in await agent.conditions())
        # A gateway that stays away is asked again and again, but never in a hurry: that hangs charon.
        dialled = [
            line.at_s for line in world.story.since(16, "tunnels") if line.text == "initiate wired.centre.wan probe"
        ]
        assert dialled and all(later - earlier >= 5 for earlier, later in pairwise(dialled))


async def test_that_an_uplink_may_get_another_address(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(10)
        changed_at = trio.current_time()
        wired = (await world.routes.links()).by_name["wired"]
        address = msgspec.structs.replace(wired.addresses[0], address="203.0.113.19")
        world.routes.set_link(Link("wired", True, (address,), wired.gateways))
        await trio.sleep(60)
        assert world.carried() == HOME
        assert await agent.conditions() == {}
        told = [str(line) for line in world.story.since(changed_at, "routes")]
        assert "routes add rule 140 203.0.113.19 table 15511" in told
        assert "routes delete rule 140 203.0.113.18 table 15511" in told
        loaded = (await world.charon.read()).connections
        assert len(loaded) == 4, f"connections with the old address are still loaded: {sorted(loaded)}"
        assert len(world.charon.ike_sas()) == 4


async def test_that_a_failure_is_found_in_time_after_the_pace_was_changed(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent():
        await trio.sleep(30)
        slower = Probing(2 * INTERVAL_MS, 2 * INTERVAL_MS, MISSES - 1)
        uplinks = {name: msgspec.structs.replace(one, probe=slower) for name, one in branch().uplinks.items()}
        world.publish(branch(2, uplinks=uplinks))
        await trio.sleep(2)
        fault_at = trio.current_time()
        world.blackhole("wired")
        await trio.sleep(2 * INTERVAL_S * MISSES + 0.1)
        assert world.carried() == ON_LTE, "misses are not counted"
        assert len(world.story.events("bundle_moved", fault_at)) == 3


async def test_that_a_removed_pair_takes_its_rule_and_its_tunnel(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent():
        await trio.sleep(10)
        changed_at = trio.current_time()
        world.publish(branch(2, pairs=branch().pairs[:2]))
        await trio.sleep(5)
        lines = world.story.since(changed_at, "rules", "tunnels")
        assert str(lines[0]).startswith("rules delete"), "what closes comes first"
        assert "10.50.0.0/24" in lines[0].text
        assert world.carried() == {"centre": HOME["centre"], "cloud": HOME["cloud"]}
        table = world.firewall.table
        assert isinstance(table, Ruleset)
        pairs = next(nft_set for nft_set in table.sets if nft_set.name == "local_pairs4")
        assert not any("10.50.0.0" in element for element in pairs.elements)


def _ends_child(line: Line) -> bool:
    return line.text.startswith("end wired.") and "traffic-" in line.text


def _own_way(line: Line) -> bool:
    """By which uplink the router's own packets leave."""
    return line.topic == "routes" and line.text.endswith(f"table {OWN}")


def _about(hub: str, lines: list[Line]) -> list[Line]:
    """What was done on the paths to this hub: paths are independent, so only within one is there an order."""
    return [line for line in lines if f".{hub}.wan" in line.text]


async def test_that_the_routers_own_traffic_leaves_a_dead_uplink_and_comes_back(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(10)
        assert await _own_routes(world) == {("wired", "203.0.113.17")}
        world.blackhole("wired")
        await trio.sleep(2)
        assert await _own_routes(world) == {("lte", "100.64.1.1")}
        world.heal("wired")
        await trio.sleep(60)
        assert await _own_routes(world) == {("wired", "203.0.113.17")}
        # No path at all: nobody knows better than the kernel's own default routes.
        world.blackhole("wired")
        world.blackhole("lte")
        await trio.sleep(5)
        assert await _own_routes(world) == set()
        assert agent.cells.targets.value["routes"].drift_total == 0


async def test_that_a_restarted_agent_leaves_the_way_out_as_it_is(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent():
        await trio.sleep(10)
    restarted_at = trio.current_time()
    async with world.agent():
        await trio.sleep(10)
    assert world.story.since(restarted_at, "routes") == []


async def _own_routes(world: World) -> set[tuple[str, str]]:
    return {(route.device, route.gateway) for route in (await world.routes.read()).routes if route.table == OWN}
