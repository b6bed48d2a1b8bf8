"""What does Prometheus see of this site?

In: a `Status`. Out: the text exposition of the `cpe_agent_*` metrics, and an HTTP server that has one page, /metrics.
A metric is what the status says now and nothing is remembered here: counters are counted where things happen. What is
not known is left out, never 0: an alert must tell "no loss" from "not measured". A hub has thousands of pairs, so only
a branch exports them one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress

import h11
import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cpe_agent.model.condition import Status
from cpe_agent.ports import EdgeError

PREFIX = "cpe_agent_"
PAGE = b"/metrics"
# The firewall's reasons that begin so are limits on IKE_SA_INIT.
IKE_INIT = "ike_init_"
# Every Prometheus reads this version; the library's own constant moves on with the library.
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

# A scraper's request has a few hundred bytes.
REQUEST_MAX_BYTES = 8192
# From connect to close; Prometheus gives up after 10 s too, unless told otherwise.
EXCHANGE_S = 10.0
# A pair of scrapers and somebody with curl.
CONNECTIONS_MAX = 16
RECEIVE_BYTES = 4096


async def serve_metrics(
    host: str,
    port: int,
    status: Callable[[], Awaitable[Status]],
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; starts with the port in use (for `port` 0 the kernel's choice).

    Raises `EdgeError` if nothing can listen there. An `EdgeError` of `status` makes that one scrape fail (503).
    """
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        cause = f"nothing can listen on {host} port {port}: {error.strerror or error}"
        raise EdgeError("metrics", "listen", cause) from None
    limiter = trio.CapacityLimiter(CONNECTIONS_MAX)

    async def serve(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError), trio.move_on_after(EXCHANGE_S):
            async with stream:
                connection = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_MAX_BYTES)
                try:
                    limiter.acquire_nowait()
                except trio.WouldBlock:
                    await stream.send_all(_response(connection, 503, b"Too many scrapers at once.\n"))
                    return
                try:
                    await stream.send_all(await _respond(connection, stream, status))
                finally:
                    limiter.release()

    task_status.started(listeners[0].socket.getsockname()[1])
    await trio.serve_listeners(serve, listeners)


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
    yield from _paths(status)
    yield from _bundles(status)
    yield from _services(status)
    yield _counter("dropped_packets", "Packets dropped, by reason.", "reason", status.dropped_packets)
    limits = {reason: count for reason, count in status.dropped_packets.items() if reason.startswith(IKE_INIT)}
    init = {reason.removeprefix(IKE_INIT): count for reason, count in limits.items()}
    yield _counter("ike_init_dropped_packets", "IKE_SA_INIT dropped, by the limit that was reached.", "limit", init)
    if status.role == "branch":
        yield _counter("pair_bytes", "Bytes that a pair carried, both ways.", "pair", status.pair_bytes)
        yield _counter("pair_packets", "Packets that a pair carried, both ways.", "pair", status.pair_packets)
    yield from _targets(status)


def _site(status: Status) -> Iterator[Metric]:
    build = _gauge("build_info", "The agent that runs here.", "version", "backend")
    build.add_metric([status.agent_version, status.backend], 1)
    yield build

    document = _gauge("document_info", "The document in force.", "site", "role", "epoch", "version")
    if status.document_epoch is not None and status.document_version is not None:
        order = [str(status.document_epoch), str(status.document_version)]
        document.add_metric([status.site, status.role, *order], 1)
    yield document

    expiry = _gauge("document_expiry_timestamp_seconds", "When the document in force expires.")
    if status.document_expires is not None:
        expiry.add_metric([], status.document_expires)
    yield expiry

    certificate = _gauge("certificate_expiry_timestamp_seconds", "When this site's certificate expires.")
    if status.certificate_expires is not None:
        certificate.add_metric([], status.certificate_expires)
    yield certificate

    clock = _gauge("clock_trusted", "Whether the system's clock says no less than has certainly passed.")
    clock.add_metric([], status.clock_trusted)
    yield clock

    contact = _gauge("controller_last_contact_timestamp_seconds", "When the controller last answered.")
    if status.controller_last_contact is not None:
        contact.add_metric([], status.controller_last_contact)
    yield contact

    condition = _gauge("condition", "How many conditions of this type hold now.", "type")
    for type_, count in sorted(Counter(condition.type for condition in status.conditions).items()):
        condition.add_metric([type_], count)
    yield condition

    uplink_up = _gauge("uplink_up", "Whether the uplink can be used.", "uplink")
    for uplink in status.uplinks:
        uplink_up.add_metric([uplink.name], uplink.up)
    yield uplink_up
    yield from _uplinks(status)


def _uplinks(status: Status) -> Iterator[Metric]:
    counted = {uplink.name: uplink.bytes_total for uplink in status.uplinks if uplink.bytes_total is not None}
    yield _counter("uplink_bytes", "Bytes that the uplink's interface has carried, both ways.", "uplink", counted)
    remaining = _gauge("uplink_budget_remaining_bytes", "What is left of the uplink's monthly bytes.", "uplink")
    for uplink in status.uplinks:
        if uplink.remaining_bytes is not None:
            remaining.add_metric([uplink.name], uplink.remaining_bytes)
    yield remaining
    spent = {uplink.name: uplink.overhead_bytes for uplink in status.uplinks if uplink.overhead_bytes is not None}
    yield _counter("overhead_bytes", "Bytes for probes, IKE and keepalives, both ways.", "uplink", spent)


