"""Which packets does a capture want, in the kernel's own words?

Pure. In: two groups of subnets, or the far ends of tunnels. Out: a classic BPF program, as (code, jump if true, jump if
false, value), for a packet that begins with its IP header. The kernel judges each packet where it passes, so that a
capture on a busy router copies no more than it was asked for.

A program is a row of alternatives; each is a row of tests, the first that fails leads to the next alternative. The last
instruction of an alternative takes the packet, the last of all leaves it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from cpe_agent.core.addresses import network
from cpe_agent.model.document import Address, Network

Instruction = tuple[int, int, int, int]
Program = tuple[Instruction, ...]

ENCAPSULATION_PORT = 4500
# The kernel takes no longer programs, and jumps no further than 255.
INSTRUCTIONS_MAX = 4096

_LOAD_BYTE, _LOAD_HALF, _LOAD_WORD = 0x30, 0x28, 0x20
_LOAD_HALF_BEHIND_HEADER, _HEADER_LENGTH = 0x48, 0xB1
_AND, _IS, _RETURN = 0x54, 0x15, 0x06
_ALL = 0xFFFFFFFF
_UDP = 17
# Offsets from the IP header: the source, the destination, the protocol.
_SOURCE, _TO, _PROTOCOL = {4: 12, 6: 8}, {4: 16, 6: 24}, {4: 9, 6: 6}
_IPV6_HEADER_BYTES = 40

# Load, mask, value: how a test begins. A load that needs the header's length first has it in front.
_Test = tuple[Sequence[Instruction], int, int]


def between(one: Iterable[str], other: Iterable[str]) -> Program:
    """What goes from a subnet of `one` to a subnet of `other` or back."""
    alternatives = []
    others = [network(subnet) for subnet in other]
    for here in map(network, one):
        for there in others:
            if here.version == there.version:
                v = here.version
                alternatives += [
                    [_version(v), *_within(_SOURCE[v], here), *_within(_TO[v], there)],
                    [_version(v), *_within(_SOURCE[v], there), *_within(_TO[v], here)],
                ]
    return _program(alternatives)


def tunnels(ends: Iterable[str]) -> Program:
    """UDP 4500 (IKE, ESP and keepalives) from and to these addresses; without any, from and to everybody."""
    alternatives = []
    far: list[tuple[int, Address | None]] = [(4, None), (6, None)]
    if found := [ipaddress.ip_address(end) for end in ends]:
        far = [(end.version, end) for end in found]
    for v, end in far:
        for place in (_SOURCE[v], _TO[v]):
            host = [] if end is None else _within(place, network(str(end)))
            alternatives += [[_version(v), _protocol(v), *host, _port(v, offset)] for offset in (0, 2)]
    return _program(alternatives)


def _version(v: int) -> _Test:
    return ((_LOAD_BYTE, 0, 0, 0),), 0xF0, v << 4


def _protocol(v: int) -> _Test:
    return ((_LOAD_BYTE, 0, 0, _PROTOCOL[v]),), _ALL, _UDP


def _port(v: int, offset: int) -> _Test:
    if v == 4:
        return ((_HEADER_LENGTH, 0, 0, 0), (_LOAD_HALF_BEHIND_HEADER, 0, 0, offset)), _ALL, ENCAPSULATION_PORT
    return ((_LOAD_HALF, 0, 0, _IPV6_HEADER_BYTES + offset),), _ALL, ENCAPSULATION_PORT


def _within(place: int, subnet: Network) -> list[_Test]:
    address, mask = subnet.network_address.packed, subnet.netmask.packed
    words = range(0, len(address), 4)
    tests = ((place + at, int.from_bytes(mask[at : at + 4]), int.from_bytes(address[at : at + 4])) for at in words)
    return [(((_LOAD_WORD, 0, 0, at),), bits, value) for at, bits, value in tests if bits]


def _program(alternatives: Iterable[Sequence[_Test]]) -> Program:
    program: list[Instruction] = []
    for tests in alternatives:
        blocks = [[*load, *([(_AND, 0, 0, bits)] if bits != _ALL else [])] for load, bits, _ in tests]
        left = sum(len(block) + 1 for block in blocks) + 1
        for block, (_, _, value) in zip(blocks, tests, strict=True):
            left -= len(block) + 1
            program += [*block, (_IS, 0, left, value)]
        program.append((_RETURN, 0, 0, _ALL))
    program.append((_RETURN, 0, 0, 0))
    if len(program) > INSTRUCTIONS_MAX:
        raise ValueError(f"{len(program)} instructions are too many for the kernel")
    return tuple(program)
