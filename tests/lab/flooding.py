"""Floods a hub of a running lab with IKE_SA_INIT requests, and says what became of them.

    with flooding(lab, "198.51.100.10", source="203.0.113.202/32", rate=3000, seconds=8) as flood:
        ...
    print(flood.sent)

`flood` is the tool, which is bounded in itself; leaving the block ends it early or waits for its end.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.container import LabError
from tests.lab.init import LOGS
from tests.lab.lab import Lab

_SCRIPT = Path(__file__).with_name("flood.py")
_END_S = 20.0


@dataclass
class Flood:
    """`sent` and `seconds` (how long it really took) once it has ended."""

    sent: int = 0
    seconds: float = 0.0


@contextmanager
def flooding(
    lab: Lab, to: str, *, source: str, rate: int, seconds: float, port: int = 0, sender: str = "outside"
) -> Iterator[Flood]:
    """`source`: a subnet of whose addresses each packet claims a random one; `port` 0: a random one each time."""
    flood = Flood()
    argv = [sys.executable, "-S", str(_SCRIPT), "--to", to, "--source", source]
    argv += ["--port", str(port), "--rate", str(rate), "--seconds", str(seconds)]
    log = lab.path(f"{LOGS}/flood.log")
    with open(log, "wb") as stdout:
        process = lab.container.spawn(argv, namespace=sender, stdout=stdout)
    try:
        yield flood
        status = process.wait(seconds + _END_S)
        if status != 0:
            raise LabError(f"the flood ended with {status}: {log.read_text().strip()}")
        found = json.loads(log.read_text())
        flood.sent, flood.seconds = int(found["sent"]), float(found["seconds"])
    finally:
        process.signal(signal.SIGKILL)
        process.close()
