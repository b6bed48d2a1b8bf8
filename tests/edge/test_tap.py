"""Copying packets off a real interface: what was asked for, as it passed, within its bounds."""

from __future__ import annotations

import socket
import stat
import struct
from pathlib import Path

import pytest
import trio
import trio.testing

from cpe_agent.core.packet_filter import between
from cpe_agent.edge.tap import HEADERS_BYTES, WHOLE_BYTES, Tap, Tapped
from cpe_agent.ports import EdgeError

HERE, THERE, OTHER = "127.0.1.1", "127.0.2.1", "127.0.3.1"
PROGRAM = between(("127.0.1.0/24",), ("127.0.2.0/24",))


def records(path: Path) -> list[tuple[float, int, bytes]]:
    """(time, length on the wire, what was kept) of each packet."""
    content = path.read_bytes()
    magic, major, minor, _, _, _, link = struct.unpack_from("=IHHiIII", content)
    assert (magic, major, minor, link) == (0xA1B23C4D, 2, 4, 101)
    found, at = [], 24
    while at < len(content):
        seconds, nanoseconds, kept, length = struct.unpack_from("=IIII", content, at)
        found.append((seconds + nanoseconds / 1e9, length, content[at + 16 : at + 16 + kept]))
        at += 16 + kept
    return found


def send(source: str, to: str, payload: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind((source, 0))
        sender.sendto(payload, (to, 9))


async def tapped(path: Path, packets_max: int, snap: int, *sent: tuple[str, str, bytes]) -> Tapped:
    """For tests whose clock jumps: it is over when nothing is left to be read."""
    tap = Tap(["lo"], PROGRAM, path, packets_max, snap)
    for one in sent:
        send(*one)
    with trio.move_on_after(0.5):
        await tap.run()
    return tap.close()


async def test_what_was_asked_for_both_ways(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    path = tmp_path / "x.pcap"
    sent = ((HERE, THERE, b"one"), (OTHER, THERE, b"other"), (THERE, HERE, b"two" * 100), (HERE, OTHER, b"other"))
    found = await tapped(path, 100, WHOLE_BYTES, *sent)
    # Over lo each passes twice: out and in again. (The kernel answers the closed port; that passes as well.)
    udp = [data for _, _, data in records(path) if data[9] == socket.IPPROTO_UDP]
    assert sorted(data[28:] for data in udp) == sorted([b"one", b"two" * 100] * 2)
    assert found.packets_out == found.packets_in and not found.full and not found.missed
    times = [at for at, _, _ in records(path)]
    assert times == sorted(times) and times[0] > 1.7e9
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_by_default_only_headers_are_kept(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    path = tmp_path / "x.pcap"
    await tapped(path, 100, HEADERS_BYTES, (HERE, THERE, b"patient" * 100))
    longest = max(records(path), key=lambda record: record[1])
    assert (longest[1], len(longest[2])) == (28 + 700, HEADERS_BYTES)


async def test_a_full_file_ends_it(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    path = tmp_path / "x.pcap"
    with trio.fail_after(5):
        found = await tapped(path, 3, WHOLE_BYTES, *[(HERE, THERE, b"x")] * 10)
    assert found.full and found.packets == 3 and len(records(path)) == 3


async def test_a_file_of_several_interfaces_is_full_at_the_same_number(tmp_path: Path) -> None:
    """Their packets are there in the same moment."""
    path = tmp_path / "x.pcap"
    tap = Tap(["lo", "lo", "lo"], PROGRAM, path, 4, WHOLE_BYTES)
    for _ in range(10):
        send(HERE, THERE, b"x")
    with trio.fail_after(5):
        await tap.run()
    assert tap.close().packets == len(records(path)) == 4


async def test_an_interface_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="nosuch0: nothing can be captured there"):
        Tap(["lo", "nosuch0"], PROGRAM, tmp_path / "x.pcap", 1, 1)
    assert not (tmp_path / "x.pcap").exists()


async def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(b"mine")
    with pytest.raises(EdgeError, match="cannot be made: File exists"):
        Tap(["lo"], PROGRAM, path, 1, 1)
    assert path.read_bytes() == b"mine"