def _paths(status: Status) -> Iterator[Metric]:
    labels = ("path", "uplink", "peer", "endpoint")
    up = _gauge("path_up", "Whether the path's probes are answered.", *labels)
    rtt = _gauge("path_rtt_seconds", "Round-trip time of the path's probes.", *labels)
    jitter = _gauge("path_jitter_seconds", "Variation of that round-trip time.", *labels)
    loss = _gauge("path_loss_ratio", "Share of the path's probes that go unanswered, 0 to 1.", *labels)
    mtu = _gauge("path_mtu_bytes", "The largest packet that was found to pass inside the path.", *labels)
    ready: dict[str, bool] = {}
    ike_sas: Counter[str] = Counter()
    for path in status.paths:
        values = [path.path, path.uplink, path.peer, path.endpoint]
        if path.ike not in ("", "none"):
            ike_sas[path.ike.lower()] += 1
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
    for branch in status.peers:
        ike_sas["established"] += branch.ike_sas
    yield from (up, rtt, jitter, loss, mtu)

    peer_ready = _gauge("peer_ready", "Whether the peer says, on any path, that it will serve.", "peer")
    for peer, is_ready in sorted(ready.items()):
        peer_ready.add_metric([peer], is_ready)
    yield peer_ready

    sas = _gauge("ike_sas", "IKE_SAs of ours, by charon's state.", "state")
    for state, count in sorted(ike_sas.items()):
        sas.add_metric([state], count)
    yield sas


def _services(status: Status) -> Iterator[Metric]:
    """By bundle: pairs are too many for labels."""
    up = _gauge("service_up", "Whether probed servers of the bundle answer: how large a part of them.", "bundle")
    for bundle in sorted({service.bundle for service in status.services}):
        states = [service.state for service in status.services if service.bundle == bundle]
        known = [state for state in states if state != "unknown"]
        if known:
            up.add_metric([bundle], known.count("answering") / len(known))
    yield up


def _bundles(status: Status) -> Iterator[Metric]:
    active = _gauge("bundle_active_path_info", "The path that carries the bundle now.", "bundle", "path")
    # The reasons are listed in docs/ARCHITECTURE.md (Steering).
    moves = CounterMetricFamily(PREFIX + "bundle_moves", "Moves of the bundle, by reason.", labels=("bundle", "reason"))
    for bundle in status.bundles:
        if bundle.active_path is not None and bundle.installed:
            active.add_metric([bundle.name, bundle.active_path], 1)
        for reason, count in sorted(bundle.moves.items()):
            moves.add_metric([bundle.name, reason], count)
    yield active
    yield moves


def _targets(status: Status) -> Iterator[Metric]:
    in_sync = _gauge("dataplane_in_sync", "Whether kernel and charon hold exactly what the document asks for.")
    if status.targets:
        in_sync.add_metric([], all(target.in_sync for target in status.targets))
    yield in_sync
    drift = {target.name: target.drift_total for target in status.targets}
    yield _counter("drift", "How often a target was found altered by somebody else.", "target", drift)
    success = _gauge(
        "reconcile_last_success_timestamp_seconds",
        "When the target was last seen to.",
        "target",
    )
    for target in status.targets:
        if target.last_success > 0:
            success.add_metric([target.name], target.last_success)
    yield success


def _gauge(name: str, documentation: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, documentation, labels=labels)


def _counter(name: str, documentation: str, label: str, counts: Mapping[str, int]) -> CounterMetricFamily:
    """`name` without the `_total` that the exposition adds."""
    family = CounterMetricFamily(PREFIX + name, documentation, labels=(label,))
    for value, count in sorted(counts.items()):
        family.add_metric([value], count)
    return family


async def _respond(
    connection: h11.Connection, stream: trio.SocketStream, status: Callable[[], Awaitable[Status]]
) -> bytes:
    try:
        request = await _request(connection, stream)
        if request is None:
            return b""
        if request.method != b"GET":
            # Without words: an answer to HEAD must have no body.
            return _response(connection, 405, b"", (b"allow", b"GET"))
        if request.target.partition(b"?")[0] != PAGE:
            return _response(connection, 404, b"The metrics are at /metrics.\n")
        return _response(connection, 200, exposition(await status()), (b"content-type", CONTENT_TYPE))
    except h11.RemoteProtocolError as error:
        return _response(connection, error.error_status_hint, b"That is no HTTP request.\n")
    except EdgeError as error:
        return _response(connection, 503, f"{error}\n".encode())


async def _request(connection: h11.Connection, stream: trio.SocketStream) -> h11.Request | None:
    """The request; None if the client went away without one. A body, if any, is left unread."""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(RECEIVE_BYTES))
        elif isinstance(event, h11.Request):
            return event
        else:
            return None


def _response(connection: h11.Connection, code: int, body: bytes, *headers: tuple[bytes, bytes]) -> bytes:
    # One answer per connection: scrapes are seconds apart, and a kept one would only hold a place.
    fields = [*headers, (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    if not any(name == b"content-type" for name, _ in headers):
        fields.append((b"content-type", b"text/plain; charset=utf-8"))
    head = connection.send(h11.Response(status_code=code, headers=fields))
    sent = connection.send(h11.Data(data=body))
    return (head or b"") + (sent or b"") + (connection.send(h11.EndOfMessage()) or b"")
