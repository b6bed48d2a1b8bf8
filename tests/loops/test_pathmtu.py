"""Are paths measured when they come up, again now and then, and without holding each other up?"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock

from cpe_agent.core.compile import compile_dataplane
from cpe_agent.core.pathmtu import LADDER, Target
from cpe_agent.loops.cells import Cells, Plan
from cpe_agent.loops.pathmtu import (
    AGAIN_S,
    AT_ONCE,
    PATIENCE_S,
    RETRY_S,
    STANDBY_AGAIN_S,
    UNSENT_S,
    Found,
    PathMtus,
    probe_children,
)
from cpe_agent.model.dataplane import PROBE_CHILD
from cpe_agent.model.document import Document, Peer
from cpe_agent.model.observed import Charon, ChildSa, IkeSa
from tests.core.documents import BRANCH, CENTRE, HUB, HUB_LINKS, LINKS, branch, hub
from tests.fakes.prober import FakeProber

SOURCE, ADDRESS = "10.255.101.1", "10.255.1.1"
WIRED = Target("centre", SOURCE, ADDRESS)
LTE = Target("centre", "10.255.101.2", ADDRESS)
RTT_S = 0.05
# What a size that is dropped in silence costs.
LOST_S = 3 * PATIENCE_S


TRAFFIC = ChildSa("traffic-centre", 999, "INSTALLED", ("10.101.0.0/24",), ("10.10.0.0/24",))


class World:
    """Cells with a document in force, and an internet; `up` brings a path's probe child up."""

    def __init__(self, document: Document) -> None:
        self.cells = Cells()
        self.prober = FakeProber()
        self.children: dict[tuple[str, str], int] = {}
        self.connection = "cpe-x-1"
        self.carrying = True
        self.measuring = PathMtus(self.cells, self.prober)
        links, site = (HUB_LINKS, HUB) if document.role == "hub" else (LINKS, BRANCH)
        self.cells.plan.set(Plan(document, compile_dataplane(document, links, site)[0], (), {}))

    def up(self, target: Target, child: int, rtt_s: float = RTT_S, carries: int = 1500) -> None:
        path = (target.source, target.address)
        self.prober.addresses.add(target.source)
        self.prober.rtt_s[path] = rtt_s
        self.prober.carries[path] = carries
        self.children[path] = child
        self.tell()

    def down(self, target: Target) -> None:
        path = (target.source, target.address)
        del self.children[path], self.prober.rtt_s[path]
        self.tell()

    def tell(self) -> None:
        sas = tuple(
            IkeSa(
                self.connection,
                100 + child,
                "ESTABLISHED",
                True,
                children=(probe_child(child, *path), *((TRAFFIC,) if self.carrying else ())),
            )
            for path, child in self.children.items()
        )
        self.cells.charon.set(Charon({}, sas, True))

    @property
    def found(self) -> dict[Target, int]:
        return self.cells.path_mtus.value


def probe_child(unique_id: int, ours: str, theirs: str) -> ChildSa:
    return ChildSa(PROBE_CHILD, unique_id, "INSTALLED", (f"{ours}/32",), (f"{theirs}/32", "10.255.1.2/32"))


@pytest.fixture
def world(nursery: trio.Nursery) -> Iterator[World]:
    made = World(branch(peers={"centre": CENTRE}, pairs=()))
    nursery.start_soon(made.measuring.run)
    yield made


async def test_that_a_path_that_comes_up_is_measured_at_once(world: World, autojump_clock: MockClock) -> None:
    await trio.sleep(5)
    assert world.prober.sent == []
    world.up(WIRED, 1)
    await trio.sleep(1)
    assert world.found == {WIRED: LADDER[0]}
    assert len(world.prober.sent) == 1


async def test_that_a_path_that_drops_what_is_large_is_known_within_seconds(
    world: World, autojump_clock: MockClock
) -> None:
    world.up(WIRED, 1, carries=1220)
    await trio.sleep(4 * LOST_S)
    assert world.found == {WIRED: 1218}


async def test_that_what_our_own_kernel_refuses_costs_no_time(world: World, autojump_clock: MockClock) -> None:
    world.prober.mtu = 1400
    world.up(WIRED, 1)
    await trio.sleep(1)
    assert world.found == {WIRED: 1400}


@pytest.mark.parametrize("blocked_s", [0.3, 7.0])
async def test_that_a_path_that_is_up_before_it_can_be_sent_by_is_measured_when_it_can(
    world: World, autojump_clock: MockClock, blocked_s: float
) -> None:
    """Its address, its route and its rules come a moment later; on a busy router, some moments."""
    world.prober.mtu = 0
    world.up(WIRED, 1)
    await trio.sleep(blocked_s)
    assert world.found == {}
    world.prober.mtu = 1500
    await trio.sleep(UNSENT_S + 1)
    assert world.found == {WIRED: LADDER[0]}


async def test_that_an_answer_later_than_the_next_try_still_counts(world: World, autojump_clock: MockClock) -> None:
    world.up(WIRED, 1, rtt_s=2.5 * PATIENCE_S)
    await trio.sleep(LOST_S)
    assert world.found == {WIRED: LADDER[0]}


async def test_that_a_silent_path_holds_up_no_other(world: World, autojump_clock: MockClock) -> None:
    world.up(LTE, 1, carries=0)
    await trio.sleep(1)
    world.up(WIRED, 2)
    await trio.sleep(0.5)
    assert world.found == {WIRED: LADDER[0]}


