"""Is a carrier that goes noticed at once, also when the kernel has just told of another one?"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import aclosing

import pytest
import trio

from cpe_agent.edge.carrier import LINKS_MAX, Carriers
from cpe_agent.edge.linkwatch import LOOK_S, changes

_TUNSETIFF, _TUNSETCARRIER = 0x400454CA, 0x400454E2
_TUN_WITHOUT_HEADER = 0x1001
ONE, OTHER = "carrier0", "carrier1"
# Within so many looks' time, by the event loop's own count: a machine that stands still does not look either. The
# kernel's word takes 20.
LOOKS = 8


class Device:
    """A TUN device, for which the kernel takes its time as for any cable: its other end is no interface."""

    def __init__(self, name: str) -> None:
        self._fd = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(self._fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TUN_WITHOUT_HEADER))
        subprocess.run(["ip", "link", "set", name, "up"], check=True)

    def carrier(self, there: bool) -> None:
        fcntl.ioctl(self._fd, _TUNSETCARRIER, struct.pack("i", there))

    def close(self) -> None:
        """May be called again."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


@pytest.fixture
def devices() -> Iterator[tuple[Device, Device]]:
    pair = Device(ONE), Device(OTHER)
    yield pair
    for device in pair:
        device.close()


def test_what_is_lost_is_said_once(devices: tuple[Device, Device]) -> None:
    one, other = devices
    carriers = Carriers()
    carriers.note()
    assert carriers.lost() == frozenset()
    one.carrier(False)
    assert carriers.lost() == {ONE}
    assert carriers.lost() == frozenset()
    one.carrier(True)
    other.close()
    assert carriers.lost() == {OTHER}, "one that has gone is lost; one that came back is not noted yet"
    carriers.note()
    one.carrier(False)
    assert carriers.lost() == {ONE}
    carriers.close()


def test_that_a_machine_with_many_links_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    carriers = Carriers()
    monkeypatch.setattr("socket.if_nameindex", lambda: [(n, "lo") for n in range(LINKS_MAX + 1)])
    carriers.note()
    assert carriers.lost() == frozenset()
    carriers.close()


async def test_that_the_second_of_two_cables_is_noticed_as_soon_as_the_first(devices: tuple[Device, Device]) -> None:
    """By the kernel's word alone, the second comes up to a second later."""
    one, other = devices
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await trio.sleep(LOOK_S)
            ticks += 1

    with trio.fail_after(10):
        async with aclosing(changes()) as told, trio.open_nursery() as nursery:
            nursery.start_soon(tick)
            await anext(told)
            one.carrier(False)
            while ONE not in await anext(told):
                pass
            await trio.sleep(0.1)
            other.carrier(False)
            began = ticks
            while OTHER not in await anext(told):
                pass
            assert ticks - began <= LOOKS
            nursery.cancel_scope.cancel()
