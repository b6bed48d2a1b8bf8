"""What may a measurement use? A lab that is up, a source of chance, a number of runs, and a way to tell progress."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.lab.lab import Lab


@dataclass(frozen=True)
class Bench:
    """`chance` is seeded by whoever runs the measurement, so that its choices can be had again."""

    lab: Lab
    runs: int
    chance: random.Random
    say: Callable[[str], None]


@dataclass(frozen=True)
class Measure:
    """How a figure is taken. `take` returns one sample for each run; a value above `limit` is a failure.

    `worst`: of outages and losses the largest counts, of all else the median.
    """

    name: str
    unit: str
    about: str
    limit: float
    runs: int
    take: Callable[[Bench], list[float]]
    worst: bool = True
    # Without one, `Bench.lab` is there but not up.
    needs_lab: bool = True
    # About the kernel's ESP; left out where there is none.
    kernel_only: bool = False
