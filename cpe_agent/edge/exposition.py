"""What does Prometheus see of this site?

In: a `Status`. Out: the text exposition of the metrics in `metric_table`. A metric is what the status says now and
nothing is remembered here: counters are counted where things happen. What is not known is left out, never 0: an alert
must tell "no loss" from "not measured". A hub has thousands of pairs and branches, so only a branch exports its pairs
one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from cpe_agent.edge.metric_table import METRICS, PREFIX
from cpe_agent.model.condition import OUTAGE_BOUNDS_S, Outages, Status

# The firewall's reasons that begin so are limits on IKE_SA_INIT.
IKE_INIT = "ike_init_"


def exposition(status: Status) -> bytes:
    """The metrics of `status` in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_StatusCollector(status))
    return generate_latest(registry)


class _StatusCollector(Collector):
    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        # A family without samples is a name that this site has nothing to say about.
        return (metric for metric in _metrics(self._status) if metric.samples)


def _metrics(status: Status) -> Iterator[Metric]:
    yield from _site(status)
    yield from _uplinks(status)
    yield from _paths(status)
    yield from _peers(status)
    yield from _bundles(status)
    yield from _services(status)
    yield from _pairs(status)
    yield _counter("dropped_packets", status.dropped_packets)
    limits = {reason: count for reason, count in status.dropped_packets.items() if reason.startswith(IKE_INIT)}
    yield _counter(
        "ike_init_dropped_packets", {reason.removeprefix(IKE_INIT): count for reason, count in limits.items()}
    )
    yield from _targets(status)


def _site(status: Status) -> Iterator[Metric]:
    build = _gauge("build_info")
    build.add_metric([status.agent_version, status.backend], 1)
    yield build
    yield _value("start_timestamp_seconds", status.started)

    document = _gauge("document_info")
    if status.document_epoch is not None and status.document_version is not None:
        order = [str(status.document_epoch), str(status.document_version)]
        document.add_metric([status.site, status.role, *order], 1)
    yield document
    yield _value("document_issued_timestamp_seconds", status.document_issued)
    yield _value("document_expiry_timestamp_seconds", status.document_expires)
    yield _value("certificate_expiry_timestamp_seconds", status.certificate_expires)
    yield _value("clock_trusted", status.clock_trusted)
    yield _value("controller_last_contact_timestamp_seconds", status.controller_last_contact)

    condition = _gauge("condition")
    for type_, count in sorted(Counter(condition.type for condition in status.conditions).items()):
        condition.add_metric([type_], count)
    yield condition


def _uplinks(status: Status) -> Iterator[Metric]:
    uplink_up, remaining = _gauge("uplink_up"), _gauge("uplink_budget_remaining_bytes")
    for uplink in status.uplinks:
        uplink_up.add_metric([uplink.name], uplink.up)
        if uplink.remaining_bytes is not None:
            remaining.add_metric([uplink.name], uplink.remaining_bytes)
    counted = {uplink.name: uplink.bytes_total for uplink in status.uplinks if uplink.bytes_total is not None}
    spent = {uplink.name: uplink.overhead_bytes for uplink in status.uplinks if uplink.overhead_bytes is not None}
    yield from (uplink_up, _counter("uplink_bytes", counted), remaining, _counter("overhead_bytes", spent))


def _paths(status: Status) -> Iterator[Metric]:
    up, loss = _gauge("path_up"), _gauge("path_loss_ratio")
    rtt, jitter, mtu = _gauge("path_rtt_seconds"), _gauge("path_jitter_seconds"), _gauge("path_mtu_bytes")
    ready: dict[str, bool] = {}
    for path in status.paths:
        values = [path.path, path.uplink, path.peer, path.endpoint]
        if path.rtt_ms is not None:
            rtt.add_metric(values, path.rtt_ms / 1000)
        if path.jitter_ms is not None:
            jitter.add_metric(values, path.jitter_ms / 1000)
        if path.mtu is not None:
            mtu.add_metric(values, path.mtu)
        if path.state in ("up", "down"):
            up.add_metric(values, path.state == "up")
            loss.add_metric(values, path.loss_percent / 100)
            ready[path.peer] = ready.get(path.peer, False) or path.ready
    yield from (up, rtt, jitter, loss, mtu)

    peer_ready = _gauge("peer_ready")
    for peer, is_ready in sorted(ready.items()):
        peer_ready.add_metric([peer], is_ready)
    yield peer_ready


