"""Who answers, and where? Knocks at ports of one address, as a stranger on the internet would.

Stand-alone, standard library only: runs in a namespace of the lab. Sends an IKE_SA_INIT to UDP 4500 and 500, a few
bytes to other UDP ports, an ICMP echo request, and opens TCP connections; all at once, three times, within `--seconds`
or until all have answered. Anything that comes back counts, also a refusal (RST, ICMP error): a closed door must look
like no door. Prints one JSON object: {"answered": {"udp/4500": "IKE_SA_INIT response", ...}, "asked": N}.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import select
import socket
import struct
import time

_IP_RECVERR = 11
_RETRIES = 3
_IKE_SA_INIT = 34
_RESPONSE_FLAG = 0x20
_NON_ESP_MARKER = bytes(4)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--to", required=True)
    parser.add_argument("--tcp", type=int, nargs="*", default=[])
    parser.add_argument("--udp", type=int, nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=1.0)
    arguments = parser.parse_args()
    doors = [Door("icmp", 0, arguments.to)]
    doors += [Door("tcp", port, arguments.to) for port in arguments.tcp]
    doors += [Door("udp", port, arguments.to) for port in arguments.udp]
    started = time.monotonic()
    for turn in range(_RETRIES):
        for door in doors:
            door.knock()
        _listen(doors, started + arguments.seconds * (turn + 1) / _RETRIES)
        if all(door.answer for door in doors):
            break
    answered = {door.name: door.answer for door in doors if door.answer}
    print(json.dumps({"answered": answered, "asked": len(doors)}))


class Door:
    """One port (or ICMP echo) of the address, and the first answer that came from there."""

    def __init__(self, protocol: str, port: int, address: str) -> None:
        self.name = protocol if protocol == "icmp" else f"{protocol}/{port}"
        self.answer = ""
        self._protocol = protocol
        self._port = port
        self._address = address
        kind, number = {
            "tcp": (socket.SOCK_STREAM, 0),
            "udp": (socket.SOCK_DGRAM, 0),
            "icmp": (socket.SOCK_RAW, socket.IPPROTO_ICMP),
        }[protocol]
        self.socket = socket.socket(socket.AF_INET, kind, number)
        self.socket.setblocking(False)
        if protocol == "udp":
            self.socket.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        if protocol != "tcp":
            self.socket.connect((address, port))

    def knock(self) -> None:
        try:
            if self._protocol == "tcp":
                self.socket.connect((self._address, self._port))  # the kernel repeats its SYN by itself
            else:
                self.socket.send(self._packet())
        except BlockingIOError:
            pass
        except OSError as error:
            self._note(error)

    def listen(self) -> None:
        """Called when there is something to read or, for TCP, to write."""
        if self.answer:
            return
        try:
            if self._protocol == "tcp":
                failure = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if failure:
                    raise OSError(failure, os.strerror(failure))
                self.answer = "connection accepted"
            else:
                self._take(self.socket.recv(4096))
        except BlockingIOError:
            pass
        except OSError as error:
            self._note(error)

    def _take(self, data: bytes) -> None:
        if self._protocol == "icmp":
            kind = data[(data[0] & 15) * 4]
            self.answer = "echo reply" if kind == 0 else "" if kind == 8 else f"ICMP type {kind}"
            return
        message = data[4:] if data.startswith(_NON_ESP_MARKER) else data
        is_ike = len(message) >= 28 and message[18] == _IKE_SA_INIT and message[19] & _RESPONSE_FLAG
        self.answer = "IKE_SA_INIT response" if is_ike else f"{len(data)} bytes"

    def _note(self, error: OSError) -> None:
        # Time-outs and the like are silence; so is an operation that is under way.
        if error.errno not in (errno.ETIMEDOUT, errno.EALREADY, errno.EINPROGRESS, errno.EISCONN):
            self.answer = self.answer or os.strerror(error.errno or 0)

    def _packet(self) -> bytes:
        if self._protocol == "icmp":
            return struct.pack("!BBHHH", 8, 0, 0xF7FE, 1, 0)
        if self._port in (500, 4500):
            return (_NON_ESP_MARKER if self._port == 4500 else b"") + ike_sa_init()
        return b"who is there?"


def ike_sa_init() -> bytes:
    """A well-formed first message of IKEv2 (RFC 7296) that offers only 3DES and MD5: whoever speaks IKE refuses it
    with NO_PROPOSAL_CHOSEN, and keeps nothing of it."""

    def transform(last: bool, kind: int, number: int) -> bytes:
        return struct.pack("!BBHBBH", 0 if last else 3, 0, 8, kind, 0, number)

    transforms = transform(False, 1, 3) + transform(False, 2, 1) + transform(False, 3, 1) + transform(True, 4, 2)
    proposal = struct.pack("!BBHBBBB", 0, 0, 8 + len(transforms), 1, 1, 0, 4) + transforms
    security_association = struct.pack("!BBH", 34, 0, 4 + len(proposal)) + proposal
    public = os.urandom(128)
    key_exchange = struct.pack("!BBHHH", 40, 0, 8 + len(public), 2, 0) + public
    nonce = struct.pack("!BBH", 0, 0, 4 + 32) + os.urandom(32)
    payloads = security_association + key_exchange + nonce
    header = struct.pack("!8s8sBBBBII", os.urandom(8), bytes(8), 33, 0x20, _IKE_SA_INIT, 0x08, 0, 28 + len(payloads))
    return header + payloads


def _listen(doors: list[Door], until: float) -> None:
    poll = select.poll()
    by_descriptor = {door.socket.fileno(): door for door in doors if not door.answer}
    for descriptor, door in by_descriptor.items():
        poll.register(descriptor, select.POLLOUT if door.name.startswith("tcp") else select.POLLIN)
    while by_descriptor and (left_s := until - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(left_s * 1000):
            by_descriptor[descriptor].listen()
            if by_descriptor[descriptor].answer:
                poll.unregister(descriptor)
                del by_descriptor[descriptor]


if __name__ == "__main__":
    main()
