"""How long does it take from a token to the first ping through a tunnel? On a box that knows nothing."""

from __future__ import annotations

from tests.bench.bench import Bench
from tests.lab import watch
from tests.lab.newcomer import make_new, new_token, token_to_ping_s

SITE, HOST, SERVER = "van-1", "van-1-host", "10.10.0.10"
_WELL_S = 60.0


def token_to_ping(bench: Bench) -> list[float]:
    """Seconds from the moment that `cpe-agent enroll TOKEN` is typed until a server of the centre answers the van."""
    samples: list[float] = []
    for run in range(1, bench.runs + 1):
        make_new(bench.lab, SITE)
        # From the second time on the van has had a box, which is shut out.
        token = new_token(bench.lab, SITE, replace=run > 1)
        samples.append(token_to_ping_s(bench.lab, SITE, token, HOST, SERVER))
        bench.say(f"run {run} of {bench.runs}: {samples[-1]:.2f} s")
        watch.wait_all_up(bench.lab, _WELL_S, [SITE])
    return samples