def _peers(status: Status) -> Iterator[Metric]:
    ike_sas = Counter(path.ike.lower() for path in status.paths if path.ike not in ("", "none"))
    if status.peers:
        ike_sas["established"] += sum(branch.ike_sas for branch in status.peers)
    sas = _gauge("ike_sas")
    for state, count in sorted(ike_sas.items()):
        sas.add_metric([state], count)
    yield sas

    peers = _gauge("peers")
    if status.peers:
        connected = sum(branch.ike_sas > 0 for branch in status.peers)
        peers.add_metric(["connected"], connected)
        peers.add_metric(["absent"], len(status.peers) - connected)
    yield peers


def _bundles(status: Status) -> Iterator[Metric]:
    up, active = _gauge("bundle_up"), _gauge("bundle_active_path_info")
    moves = CounterMetricFamily(PREFIX + "bundle_moves", METRICS["bundle_moves"].about, labels=("bundle", "reason"))
    healthy = {path.path for path in status.paths if path.state == "up"}
    for bundle in status.bundles:
        up.add_metric([bundle.name], bundle.installed and bundle.active_path in healthy)
        if bundle.active_path is not None and bundle.installed:
            active.add_metric([bundle.name, bundle.active_path], 1)
        for reason, count in sorted(bundle.moves.items()):
            moves.add_metric([bundle.name, reason], count)
    yield from (up, active, moves)
    if status.outages is not None:
        yield _outages(status.outages)


def _outages(outages: Outages) -> Metric:
    bounds = (*map(str, OUTAGE_BOUNDS_S), "+Inf")
    family = HistogramMetricFamily(PREFIX + "outage_seconds", METRICS["outage_seconds"].about)
    family.add_metric([], list(zip(bounds, accumulate(outages.counts), strict=True)), outages.sum_s)
    return family


def _services(status: Status) -> Iterator[Metric]:
    """By bundle: pairs are too many for labels."""
    up = _gauge("service_up")
    for bundle in sorted({service.bundle for service in status.services}):
        states = [service.state for service in status.services if service.bundle == bundle]
        known = [state for state in states if state != "unknown"]
        if known:
            up.add_metric([bundle], known.count("answering") / len(known))
    yield up


def _pairs(status: Status) -> Iterator[Metric]:
    for name, counts in (("pair_bytes", status.pair_bytes), ("pair_packets", status.pair_packets)):
        if status.role == "branch":
            yield _counter(name, counts)
        elif counts:
            yield CounterMetricFamily(PREFIX + name, METRICS[name].about, value=sum(counts.values()))


def _targets(status: Status) -> Iterator[Metric]:
    in_sync = all(target.in_sync for target in status.targets) if status.targets else None
    yield _value("dataplane_in_sync", in_sync)
    yield _counter("drift", {target.name: target.drift_total for target in status.targets})
    success = _gauge("reconcile_last_success_timestamp_seconds")
    for target in status.targets:
        if target.last_success > 0:
            success.add_metric([target.name], target.last_success)
    yield success


def _gauge(name: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, METRICS[name].about, labels=METRICS[name].labels)


def _value(name: str, value: float | None) -> GaugeMetricFamily:
    family = _gauge(name)
    if value is not None:
        family.add_metric([], value)
    return family


def _counter(name: str, counts: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(PREFIX + name, METRICS[name].about, labels=METRICS[name].labels)
    for value, count in sorted(counts.items()):
        family.add_metric([value], count)
    return family
