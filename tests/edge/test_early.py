"""Is what came early given again, whole, once, and nothing else? Needs CAP_NET_RAW."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from cpe_agent.edge.early import ENCAPSULATION_PORT, EarlyEsp
from cpe_agent.ports import EarlyPort
from tests.fakes.early import FakeEarly

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="packet sockets need root")

HUB = {4: "127.0.0.9", 6: "::1"}
OURS = {4: "127.0.0.1", 6: "::1"}
SPI, OTHER = 0xC0FFEE01, 0xC0FFEE02


class Charon:
    """Who is at port 4500, and a hub that sends to it."""

    def __init__(self, version: int) -> None:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        self.receiver = socket.socket(family, socket.SOCK_DGRAM)
        self.receiver.bind((OURS[version], ENCAPSULATION_PORT))
        self.receiver.settimeout(0.3)
        self.sender = socket.socket(family, socket.SOCK_DGRAM)
        self.sender.bind((HUB[version], 0))
        self._to = (OURS[version], ENCAPSULATION_PORT)

    def send(self, spi: int, sequence: int, size: int = 60) -> None:
        self.sender.sendto(struct.pack("!II", spi, sequence) + bytes(size), self._to)

    def received(self) -> list[tuple[int, int]]:
        """(SPI, sequence), and every datagram came from the hub."""
        found: list[tuple[int, int]] = []
        while True:
            try:
                data, source = self.receiver.recvfrom(65535)
            except TimeoutError:
                return found
            assert source[:2] == self.sender.getsockname()[:2]
            spi, sequence = struct.unpack_from("!II", data)
            found.append((spi, sequence))

    def close(self) -> None:
        self.receiver.close()
        self.sender.close()


@pytest.fixture(params=[4, 6])
def charon(request: pytest.FixtureRequest) -> Iterator[tuple[Charon, int]]:
    there = Charon(request.param)
    yield there, request.param
    there.close()


@pytest.fixture
def early() -> Iterator[EarlyEsp]:
    real = EarlyEsp()
    yield real
    real.close()


def test_that_what_came_for_the_spi_comes_again(charon: tuple[Charon, int], early: EarlyEsp) -> None:
    there, version = charon
    there.send(SPI, 1)
    assert there.received() == [(SPI, 1)]
    early.watch(OURS[version])
    for sequence, spi in ((2, SPI), (3, OTHER), (4, SPI)):
        there.send(spi, sequence)
    there.send(0, 5)
    assert [sequence for _, sequence in there.received()] == [2, 3, 4, 5]
    assert early.hand_over(OURS[version], SPI) == 2
    assert there.received() == [(SPI, 2), (SPI, 4)]


def test_that_nothing_is_kept_before_and_after(charon: tuple[Charon, int], early: EarlyEsp) -> None:
    there, version = charon
    early.watch(OURS[version])
    assert early.hand_over(OURS[version], 0) == 0
    there.send(SPI, 1)
    there.received()
    early.watch(OURS[version])
    assert early.hand_over(OURS[version], SPI) == 0


def test_that_two_set_ups_on_one_address_both_get_theirs(charon: tuple[Charon, int], early: EarlyEsp) -> None:
    there, version = charon
    early.watch(OURS[version])
    early.watch(OURS[version])
    there.send(SPI, 1)
    there.send(OTHER, 2)
    there.received()
    assert early.hand_over(OURS[version], SPI) == 1
    assert early.hand_over(OURS[version], OTHER) == 1
    assert there.received() == [(SPI, 1), (OTHER, 2)]


def test_that_a_large_packet_comes_again_whole(charon: tuple[Charon, int], early: EarlyEsp) -> None:
    there, version = charon
    early.watch(OURS[version])
    there.send(SPI, 1, size=1401)
    there.received()
    assert early.hand_over(OURS[version], SPI) == 1
    assert there.received() == [(SPI, 1)]


@pytest.mark.parametrize("make", [FakeEarly, EarlyEsp])
def test_that_an_address_that_is_not_watched_has_nothing(make: type[FakeEarly] | type[EarlyEsp]) -> None:
    port: EarlyPort = make()
    assert port.hand_over("192.0.2.1", SPI) == 0
    port.watch("192.0.2.1")
    assert port.hand_over("192.0.2.1", 0) == 0
    assert port.hand_over("192.0.2.1", SPI) == 0, "one watch, one handing over"
    if isinstance(port, EarlyEsp):
        port.close()
