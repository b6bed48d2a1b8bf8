"""When is kept what comes early, and what is it given to?"""

from __future__ import annotations

import trio
from trio.testing import MockClock

from cpe_agent.loops.early import PATIENCE_S, EarlyPackets
from cpe_agent.model.dataplane import Child, Connection, Ike, Tunnels
from cpe_agent.model.observed import Charon, CharonEvent, ChildSa, EventKind, IkeSa
from cpe_agent.model.ops import Initiate, TerminateChild
from cpe_agent.ports import EdgeError
from tests.fakes.early import FakeEarly
from tests.loops.documents import branch
from tests.loops.world import World

ADDRESS = "203.0.113.18"
IKE = Ike((ADDRESS,), ("198.51.100.10",), 4500, "a", "b", "x", "y", 20, 14400, 86400)
CONNECTION = Connection("wired.centre.wan", IKE, (Child("traffic-a", (), ()), Child("probe", (), ())))
WANTED = Tunnels((CONNECTION,))
START = Initiate(CONNECTION.name, "traffic-a")


def _charon(*children: tuple[int, int]) -> Charon:
    """(unique id, SPI) of traffic children."""
    found = tuple(ChildSa("traffic-a", i, "INSTALLED", (), (), spi_in=spi) for i, spi in children)
    return Charon({}, (IkeSa(CONNECTION.name, 1, "ESTABLISHED", True, children=found),), True)


async def test_that_an_event_hands_over_at_once() -> None:
    port = FakeEarly()
    early = EarlyPackets(port)
    early.before(START, WANTED, _charon())
    assert port.watched == [ADDRESS]
    early.heard(CharonEvent(EventKind.CHILD_UP, CONNECTION.name, 1, "probe", 7))
    early.heard(CharonEvent(EventKind.CHILD_DOWN, CONNECTION.name, 1, "traffic-a"))
    assert port.handed_over == []
    early.heard(CharonEvent(EventKind.CHILD_UP, CONNECTION.name, 1, "traffic-a", 9))
    assert port.handed_over == [(ADDRESS, 9)] and port.watched == []
    early.after(_charon((5, 9)))
    assert port.handed_over == [(ADDRESS, 9)], "once"


async def test_that_a_look_at_charon_does_what_a_lost_event_did_not() -> None:
    port = FakeEarly()
    early = EarlyPackets(port)
    early.before(START, WANTED, _charon((5, 9)))
    early.after(_charon((5, 9)))
    assert port.handed_over == [], "that one was there before"
    early.after(_charon((5, 9), (6, 10)))
    assert port.handed_over == [(ADDRESS, 10)]


async def test_that_a_set_up_that_comes_to_nothing_is_forgotten(autojump_clock: MockClock) -> None:
    port = FakeEarly()
    early = EarlyPackets(port)
    early.before(START, WANTED, _charon())
    await trio.sleep(PATIENCE_S + 0.1)
    early.after(_charon())
    assert port.handed_over == [(ADDRESS, 0)] and port.watched == []


async def test_that_a_set_up_that_is_asked_for_twice_is_watched_once() -> None:
    port = FakeEarly()
    early = EarlyPackets(port)
    early.before(START, WANTED, _charon())
    early.before(START, WANTED, _charon())
    early.after(_charon((5, 9)))
    assert port.handed_over == [(ADDRESS, 9)] and port.watched == []


async def test_that_probes_and_ends_are_not_watched() -> None:
    port = FakeEarly()
    early = EarlyPackets(port)
    early.before(Initiate(CONNECTION.name, "probe"), WANTED, _charon())
    early.before(TerminateChild(1), WANTED, _charon())
    early.before(Initiate("cpe-gone-12345678", "traffic-a"), WANTED, _charon())
    assert port.watched == []


async def test_that_a_move_takes_place_without_the_port() -> None:
    class Refusing(FakeEarly):
        def watch(self, address: str) -> None:
            raise EdgeError("early", "open", "no")

    early = EarlyPackets(Refusing())
    early.before(START, WANTED, _charon())
    early.after(_charon((5, 9)))


async def test_that_every_move_of_a_branch_is_watched(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent():
        await trio.sleep(5)
        assert world.early.watched == [], "all set-ups are over"
        assert len(world.early.handed_over) == 3, "a bundle each"
        world.blackhole("wired")
        await trio.sleep(5)
        assert {address for address, _ in world.early.handed_over} == {ADDRESS, "100.64.1.10"}
