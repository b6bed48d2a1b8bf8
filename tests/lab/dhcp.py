"""What does a DHCP server on this LAN offer?

Stand-alone, standard library only: runs in a namespace of the lab, on a host with one interface. Sends DHCPDISCOVER by
broadcast until an offer is there, within `--seconds`. Prints one JSON object: {"address", "router", "dns"}, or {} if
nobody has offered anything.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import os
import socket
import struct
import time

_SERVER, _CLIENT = 67, 68
_MAGIC = bytes((99, 130, 83, 99))
_ROUTER, _DNS, _TYPE, _WANTED, _END = 3, 6, 53, 55, 255
_DISCOVER, _OFFER = 1, 2
_BROADCAST_FLAG = 0x8000
_AGAIN_S = 0.3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5.0)
    deadline = time.monotonic() + parser.parse_args().seconds
    number = int.from_bytes(os.urandom(4), "big")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        asking.bind(("0.0.0.0", _CLIENT))
        asking.settimeout(_AGAIN_S)
        found: dict[str, str] = {}
        while not found and time.monotonic() < deadline:
            asking.sendto(_discover(number), ("255.255.255.255", _SERVER))
            with contextlib.suppress(TimeoutError):
                found = _offer(asking.recv(2048), number)
    print(json.dumps(found))


def _discover(number: int) -> bytes:
    hardware = b"\x02\x00\x00\x00\x00\x42"
    head = struct.pack("!BBBBIHH16x16s192x", 1, 1, 6, 0, number, 0, _BROADCAST_FLAG, hardware)
    return head + _MAGIC + bytes((_TYPE, 1, _DISCOVER, _WANTED, 2, _ROUTER, _DNS, _END))


def _offer(answer: bytes, number: int) -> dict[str, str]:
    if len(answer) < 240 or int.from_bytes(answer[4:8], "big") != number:
        return {}
    options, rest = {}, answer[240:]
    while len(rest) > 1 and rest[0] != _END:
        options[rest[0]] = rest[2 : 2 + rest[1]]
        rest = rest[2 + rest[1] :]
    if options.get(_TYPE) != bytes((_OFFER,)):
        return {}
    named = {"address": answer[16:20], "router": options.get(_ROUTER, b"")[:4], "dns": options.get(_DNS, b"")[:4]}
    return {name: str(ipaddress.ip_address(value)) for name, value in named.items() if len(value) == 4}


if __name__ == "__main__":
    main()
