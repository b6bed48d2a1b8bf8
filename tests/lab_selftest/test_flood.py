"""Is the flood bounded in itself, and is each of its packets a whole IKE_SA_INIT request?"""

from __future__ import annotations

import argparse
import struct
import subprocess
import sys
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from tests.lab import flood

GOOD = {"to": "198.51.100.10", "rate": 100, "seconds": 1.0}


def _refusal(**changes: object) -> str:
    asked = {**GOOD, **changes}
    return flood._refusal(argparse.Namespace(**{**asked, "to": IPv4Address(asked["to"])}))


def test_that_it_does_nothing_outside_a_lab() -> None:
    argv = [sys.executable, flood.__file__, "--to", "198.51.100.10", "--source", "203.0.113.202/32"]
    ended = subprocess.run([*argv, "--rate", "1", "--seconds", "1"], capture_output=True, text=True, timeout=10)
    assert ended.returncode == 2 and "not inside a lab" in ended.stderr


def test_that_it_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(flood, "LAB", tmp_path)
    assert _refusal() == ""
    for change in ({"rate": flood.MAX_RATE + 1}, {"seconds": flood.MAX_SECONDS + 1}, {"rate": 0}, {"seconds": 0.0}):
        assert "at most" in _refusal(**change)
    for elsewhere in ("10.10.0.10", "127.0.0.1", "8.8.8.8"):
        assert "documentation" in _refusal(to=elsewhere)


def test_that_a_packet_is_whole() -> None:
    sources = IPv4Network("198.18.0.0/15")
    packet = flood._packet(sources[7], 4711, IPv4Address("198.51.100.10"), flood._message())
    assert packet[12:16] == sources[7].packed and packet[9] == 17
    assert struct.unpack_from("!HHH", packet, 20) == (4711, 4500, len(packet) - 20)
    message = packet[28:]
    # The marker, then: initiator's SPI, none of the responder, SA first, IKEv2, IKE_SA_INIT, from the initiator.
    assert message[:4] == bytes(4) and message[4:12] != bytes(8) and message[12:20] == bytes(8)
    assert struct.unpack_from("!BBBBII", message, 20) == (33, 0x20, 34, 0x08, 0, len(message) - 4)
    found, following, at = [], message[20], 32
    while following:
        found.append(following)
        following, length = message[at], struct.unpack_from("!H", message, at + 2)[0]
        at += length
    assert found == [33, 34, 40, 41, 41, 41] and at == len(message)
