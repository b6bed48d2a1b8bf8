"""Writes down every IP packet and ARP message that passes one interface, in either direction.

Stand-alone, standard library only: runs in the namespace of the interface. Each packet becomes one `RECORD` in `--to`:
when it passed (CLOCK_MONOTONIC, ns; stamped by the kernel, not when this process got round to it), whether this
namespace sent it, its protocol and the first bytes behind the Ethernet header. Bounded: after `--most` packets it only
counts. Standard output is {"ready": true}, and at the end, by SIGTERM, {"packets", "unwritten", "dropped"}: dropped are
those that the kernel could not hand over in time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import select
import signal
import socket
import struct
import time

HEAD_BYTES = 64
RECORD = struct.Struct(f"!Q?H{HEAD_BYTES}s")

_ETHERNET_BYTES = 14
_ALL_PROTOCOLS = 0x0003
_PACKET_OUTGOING = 4
_SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 16 << 20
_ANCILLARY_BYTES = 128
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_SO_TIMESTAMPNS = 35  # the socket module does not name it
_TIMESPEC = struct.Struct("@qq")
_READINGS, _TOGETHER_NS = 10, 50_000
_WAIT_S = 0.2  # between looks at whether it is to end


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--interface", required=True)
    parser.add_argument("--to", required=True, help="the file to write")
    parser.add_argument("--most", type=int, required=True, help="packets to write at most")
    arguments = parser.parse_args()
    ended = False

    def end(_number: int, _frame: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    packets = unwritten = 0
    # No protocol yet: what came in before it is bound to the interface would be of any.
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as raw, open(arguments.to, "wb") as file:
        raw.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        raw.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        raw.setblocking(False)
        raw.bind((arguments.interface, _ALL_PROTOCOLS))
        print(json.dumps({"ready": True}), flush=True)
        over = False
        while not over:
            # What has come before the end is read, however late the end is noticed.
            over = ended
            select.select([raw], [], [], 0 if over else _WAIT_S)
            with contextlib.suppress(BlockingIOError):
                while True:
                    try:
                        data, ancillary, _, address = raw.recvmsg(_ETHERNET_BYTES + HEAD_BYTES, _ANCILLARY_BYTES)
                    except OSError as error:
                        if isinstance(error, BlockingIOError):
                            raise
                        continue  # the interface went down: said once, and the socket stays bound
                    packets += 1
                    if packets > arguments.most:
                        unwritten += 1
                        continue
                    _, protocol, kind, *_ = address
                    head = data[_ETHERNET_BYTES:]
                    file.write(RECORD.pack(_passed_ns(ancillary), kind == _PACKET_OUTGOING, protocol, head))
        _, dropped = struct.unpack("=II", raw.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
    print(json.dumps({"packets": packets, "unwritten": unwritten, "dropped": dropped}), flush=True)


def _passed_ns(ancillary: list[tuple[int, int, bytes]]) -> int:
    """The kernel's stamp is of the wall clock: count back from now by how long ago that was."""
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
            seconds, nanoseconds = map(int, _TIMESPEC.unpack(value[: _TIMESPEC.size]))
            return _monotonic_ns(seconds * 1_000_000_000 + nanoseconds)
    return time.monotonic_ns()


def _monotonic_ns(wall_ns: int) -> int:
    """The clocks are read one after the other, and a busy machine may let others run in between: then once more."""
    before, wall_now, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
    for _ in range(_READINGS):
        if after - before < _TOGETHER_NS:
            break
        before, wall_now, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
    return after - (wall_now - wall_ns)


if __name__ == "__main__":
    main()
