"""What is measured, in which lab, and what may a measurement use?

In: a lab that is up, a source of chance, a number of runs, and a way to tell progress. Out: one sample for each run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import yaml

from cpe_agent.model.document import Probing
from tests.bench.figure import Figure
from tests.lab import provision
from tests.lab.lab import Lab
from tests.lab.topology import NETWORK, Network


@dataclass(frozen=True)
class Setting:
    """The lab that a figure is taken in. `described` replaces these of the top-level keys of its network.yaml."""

    network: Network = NETWORK
    described: Mapping[str, object] = field(default_factory=dict)

    @property
    def interval_s(self) -> float:
        """Between two probes of a path that carries traffic."""
        probe = self.described.get("probe", provision.PROBE)
        assert isinstance(probe, Mapping)
        return float(probe["active_interval_ms"]) / 1000

    def network_yaml(self) -> str:
        described = yaml.safe_load(provision.network_yaml(self.network))
        return yaml.safe_dump({**described, **self.described}, sort_keys=False)


def probed(interval_ms: int, misses: int) -> Setting:
    """The usual lab, with paths that carry traffic probed at this pace, and others as the product does by default."""
    pace = {
        "active_interval_ms": interval_ms,
        "standby_interval_ms": Probing().standby_interval_ms,
        "misses": misses,
    }
    return Setting(described={"probe": pace})


@dataclass(frozen=True)
class Bench:
    """`chance` is seeded by whoever runs the measurement, so that its choices can be had again."""

    lab: Lab
    runs: int
    chance: random.Random
    say: Callable[[str], None]
    setting: Setting = Setting()


@dataclass(frozen=True)
class Measure:
    """How a figure is taken. `take` returns one sample for each run; a value above `limit` is a failure.

    `worst`: of outages and losses the largest counts, of all else the median. `median_limit`: where the largest counts,
    what the median may be besides. `on_demand`: it takes so long that it is taken only when named.
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
    median_limit: float | None = None
    setting: Setting = Setting()
    on_demand: bool = False

    def holds(self, figure: Figure) -> bool:
        return figure.value <= self.limit and (self.median_limit is None or figure.median <= self.median_limit)

    @property
    def limits(self) -> str:
        """In words."""
        return f"at most {self.limit:g}" + ("" if self.median_limit is None else f", median {self.median_limit:g}")
