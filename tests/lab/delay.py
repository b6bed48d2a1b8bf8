"""How is an uplink slow where the kernel has no netem? A relay that runs in the uplink's access router.

It reads packets from a TUN device into which the router sends all that it should forward, keeps each for `--delay-ms`,
and writes it back, in order; the router then forwards it as usual. Ends when the device does, or on a signal.
Stand-alone: standard library only. Carries some 10,000 packets/s, far more than the tests send.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import select
import struct
import time
from collections import deque

_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_QUEUE_PACKETS = 20_000  # what does not fit is lost, as in any router


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", required=True)
    parser.add_argument("--delay-ms", type=float, required=True)
    arguments = parser.parse_args()
    with contextlib.suppress(PermissionError):
        os.nice(-10)
    # On a busy machine a packet that was sent before the scheduler moved us would be overtaken by the next.
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[os.getpid() % len(cpus)]})
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", arguments.device.encode(), _IFF_TUN | _IFF_NO_PI))
    print("ready", flush=True)
    relay(device, arguments.delay_ms / 1000)


def relay(device: int, delay_s: float) -> None:
    waiting: deque[tuple[float, bytes]] = deque()
    while True:
        timeout_s = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        readable, _, _ = select.select([device], [], [], timeout_s)
        now = time.monotonic()
        if readable:
            with contextlib.suppress(BlockingIOError):
                while True:
                    packet = os.read(device, 65536)
                    if len(waiting) < _QUEUE_PACKETS:
                        waiting.append((now + delay_s, packet))
        while waiting and waiting[0][0] <= now:
            with contextlib.suppress(OSError):  # the router may refuse one (no route, interface down): then it is lost
                os.write(device, waiting[0][1])
            waiting.popleft()


if __name__ == "__main__":
    main()
