"""How many questions get their answer, if the server takes its time?

Stand-alone, standard library only: runs on hosts of a lab. `serve` answers each datagram after `--delay-ms`. `ask`
sends `--rate` a second until SIGTERM, waits for what is under way, and prints one JSON object: {"asked", "unanswered"},
the latter with the numbers of the questions.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections import deque
from types import FrameType


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("end", choices=("serve", "ask"))
    parser.add_argument("address")
    parser.add_argument("--port", type=int, default=7010)
    parser.add_argument("--delay-ms", type=float, default=300)
    parser.add_argument("--rate", type=float, default=100)
    parser.add_argument("--linger-s", type=float, default=3)
    told = parser.parse_args()
    # As in `traffic`: it is a network that is measured, not who gets a processor.
    with contextlib.suppress(PermissionError):
        os.nice(-10)
    if told.end == "serve":
        serve((told.address, told.port), told.delay_ms / 1000)
    else:
        ask((told.address, told.port), told.rate, told.linger_s)


def serve(at: tuple[str, int], delay_s: float) -> None:
    waiting: deque[tuple[float, bytes, tuple[str, int]]] = deque()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as answering:
        answering.bind(at)
        print("ready", flush=True)
        while True:
            left_s = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
            if select.select([answering], [], [], left_s)[0]:
                data, source = answering.recvfrom(64)
                waiting.append((time.monotonic() + delay_s, data, source))
            while waiting and waiting[0][0] <= time.monotonic():
                _, data, source = waiting.popleft()
                answering.sendto(data, source)


def ask(whom: tuple[str, int], rate: float, linger_s: float) -> None:
    ended = False

    def end(_number: int, _frame: FrameType | None) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    answered: set[int] = set()
    asked, start, until = 0, time.monotonic(), 0.0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect(whom)
        print("ready", flush=True)
        while not until or (time.monotonic() < until and len(answered) < asked):
            if ended and not until:
                until = time.monotonic() + linger_s
            next_at = until or start + asked / rate
            if not until and time.monotonic() >= next_at:
                asking.send(struct.pack("!I", asked))
                asked += 1
                continue
            if select.select([asking], [], [], max(0.0, next_at - time.monotonic()))[0]:
                answered.add(struct.unpack("!I", asking.recv(64))[0])
    print(json.dumps({"asked": asked, "unanswered": sorted(set(range(asked)) - answered)}))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
