"""Does the kernel's program take exactly the packets that were asked for? Run here by an interpreter of our own; that
the kernel takes it too, tests/edge/test_tap.py shows."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpe_agent.core.packet_filter import Program, between, tunnels

UDP, TCP = 17, 6
WARD, SERVERS, WARD6, SERVERS6 = "10.101.0.0/24", "10.10.0.0/20", "fd00:101::/64", "fd00:10::/56"


def taken(program: Program, packet: bytes) -> bool:
    """What the kernel does: accumulator, index, program counter; a load beyond the packet leaves it."""
    a = x = at = 0
    while True:
        code, jt, jf, k = program[at]
        at += 1
        size = {0x30: 1, 0x28: 2, 0x20: 4, 0x48: 2}.get(code)
        if size:
            start = k + (x if code == 0x48 else 0)
            if start + size > len(packet):
                return False
            a = int.from_bytes(packet[start : start + size])
        elif code == 0xB1:
            x = 4 * (packet[k] & 0xF)
        elif code == 0x54:
            a &= k
        elif code == 0x15:
            at += jt if a == k else jf
        elif code == 0x06:
            return k != 0
        else:
            raise AssertionError(f"no such instruction: {code:#x}")


def packet(source: str, to: str, protocol: int = TCP, ports: tuple[int, int] = (40000, 443), options: int = 0) -> bytes:
    one, other = ipaddress.ip_address(source), ipaddress.ip_address(to)
    rest = struct.pack("!HH", *ports) + bytes(16)
    if one.version == 4:
        head = struct.pack("!BBHHHBBH", 0x45 + options, 0, 0, 0, 0, 64, protocol, 0)
        return head + one.packed + other.packed + bytes(4 * options) + rest
    return struct.pack("!IHBB", 6 << 28, len(rest), protocol, 64) + one.packed + other.packed + rest


@pytest.mark.parametrize(
    ("source", "to", "wanted"),
    [
        ("10.101.0.7", "10.10.15.255", True),
        ("10.10.0.1", "10.101.0.255", True),
        ("10.101.0.7", "10.10.16.0", False),
        ("10.101.1.0", "10.10.0.1", False),
        ("10.101.0.7", "10.101.0.8", False),
        ("10.10.0.1", "10.10.0.2", False),
        ("fd00:101::7", "fd00:10::1", True),
        ("fd00:10:0:ff::1", "fd00:101::1", True),
        ("fd00:10:0:100::1", "fd00:101::1", False),
        ("fd00:101:0:1::7", "fd00:10::1", False),
    ],
)
def test_between_two_subnets_and_nothing_else(source: str, to: str, wanted: bool) -> None:
    program = between((WARD, WARD6), (SERVERS, SERVERS6))
    assert taken(program, packet(source, to)) is wanted


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 32), st.integers(0, 32))
def test_every_prefix(source: int, to: int, one_bits: int, other_bits: int) -> None:
    one = ipaddress.ip_network((source & (2**32 - 2), one_bits), strict=False)
    other = ipaddress.ip_network((to ^ 0x01010101, other_bits), strict=False)
    here, there = ipaddress.ip_address(source), ipaddress.ip_address(to)
    wanted = (here in one and there in other) or (here in other and there in one)
    assert taken(between((str(one),), (str(other),)), packet(str(here), str(there))) is wanted


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (packet("192.0.2.10", "198.51.100.10", UDP, (4500, 4500)), True),
        (packet("198.51.100.10", "192.0.2.10", UDP, (4500, 31000)), True),
        (packet("198.51.100.10", "192.0.2.10", UDP, (4500, 31000), options=3), True),
        (packet("192.0.2.10", "198.51.100.11", UDP, (4500, 4500)), False),
        (packet("192.0.2.10", "198.51.100.10", TCP, (4500, 4500)), False),
        (packet("192.0.2.10", "198.51.100.10", UDP, (53, 53)), False),
        (packet("2001:db8::1", "2001:db8::10", UDP, (4500, 4500)), True),
        (packet("2001:db8::1", "2001:db8::11", UDP, (4500, 4500)), False),
        (b"\x45", False),
    ],
)
def test_tunnels_to_named_ends(made: bytes, wanted: bool) -> None:
    assert taken(tunnels(("198.51.100.10", "2001:db8::10")), made) is wanted


def test_without_ends_every_tunnel_is_taken() -> None:
    program = tunnels(())
    assert taken(program, packet("192.0.2.10", "203.0.113.9", UDP, (4500, 4500)))
    assert taken(program, packet("2001:db8::1", "2001:db8::2", UDP, (1, 4500)))
    assert not taken(program, packet("192.0.2.10", "203.0.113.9", UDP, (4501, 4501)))


def test_more_than_the_kernel_takes_is_an_error() -> None:
    with pytest.raises(ValueError, match="too many for the kernel"):
        between([f"10.{n}.0.0/16" for n in range(100)], [f"10.{n}.0.0/16" for n in range(100, 200)])
