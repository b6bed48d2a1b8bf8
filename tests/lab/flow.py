"""What did two hosts feel of each other? Runs `traffic` on both and joins what they noted into losses and gaps.

    with lab.flow("hospital-1-host", "centre-server", rate=100) as flow:
        ...
    print(flow.result.up.longest_gap_ms, flow.result.down.lost)

`up` is from the client to the server. The longest gap of a direction is the longest time its receiver heard nothing:
between two arrivals, or from the first packet sent to the first arrival, or from the last arrival to the last packet
sent. So a direction that dies and stays dead shows as a gap until the end, not as none.

A server can have a twin: another machine with the same address, behind another hub. The client's packets may then
arrive at either, and what each of the two sends counts; gaps are still what a receiver as a whole heard, or did not.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.lab.container import Container, LabError, Process, wait_until
from tests.lab.init import LOGS
from tests.lab.pace import patience

PORT = 7000
TWIN_FIRST = 1_000_000  # its sequence numbers start here, so that they are told from the other's

_SCRIPT = Path(__file__).with_name("traffic.py")
_START_S = 15.0


@dataclass(frozen=True)
class Direction:
    """One direction of a flow. Times are CLOCK_MONOTONIC in seconds, as of time.monotonic()."""

    sent: int
    received: int  # different packets
    duplicates: int
    reordered: int  # arrived after one that was sent later
    lost_ranges: tuple[tuple[int, int], ...]  # first and last sequence number of each run of lost packets
    longest_gap_ms: float
    longest_gap_at_s: float  # when it began
    longest_delay_ms: float
    # Lost before something of the same sender arrived later: with a twin, what each sends to nobody is no loss.
    lost_between: int = 0
    # When something was heard, from the first packet sent to the last.
    heard_s: tuple[float, ...] = field(default=(), repr=False)

    @property
    def lost(self) -> int:
        return self.sent - self.received

    def longest_gap_since_ms(self, at_s: float) -> float:
        """Of the gaps that were not over by then: a busy machine's earlier ones do not count."""
        gaps = (after - before for before, after in pairwise(self.heard_s) if after > at_s)
        return max(gaps, default=0.0) * 1000


@dataclass(frozen=True)
class FlowResult:
    up: Direction
    down: Direction

    @property
    def lost(self) -> int:
        return self.up.lost + self.down.lost

    @property
    def longest_gap_ms(self) -> float:
        return max(self.up.longest_gap_ms, self.down.longest_gap_ms)


class Flow:
    """A flow that runs until `stop`, the end of the with block, or `seconds`."""

    def __init__(
        self,
        container: Container,
        client: str,
        server: str,
        address: str,
        *,
        number: int,
        rate: float,
        port: int,
        seconds: float,
        linger_ms: float,
        twin: str | None = None,
    ) -> None:
        self.name = f"flow-{number}-{client}-{server}"
        self._container = container
        self._result: FlowResult | None = None
        linger_ms = patience(linger_ms)
        self._linger_s = linger_ms / 1000
        common = ["--port", str(port), "--rate", str(rate), "--seconds", str(seconds), "--linger-ms", str(linger_ms)]
        # The server must be there first, and the client's first packet must not be early.
        if ":" in address:
            common.append("--ipv6")
        self._ends: list[tuple[Process, Path]] = []
        try:
            self._ends.append(self._start(server, "server", common))
            if twin:
                self._ends.append(self._start(twin, "twin", ["--first", str(TWIN_FIRST), *common]))
            self._ends.insert(0, self._start(client, "client", ["--to", address, *common]))
        except LabError:
            for process, _ in self._ends:
                process.signal(signal.SIGKILL)
                process.close()
            raise

    def __enter__(self) -> Flow:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._result is None:
            self.stop()

    @property
    def result(self) -> FlowResult:
        if self._result is None:
            raise LabError(f"{self.name} has not been stopped")
        return self._result

    def received(self) -> tuple[int, int]:
        """How many packets have arrived so far at (the server or its twin, the client); some 100 ms old."""
        client, *servers = (_progress(log) for _, log in self._ends)
        return sum(servers), client

    def wait_flowing(self, timeout_s: float) -> None:
        """Returns once both ends hear each other."""
        wait_until(f"{self.name} goes both ways", lambda: all(self.received()), timeout_s)

    def stop(self) -> FlowResult:
        """End it and say what was lost. Waits for packets under way, by `linger_ms`."""
        # No end stops listening before all have stopped sending, however long that takes here.
        for number in (signal.SIGTERM, signal.SIGUSR1):
            for process, _ in self._ends:
                process.signal(number)
        client, *servers = (_outcome(self.name, process, log, self._linger_s + 15) for process, log in self._ends)
        self._result = FlowResult(up=join(client, all_heard(servers)), down=join(all_sent(servers), client))
        return self._result

    def _start(self, host: str, end: str, arguments: Sequence[str]) -> tuple[Process, Path]:
        log = self._container.path(f"{LOGS}/{self.name}-{end}.json")
        errors = self._container.path(f"{LOGS}/{self.name}-{end}.log")
        with open(log, "wb") as stdout, open(errors, "wb") as stderr:
            argv = [sys.executable, "-S", str(_SCRIPT), *arguments]
            process = self._container.spawn(argv, namespace=host, stdout=stdout, stderr=stderr)
        deadline = time.monotonic() + patience(_START_S)
        while b"\n" not in log.read_bytes():
            if not process.running or time.monotonic() > deadline:
                raise LabError(f"{self.name}: the {end} did not start: {errors.read_text().strip()}")
            time.sleep(0.005)
        return process, log


