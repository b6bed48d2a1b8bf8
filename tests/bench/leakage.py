"""How many packets get through that no permit lists?"""

from __future__ import annotations

from tests.bench.bench import Bench
from tests.lab import forbidden


def forbidden_packets(bench: Bench) -> list[float]:
    """Packets that arrived anywhere, out of all that hosts and strangers were not permitted to send."""
    delivered: list[float] = []
    for run in range(1, bench.runs + 1):
        verdict = forbidden.judge(bench.lab)
        leaked = sum(bench.lab.leaked().values())
        delivered.append(verdict.delivered + leaked)
        bench.say(
            f"run {run} of {bench.runs}: {verdict.delivered} of {verdict.entered} packets that entered a site were "
            f"delivered ({len(verdict.forbidden)} combinations)"
        )
        bench.say(f"  {leaked} packets with a private address on the internet")
        bench.say(f"  once listed, {len(verdict.passing)} of these combinations passed, as they should")
        for arrival in verdict.arrivals:
            bench.say(f"delivered: {arrival}")
    return delivered
