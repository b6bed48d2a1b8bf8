"""What does the controller tell Prometheus?

`cpe_controller_*`: sites by state, silent sites, the rollout, certificates that end soon. No label names a site: how
many there are must not matter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from cpe_controller.fleet import SiteStatus, State, counts

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Facts:
    """What there is to tell. `certificates` are the controller's own: name -> until when, in wall time; `rollout` the
    number of sites by what the rollout has to do with them, and `phase` what it is at ("" for none)."""

    statuses: Iterable[SiteStatus]
    certificates: dict[str, float]
    streams: int
    phase: str = ""
    rollout: tuple[tuple[str, int], ...] = ()


def make_app(facts: Callable[[], Facts]) -> ASGIApp:
    registry = CollectorRegistry()
    registry.register(_Fleet(facts))

    async def answer(request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE)

    return Starlette(routes=[Route("/metrics", answer)])


class _Fleet(Collector):
    def __init__(self, facts: Callable[[], Facts]) -> None:
        self._facts = facts

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        facts, now = self._facts(), time.time()
        statuses = list(facts.statuses)
        found = counts(statuses)
        yield InfoMetricFamily("cpe_controller_build", "Its version.", value={"version": metadata.version("cpe-agent")})
        sites = GaugeMetricFamily("cpe_controller_sites", "Sites by state.", labels=["state"])
        for state, number in found.items():
            sites.add_metric([state.value], number)
        yield sites
        silent = found[State.SILENT] + found[State.NEVER]
        yield _gauge("cpe_controller_silent_sites", "Sites of the network that say nothing.", silent)
        ending = sum(status.certificate_ends(now) for status in statuses)
        yield _gauge("cpe_controller_certificates_near_expiry", "Sites whose certificate ends within 50 days.", ending)
        own = GaugeMetricFamily(
            "cpe_controller_certificate_expiry_timestamp_seconds", "The controller's own.", labels=["certificate"]
        )
        for name, until in facts.certificates.items():
            own.add_metric([name], until)
        yield own
        yield _gauge("cpe_controller_streams", "Streams that sites hold now.", facts.streams)
        phase = GaugeMetricFamily("cpe_controller_rollout", "1 for what the rollout is at.", labels=["phase"])
        for name in ("running", "paused", "halted"):
            phase.add_metric([name], facts.phase == name)
        yield phase
        waiting = GaugeMetricFamily("cpe_controller_rollout_sites", "Sites of the rollout, by progress.", labels=["is"])
        for name, number in facts.rollout:
            waiting.add_metric([name], number)
        yield waiting


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value=value)