def join(sender: dict[str, Any], receiver: dict[str, Any]) -> Direction:
    """What one end sent (its result, see `traffic`) against what the other received."""
    sent: int = sender["sent"]
    twin_first = sent - sender.get("twin_sent", 0)
    seen: set[int] = set()
    duplicates = reordered = 0
    highest = -1
    longest_delay_ns = 0
    longest_gap_ns, longest_gap_at_ns = 0, sender["first_sent_ns"]
    previous_ns = sender["first_sent_ns"]
    heard_ns = [previous_ns]
    for number, arrived_ns, sent_ns in receiver["arrivals"]:
        sequence = number if number < TWIN_FIRST else twin_first + number - TWIN_FIRST
        if arrived_ns - previous_ns > longest_gap_ns:
            longest_gap_ns, longest_gap_at_ns = arrived_ns - previous_ns, previous_ns
        previous_ns = max(previous_ns, arrived_ns)
        heard_ns.append(previous_ns)
        longest_delay_ns = max(longest_delay_ns, arrived_ns - sent_ns)
        duplicates += sequence in seen
        reordered += sequence < highest and sequence not in seen
        highest = max(highest, sequence)
        seen.add(sequence)
    heard_ns.append(max(previous_ns, sender["last_sent_ns"]))
    if sender["last_sent_ns"] - previous_ns > longest_gap_ns:
        longest_gap_ns, longest_gap_at_ns = sender["last_sent_ns"] - previous_ns, previous_ns
    lost_between = 0
    for first, end in ((0, twin_first), (twin_first, sent)):
        heard = [sequence for sequence in seen if first <= sequence < end]
        lost_between += max(heard) + 1 - first - len(heard) if heard else 0
    return Direction(
        lost_between=lost_between,
        sent=sent,
        received=len(seen),
        duplicates=duplicates,
        reordered=reordered,
        lost_ranges=_ranges([sequence for sequence in range(sent) if sequence not in seen]),
        longest_gap_ms=longest_gap_ns / 1e6,
        longest_gap_at_s=longest_gap_at_ns / 1e9,
        longest_delay_ms=longest_delay_ns / 1e6,
        heard_s=tuple(ns / 1e9 for ns in heard_ns),
    )


def all_heard(servers: list[dict[str, Any]]) -> dict[str, Any]:
    """What a server and its twin received, as if they were one. The order in which one has heard is kept: it is the
    socket's, and stamps of packets that came together are not to the microsecond."""
    if len(servers) == 1:
        return {"arrivals": servers[0]["arrivals"]}
    arrivals = [arrival for server in servers for arrival in server["arrivals"]]
    return {"arrivals": sorted(arrivals, key=lambda arrival: arrival[1])}


def all_sent(servers: list[dict[str, Any]]) -> dict[str, Any]:
    """What a server and its twin sent: the twin's numbers follow the other's. One that never spoke sent nothing."""
    spoke = [server for server in servers if server["sent"]] or servers[:1]
    return {
        "sent": sum(server["sent"] for server in spoke),
        "twin_sent": sum(server["sent"] for server in servers[1:]),
        "first_sent_ns": min(server["first_sent_ns"] for server in spoke),
        "last_sent_ns": max(server["last_sent_ns"] for server in spoke),
    }


def _ranges(numbers: list[int]) -> tuple[tuple[int, int], ...]:
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return tuple(ranges)


def _progress(log: Path) -> int:
    lines = log.read_bytes().splitlines()
    last: dict[str, Any] = json.loads(lines[-1]) if lines and lines[-1].endswith(b"}") else {}
    received: int = last.get("received", 0)
    return received


def _outcome(name: str, process: Process, log: Path, timeout_s: float) -> dict[str, Any]:
    status = process.wait(timeout_s)
    if status != 0:
        process.signal(signal.SIGKILL)
        raise LabError(f"{name}: an end of the flow ended with {status}")
    outcome: dict[str, Any] = json.loads(log.read_bytes().splitlines()[-1])
    return outcome