async def test_that_a_path_is_measured_again_when_it_is_another_and_now_and_then(
    world: World, autojump_clock: MockClock
) -> None:
    world.up(WIRED, 1)
    await trio.sleep(1)
    # Another child on the same path: the carrier may have led it another way.
    world.up(WIRED, 2, carries=1400)
    await trio.sleep(4 * LOST_S)
    assert world.found == {WIRED: 1400}
    # Nothing rings: only time goes by.
    world.prober.carries[SOURCE, ADDRESS] = 1300
    await trio.sleep(AGAIN_S + 5 * LOST_S)
    assert world.found == {WIRED: 1296}
    # Nor is it asked all the time.
    sent = len(world.prober.sent)
    world.tell()
    await trio.sleep(AGAIN_S / 2)
    assert len(world.prober.sent) == sent


async def test_that_a_path_that_stands_by_is_measured_when_it_is_another_way_and_once_a_day(
    world: World, autojump_clock: MockClock
) -> None:
    world.carrying = False
    world.up(WIRED, 1)
    await trio.sleep(1)
    assert world.found == {WIRED: LADDER[0]} and len(world.prober.sent) == 1
    # Rekeyed, again and again: the way is the same.
    for child in range(2, 6):
        world.up(WIRED, child)
        await trio.sleep(STANDBY_AGAIN_S / 6)
    assert len(world.prober.sent) == 1
    await trio.sleep(STANDBY_AGAIN_S / 2)
    assert len(world.prober.sent) == 2
    # From another address of ours.
    world.connection = "cpe-x-2"
    world.up(WIRED, 7, carries=1400)
    await trio.sleep(4 * LOST_S)
    assert world.found == {WIRED: 1400}
    # What begins to carry traffic was last measured long ago.
    sent = len(world.prober.sent)
    await trio.sleep(AGAIN_S)
    assert len(world.prober.sent) == sent
    world.carrying = True
    world.tell()
    await trio.sleep(1)
    assert len(world.prober.sent) > sent


async def test_that_a_path_on_which_nothing_came_back_is_tried_again_soon(
    world: World, autojump_clock: MockClock
) -> None:
    world.up(WIRED, 1, carries=0)
    await trio.sleep(10 * LOST_S)
    assert world.found == {}
    world.prober.carries[SOURCE, ADDRESS] = 1500
    await trio.sleep(RETRY_S)
    assert world.found == {WIRED: LADDER[0]}


async def test_that_a_path_that_goes_down_keeps_its_size_and_is_left_alone(
    world: World, autojump_clock: MockClock
) -> None:
    world.up(WIRED, 1, carries=1300)
    await trio.sleep(5 * LOST_S)
    world.down(WIRED)
    await trio.sleep(1)
    sent = len(world.prober.sent)
    await trio.sleep(2 * AGAIN_S)
    assert world.found == {WIRED: 1296} and len(world.prober.sent) == sent


async def test_that_a_search_ends_with_its_path(world: World, autojump_clock: MockClock) -> None:
    world.up(WIRED, 1, carries=0)
    await trio.sleep(1)
    world.down(WIRED)
    await trio.sleep(LOST_S)
    sent = len(world.prober.sent)
    await trio.sleep(2 * RETRY_S)
    assert len(world.prober.sent) == sent


async def test_that_a_path_that_the_document_drops_is_forgotten(world: World, autojump_clock: MockClock) -> None:
    world.up(WIRED, 1)
    await trio.sleep(1)
    plan = world.cells.plan.value
    assert plan is not None
    world.cells.plan.set(Plan(branch(peers={}, pairs=()), plan.dataplane, (), {}))
    await trio.sleep(1)
    assert world.found == {}


async def test_that_a_hub_measures_all_who_dial_it_a_few_at_a_time(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    count = 5 * AT_ONCE
    branches = {
        f"van-{i}": Peer(f"van-{i}", False, f"10.254.0.{i}", (f"10.101.{i}.0/24",), path_addresses=(f"10.253.0.{i}",))
        for i in range(count)
    }
    world = World(hub(peers=branches, pairs=()))
    nursery.start_soon(world.measuring.run)
    targets = [Target(name, "10.255.1.1", peer.path_addresses[0]) for name, peer in branches.items()]
    for number, target in enumerate(targets):
        world.up(target, number + 1, rtt_s=0.4)
    await trio.sleep(0.3)
    assert len(world.prober.sent) == AT_ONCE
    revision = world.cells.path_mtus.revision
    await trio.sleep(5)
    assert world.found == dict.fromkeys(targets, LADDER[0])
    # A pass over the routes for each would keep a hub busy.
    assert world.cells.path_mtus.revision - revision <= 2 * count / AT_ONCE


def test_that_the_newest_probe_child_counts() -> None:
    old, new = probe_child(3, SOURCE, ADDRESS), probe_child(5, SOURCE, ADDRESS)
    other = ChildSa("traffic", 9, "INSTALLED", (f"{SOURCE}/32",), (f"{ADDRESS}/32",))
    going = ChildSa(PROBE_CHILD, 11, "DELETING", (f"{SOURCE}/32",), (f"{ADDRESS}/32",))
    charon = Charon({}, (IkeSa("cpe-x-1", 1, "ESTABLISHED", True, children=(new, other, old, going)),), True)
    found = Found(5, ("cpe-x-1", ""), carries=True)
    assert probe_children(charon) == {(SOURCE, ADDRESS): found, (SOURCE, "10.255.1.2"): found}
