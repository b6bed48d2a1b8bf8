"""Sends packets that may be forbidden, as an attacker or a misconfigured machine would, without asking for an answer.

Stand-alone, standard library only: runs in a sender's namespace. Packets are made by hand on a raw socket, so that no
local rule or missing listener changes what is offered, and carry `--dscp`, by which the lab counts them where they
enter a site and where they arrive. Packet n leaves n intervals after the first, however late the one before was. Says
"ready" on standard error when it begins, and prints how many it handed to the kernel, as JSON. `--many` makes many
offers, one after the other: standard input is then a JSON list of objects with the other options by name.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator

_IHL_VERSION = 0x45
_TTL = 64
_MORE_FRAGMENTS = 0x2000
_FIRST_FRAGMENT_BYTES = 24  # a multiple of 8


def main() -> None:
    if sys.argv[1:] == ["--many"]:
        offers = [argparse.Namespace(**options) for options in json.load(sys.stdin)]
    else:
        offers = [_options()]
    sent = refused = 0
    print("ready", file=sys.stderr, flush=True)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for offer in offers:
            began_s = time.monotonic()
            for index in range(offer.count):
                for packet in packets(offer, index):
                    try:
                        raw.sendto(packet, (offer.to, 0))
                        sent += 1
                    except OSError:
                        refused += 1  # the sender's own kernel would not
                due_s = began_s + (index + 1) * offer.interval_ms / 1000
                time.sleep(max(0.0, due_s - time.monotonic()))
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps({"sent": sent, "refused": refused}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", required=True)
    parser.add_argument("--to", required=True)
    parser.add_argument("--protocol", choices=["tcp", "udp", "icmp", "fragments"], required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--interval-ms", type=float, required=True)
    parser.add_argument("--dscp", type=int, required=True)
    return parser.parse_args()


def packets(arguments: argparse.Namespace, index: int) -> Iterator[bytes]:
    """The packets of one offer: one, or the two fragments of a datagram."""
    source, destination = socket.inet_aton(arguments.source), socket.inet_aton(arguments.to)
    identification = (os.getpid() + index) & 0xFFFF
    source_port = 20000 + index % 10000

    def packet(protocol: int, payload: bytes, fragment: int = 0) -> bytes:
        # The kernel fills in the total length and the checksum.
        tos = arguments.dscp << 2
        header = struct.pack("!BBHHHBBH", _IHL_VERSION, tos, 0, identification, fragment, _TTL, protocol, 0)
        return header + source + destination + payload

    def checked(protocol: int, segment: bytes, at: int) -> bytes:
        pseudo = source + destination + struct.pack("!BBH", 0, protocol, len(segment)) if protocol != 1 else b""
        return segment[:at] + struct.pack("!H", checksum(pseudo + segment)) + segment[at + 2 :]

    if arguments.protocol == "tcp":
        syn = struct.pack("!HHIIBBHHH", source_port, arguments.port, 1000 + index, 0, 5 << 4, 0x02, 64240, 0, 0)
        yield packet(6, checked(6, syn, 16))
    elif arguments.protocol == "icmp":
        yield packet(1, checked(1, struct.pack("!BBHHH", 8, 0, 0, identification, index & 0xFFFF) + bytes(24), 2))
    else:
        data = bytes(56)
        datagram = checked(17, struct.pack("!HHHH", source_port, arguments.port, 8 + len(data), 0) + data, 6)
        if arguments.protocol == "udp":
            yield packet(17, datagram)
        else:
            first, rest = datagram[:_FIRST_FRAGMENT_BYTES], datagram[_FIRST_FRAGMENT_BYTES:]
            yield packet(17, first, _MORE_FRAGMENTS)
            yield packet(17, rest, _FIRST_FRAGMENT_BYTES // 8)


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


if __name__ == "__main__":
    main()
