"""How is a figure taken that needs a kernel of its own but no lab?

`in_namespace` runs a function of this package in a child process with a network namespace of its own, which ends with
it. In: the function's name as "module:function", the number of runs and a seed. Out: its samples. The function takes
(runs, chance, say) and returns one sample for each run.
"""

from __future__ import annotations

import importlib
import json
import random
import subprocess
import sys
from collections.abc import Callable

from tests.bench.bench import Bench
from tests.lab.container import REPOSITORY, LabError

LIMIT_S = 600.0
_SAMPLES = "samples "

Take = Callable[[int, random.Random, Callable[[str], None]], list[float]]


def in_namespace(function: str) -> Callable[[Bench], list[float]]:
    """A measurement that leaves the bench's lab alone. Raises `LabError` if it could not be taken."""

    def take(bench: Bench) -> list[float]:
        seed = bench.chance.randrange(1_000_000)
        child = [sys.executable, "-m", "tests.bench.alone", function, str(bench.runs), str(seed)]
        try:
            run = subprocess.run(
                ["unshare", "--net", *child], cwd=REPOSITORY, capture_output=True, text=True, timeout=LIMIT_S
            )
        except subprocess.TimeoutExpired:
            raise LabError(f"{function}: not done after {LIMIT_S:.0f} s") from None
        samples: list[float] | None = None
        for line in run.stdout.splitlines():
            if line.startswith(_SAMPLES):
                samples = json.loads(line.removeprefix(_SAMPLES))
            else:
                bench.say(line)
        if run.returncode != 0 or samples is None:
            raise LabError(f"{function}: {run.stderr.strip()[-2000:]}")
        return samples

    return take


def main(function: str, runs: str, seed: str) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    module, _, name = function.partition(":")
    take: Take = getattr(importlib.import_module(module), name)
    samples = take(int(runs), random.Random(int(seed)), lambda words: print(words, flush=True))
    print(f"{_SAMPLES}{json.dumps(samples)}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
