"""Is a lost link understood from any message, and no other taken for one? With real ones: test_routes_contract.py."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from cpe_agent.edge.linkwatch import lost_links

_NEW, _DEL, _ADDRESS = 16, 17, 20
_UP = 0x1 | 0x40 | 0x10000


def message(name: str, flags: int, kind: int = _NEW, family: int = 0) -> bytes:
    text = name.encode() + b"\0"
    padding = b"\0" * (-len(text) % 4)
    body = struct.pack("=BxHiII", family, 1, 7, flags, 0) + b"\x08\0\x0d\0\x01\0\0\0"
    body += struct.pack("=HH", 4 + len(text), 3) + text + padding
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def test_what_is_lost() -> None:
    assert lost_links(message("wan", _UP)) == {"wan": False}
    assert lost_links(message("wan", _UP & ~0x10000)) == {"wan": True}
    assert lost_links(message("wan", _UP & ~0x40)) == {"wan": True}
    assert lost_links(message("wan", _UP, _DEL)) == {"wan": True}
    assert lost_links(message("wan", 0, _ADDRESS)) == {}


def test_that_a_port_that_leaves_its_bridge_is_not_gone() -> None:
    assert lost_links(message("wan", _UP, _DEL, family=7)) == {}


def test_that_the_last_word_counts() -> None:
    told = message("wan", 0) + message("lan-of-the-ward", _UP) + message("wan", _UP)
    assert lost_links(told) == {"wan": False, "lan-of-the-ward": False}


@given(st.binary(max_size=200), st.integers(0, 60))
def test_that_nonsense_is_left_out(nonsense: bytes, cut: int) -> None:
    lost_links(nonsense)
    lost_links(message("wan", 0)[:cut] + nonsense)
