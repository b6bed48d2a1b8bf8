"""The probers: one contract for the fake and for raw sockets, then what only raw sockets can get wrong. Needs a network
namespace of its own, with `lo` up."""

from __future__ import annotations

import errno
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from cpe_agent.edge import prober as module
from cpe_agent.edge.prober import IcmpProber, Moment, round_trip_s
from cpe_agent.model.observed import Reply
from cpe_agent.ports import EdgeError, ProbePort
from tests.fakes.prober import FakeProber

HOME, ANSWERS, ABSENT = "127.0.0.1", "127.0.0.2", "192.0.2.1"
SECOND = "127.0.0.3"


class World(NamedTuple):
    prober: ProbePort
    add: Callable[[str], object]
    remove: Callable[[str], object]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def add_address(address: str) -> None:
    ip("address", "add", address, "dev", "lo", *(["nodad"] if ":" in address else []))


def remove_address(address: str) -> None:
    ip("address", "del", f"{address}/{128 if ':' in address else 32}", "dev", "lo")


@pytest.fixture(params=["fake", "real"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param == "fake":
        fake = FakeProber()
        fake.addresses |= {HOME, SECOND}
        fake.rtt_s |= {(source, ANSWERS): 0.001 for source in (HOME, SECOND, ABSENT)}
        yield World(fake, fake.addresses.add, fake.addresses.discard)
        return
    real = IcmpProber()
    yield World(real, add_address, remove_address)
    await real.aclose()


@pytest.fixture
async def icmp() -> AsyncIterator[IcmpProber]:
    prober = IcmpProber()
    yield prober
    await prober.aclose()


async def collect(prober: ProbePort, count: int) -> list[Reply]:
    replies: list[Reply] = []
    with trio.fail_after(5):
        while len(replies) < count:
            replies += await prober.replies()
    return replies


class TestContract:
    async def test_replies_say_what_was_asked(self, world: World) -> None:
        asked = {(HOME, ANSWERS, 1), (HOME, ANSWERS, 2), (SECOND, ANSWERS, 1), (HOME, ANSWERS, 70_000)}
        for source, target, sequence in asked:
            assert world.prober.send(source, target, sequence)
        replies = await collect(world.prober, len(asked))
        assert {(reply.source, reply.target, reply.sequence) for reply in replies} == asked
        assert all(0 <= reply.rtt_s < 1 for reply in replies)

    async def test_an_absent_source_cannot_send_until_it_is_there(self, world: World) -> None:
        assert not world.prober.send(ABSENT, ANSWERS, 1)
        world.add(ABSENT)
        try:
            assert world.prober.send(ABSENT, ANSWERS, 2)
            assert [reply.sequence for reply in await collect(world.prober, 1)] == [2]
        finally:
            world.remove(ABSENT)
        assert not world.prober.send(ABSENT, ANSWERS, 3)
        world.add(ABSENT)
        try:
            assert world.prober.send(ABSENT, ANSWERS, 4)
            assert [reply.sequence for reply in await collect(world.prober, 1)] == [4]
        finally:
            world.remove(ABSENT)

    async def test_a_source_first_used_while_waiting_is_heard(self, world: World) -> None:
        async with trio.open_nursery() as nursery:
            heard: list[Reply] = []

            async def listen() -> None:
                heard.extend(await collect(world.prober, 1))

            nursery.start_soon(listen)
            await trio.testing.wait_all_tasks_blocked()
            assert world.prober.send(SECOND, ANSWERS, 9)
        assert [(reply.source, reply.sequence) for reply in heard] == [(SECOND, 9)]

    async def test_cancelling_loses_nothing(self, world: World) -> None:
        assert world.prober.send(HOME, ANSWERS, 5)
        with trio.CancelScope() as scope:
            scope.cancel()
            await world.prober.replies()
        assert [reply.sequence for reply in await collect(world.prober, 1)] == [5]


async def test_ipv6(icmp: IcmpProber) -> None:
    add_address("2001:db8::1")
    add_address("2001:db8::2")
    try:
        assert icmp.send("2001:db8::1", "2001:db8::2", 3)
        # Written differently, still the same address; the reply has the words of the question.
        assert icmp.send("2001:db8::1", "2001:DB8:0::2", 4)
        replies = await collect(icmp, 2)
    finally:
        remove_address("2001:db8::1")
        remove_address("2001:db8::2")
    assert {(reply.target, reply.sequence) for reply in replies} == {("2001:db8::2", 3), ("2001:DB8:0::2", 4)}
    assert not icmp.send("2001:db8::1", "2001:db8::2", 5)


async def test_no_route_is_false_and_harmless(icmp: IcmpProber) -> None:
    assert not icmp.send(HOME, "198.51.100.1", 1)
    assert icmp.send(HOME, ANSWERS, 2)
    assert [reply.sequence for reply in await collect(icmp, 1)] == [2]


async def test_another_process_asking_the_same_is_not_heard(icmp: IcmpProber) -> None:
    async with trio.open_nursery() as nursery:
        other = IcmpProber()
        other._identifier = icmp._identifier  # as bad as chance can make it
        nursery.start_soon(collect, other, 2)
        assert icmp.send(HOME, ANSWERS, 1)
        assert other.send(HOME, ANSWERS, 1)
        assert other.send(HOME, ANSWERS, 2)
        assert icmp.send(HOME, ANSWERS, 3)
        assert [reply.sequence for reply in await collect(icmp, 2)] == [1, 3]
    await other.aclose()


def echo_reply(prober: IcmpProber, **changes: int | bytes) -> bytes:
    parts = {
        "kind": 0, "identifier": prober._identifier, "short": 7, "cookie": prober._cookie, "sequence": 7
    } | changes  # fmt: skip
    payload = module._PAYLOAD.pack(parts["cookie"], parts["sequence"])
    blank = module._HEADER.pack(parts["kind"], 0, 0, parts["identifier"], parts["short"]) + payload
    checksum = changes.get("checksum", module._checksum(blank))
    return module._HEADER.pack(parts["kind"], 0, checksum, parts["identifier"], parts["short"]) + payload


def forge(sender: str, message: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.bind((sender, 0))
        raw.sendto(message, (HOME, 0))


async def test_only_the_exact_answer_counts_and_only_once(icmp: IcmpProber) -> None:
    silent = "127.0.0.9"
    assert icmp.send(HOME, ANSWERS, 1)  # opens the socket, so that the forgeries below reach it
    await collect(icmp, 1)
    icmp._open[(HOME, socket.inet_aton(silent), 7)] = module._Sent(silent, module._now())
    for sender, message in (
        ("127.0.0.8", echo_reply(icmp)),
        (silent, echo_reply(icmp, identifier=icmp._identifier ^ 1)),
        (silent, echo_reply(icmp, cookie=b"somebody")),
        (silent, echo_reply(icmp, short=8)),
        (silent, echo_reply(icmp, sequence=8)),
        (silent, echo_reply(icmp, checksum=0x1234)),
        (silent, echo_reply(icmp, kind=8)),
        (silent, echo_reply(icmp)[:12]),
        (silent, b"\0" * 8),
    ):
        forge(sender, message)
    assert icmp.send(HOME, ANSWERS, 2)
    assert [reply.sequence for reply in await collect(icmp, 1)] == [2]
    forge(silent, echo_reply(icmp))
    forge(silent, echo_reply(icmp))
    assert icmp.send(HOME, ANSWERS, 3)
    assert [(reply.target, reply.sequence) for reply in await collect(icmp, 2)] == [(silent, 7), (ANSWERS, 3)]
    assert icmp._open == {}


async def test_what_is_never_answered_is_forgotten(icmp: IcmpProber) -> None:
    sent = module._now()
    old = Moment(sent.wall_ns, sent.monotonic_ns - int(2e9 * module.MAX_RTT_S))
    icmp._open[(HOME, socket.inet_aton(ANSWERS), 1)] = module._Sent(ANSWERS, old)
    assert icmp.send(HOME, ANSWERS, 2)
    assert [key[2] for key in icmp._open] == [2]


async def test_sockets_of_bygone_addresses_are_closed(icmp: IcmpProber) -> None:
    assert icmp.send(HOME, ANSWERS, 1)
    icmp._sockets[HOME].used_ns -= int(2e9 * module.IDLE_S)
    assert icmp.send(SECOND, ANSWERS, 1)
    assert set(icmp._sockets) == {SECOND}


async def test_without_the_capability_it_says_so(icmp: IcmpProber, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> socket.socket:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(module, "_icmp_socket", refuse)
    with pytest.raises(EdgeError, match="CAP_NET_RAW"):
        icmp.send(HOME, ANSWERS, 1)


async def test_mixed_versions_are_a_mistake(icmp: IcmpProber) -> None:
    with pytest.raises(ValueError, match="same IP version"):
        icmp.send(HOME, "::1", 1)


async def test_closing_ends_the_wait() -> None:
    prober = IcmpProber()
    async with trio.open_nursery() as nursery:

        async def listen() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await prober.replies()

        nursery.start_soon(listen)
        await trio.testing.wait_all_tasks_blocked()
        await prober.aclose()
    await prober.aclose()


MS = 1_000_000


@pytest.mark.parametrize(
    ("what", "stamp_ms", "read_wall_ms", "read_monotonic_ms", "rtt_ms"),
    [
        ("the stamp, not the reading, counts", 20, 90, 90, 20),
        ("no stamp", None, 90, 90, 90),
        ("stepped forward", 3_600_020, 3_600_090, 90, 90),
        ("stepped back", -3_599_980, -3_599_910, 90, 90),
        ("stepped after the stamp", 20, 3_600_090, 90, 90),
        ("a stamp from the future", 100, 90, 90, 90),
        ("a stamp before sending", -1, 90, 90, 90),
        ("slewed", 20, 89.9, 90, 20),
    ],
)
def test_round_trip(
    what: str, stamp_ms: float | None, read_wall_ms: float, read_monotonic_ms: float, rtt_ms: float
) -> None:
    wall, monotonic = 1_800_000_000_000 * MS, 5_000 * MS
    stamp_ns = None if stamp_ms is None else wall + int(stamp_ms * MS)
    read = Moment(wall + int(read_wall_ms * MS), monotonic + int(read_monotonic_ms * MS))
    assert round_trip_s(Moment(wall, monotonic), stamp_ns, read) == pytest.approx(rtt_ms / 1e3), what


@given(stamp=st.none() | st.integers(), wall=st.integers(), took=st.integers(0, 10**11))
def test_round_trip_is_never_negative_nor_longer_than_it_took(stamp: int | None, wall: int, took: int) -> None:
    rtt_s = round_trip_s(Moment(0, 0), stamp, Moment(wall, took))
    assert 0 <= rtt_s <= took / 1e9 + module.CLOCK_STEP_S
