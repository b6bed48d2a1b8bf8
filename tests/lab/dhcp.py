"""What does a DHCP server on this LAN give a host?

Stand-alone, standard library only: runs in a namespace of the lab, on a host with one interface. Asks by broadcast
until it has a lease, within `--seconds`. Prints one JSON object: {"address", "router", "dns"}, or {} if nobody has
offered anything. It is the lease that is looked at: what networkd 252 offers has no name server yet.
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
_ROUTER, _DNS, _ADDRESS, _TYPE, _SERVER_ID, _WANTED, _END = 3, 6, 50, 53, 54, 55, 255
_DISCOVER, _OFFER, _REQUEST, _ACK = 1, 2, 3, 5
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
        print(json.dumps(_lease(asking, number, deadline)))


def _lease(asking: socket.socket, number: int, deadline: float) -> dict[str, str]:
    offer = _answer(asking, number, _DISCOVER, {}, deadline)
    if offer is None:
        return {}
    address, options = offer
    taken = {_ADDRESS: address, _SERVER_ID: options.get(_SERVER_ID, b"")}
    lease = _answer(asking, number, _REQUEST, taken, deadline)
    if lease is None:
        return {}
    address, options = lease
    named = {"address": address, "router": options.get(_ROUTER, b"")[:4], "dns": options.get(_DNS, b"")[:4]}
    return {name: str(ipaddress.ip_address(value)) for name, value in named.items() if len(value) == 4}


def _answer(
    asking: socket.socket, number: int, kind: int, options: dict[int, bytes], deadline: float
) -> tuple[bytes, dict[int, bytes]] | None:
    """The address and the options of the answer to such a message, which is sent until there is one."""
    wanted = {_DISCOVER: _OFFER, _REQUEST: _ACK}[kind]
    while time.monotonic() < deadline:
        asking.sendto(_message(number, kind, options), ("255.255.255.255", _SERVER))
        with contextlib.suppress(TimeoutError):
            found = _read(asking.recv(2048), number)
            if found is not None and found[1].get(_TYPE) == bytes((wanted,)):
                return found
    return None


def _message(number: int, kind: int, options: dict[int, bytes]) -> bytes:
    hardware = b"\x02\x00\x00\x00\x00\x42"
    head = struct.pack("!BBBBIHH16x16s192x", 1, 1, 6, 0, number, 0, _BROADCAST_FLAG, hardware)
    said = {_TYPE: bytes((kind,)), _WANTED: bytes((_ROUTER, _DNS)), **options}
    return head + _MAGIC + b"".join(bytes((code, len(value))) + value for code, value in said.items()) + bytes((_END,))


def _read(answer: bytes, number: int) -> tuple[bytes, dict[int, bytes]] | None:
    """The address and the options of an answer to us."""
    if len(answer) < 240 or int.from_bytes(answer[4:8], "big") != number:
        return None
    options, rest = {}, answer[240:]
    while len(rest) > 1 and rest[0] != _END:
        options[rest[0]] = rest[2 : 2 + rest[1]]
        rest = rest[2 + rest[1] :]
    return answer[16:20], options


if __name__ == "__main__":
    main()
