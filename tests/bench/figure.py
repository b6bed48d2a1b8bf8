"""What is a figure, and how is it kept in build/bench.json?

A figure is one value with the spread of the runs that it comes from. The file is a JSON list with one object for each
name; measuring some figures anew keeps the others.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """`value` is the worst (largest) of `n` runs for outages and losses, the median for all else."""

    name: str
    value: float
    unit: str
    backend: str
    n: int
    min: float
    median: float
    max: float


def summarise(name: str, unit: str, backend: str, samples: Sequence[float], *, worst: bool) -> Figure:
    if not samples:
        raise ValueError(f"{name}: no run, no figure")
    rounded = [round(sample, 1) for sample in samples]
    median = statistics.median(rounded)
    value = max(rounded) if worst else median
    return Figure(name, value, unit, backend, len(rounded), min(rounded), median, max(rounded))


def keep(file: Path, measured: Iterable[Figure]) -> None:
    """Put these figures into the file, in place of earlier ones of their names."""
    figures: dict[str, object] = {}
    if file.exists():
        figures = {figure["name"]: figure for figure in json.loads(file.read_text())}
    figures |= {figure.name: asdict(figure) for figure in measured}
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.write_text(json.dumps([figures[name] for name in sorted(figures)], indent=2) + "\n")
    new.replace(file)
