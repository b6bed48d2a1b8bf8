"""Which metrics are there, of what, and how many series do they make?

`METRICS` is the only place where a metric is named: `exposition` makes no other, a test holds docs/METRICS.md to it,
and another one the alert rules and dashboards to that page.

`python -m cpe_agent.edge.metric_table > docs/METRICS.md` writes the page anew.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import msgspec

PREFIX = "cpe_agent_"


class Described(msgspec.Struct, frozen=True):
    """A metric: its kind, its labels, what it says (one sentence)."""

    kind: Literal["gauge", "counter", "histogram"]
    about: str
    labels: tuple[str, ...] = ()

    def sample_name(self, name: str) -> str:
        """As Prometheus has it: the exposition adds `_total` to counters."""
        return f"{PREFIX}{name}_total" if self.kind == "counter" else f"{PREFIX}{name}"


_PATH = ("path", "uplink", "peer", "endpoint")

# Without the prefix, and counters without `_total`. In the order of the page.
METRICS: Mapping[str, Described] = MappingProxyType(
    {
        "build_info": Described("gauge", "The agent that runs here.", ("version", "backend")),
        "start_timestamp_seconds": Described("gauge", "When the agent started."),
        "document_info": Described("gauge", "The document in force.", ("site", "role", "epoch", "version")),
        "document_issued_timestamp_seconds": Described(
            "gauge", "When the document in force was issued: its age is the time since."
        ),
        "document_expiry_timestamp_seconds": Described("gauge", "When the document in force expires."),
        "certificate_expiry_timestamp_seconds": Described("gauge", "When this site's certificate expires."),
        "clock_trusted": Described("gauge", "Whether the system's clock says no less than has certainly passed."),
        "controller_last_contact_timestamp_seconds": Described("gauge", "When the controller last answered."),
        "condition": Described("gauge", "How many conditions of this type hold now.", ("type",)),
        "uplink_up": Described("gauge", "Whether the uplink can be used.", ("uplink",)),
        "uplink_bytes": Described("counter", "Bytes that the uplink's interface has carried, both ways.", ("uplink",)),
        "uplink_budget_remaining_bytes": Described("gauge", "What is left of the uplink's monthly bytes.", ("uplink",)),
        "overhead_bytes": Described("counter", "Bytes for probes, IKE and keepalives, both ways.", ("uplink",)),
        "path_up": Described("gauge", "Whether the path's probes are answered.", _PATH),
        "path_rtt_seconds": Described("gauge", "Round-trip time of the path's probes.", _PATH),
        "path_jitter_seconds": Described("gauge", "Variation of that round-trip time.", _PATH),
        "path_loss_ratio": Described("gauge", "Share of the path's probes that go unanswered, 0 to 1.", _PATH),
        "path_mtu_bytes": Described("gauge", "The largest packet that was found to pass inside the path.", _PATH),
        "peer_ready": Described("gauge", "Whether the peer says, on any path, that it will serve.", ("peer",)),
        "peers": Described("gauge", "On a hub: branches with an IKE_SA here (connected), and without.", ("state",)),
        "ike_sas": Described("gauge", "IKE_SAs of ours, by charon's state.", ("state",)),
        "ike_init_dropped_packets": Described(
            "counter", "IKE_SA_INIT dropped, by the limit that was reached.", ("limit",)
        ),
        "bundle_up": Described("gauge", "Whether a path that is up carries the bundle.", ("bundle",)),
        "bundle_active_path_info": Described("gauge", "The path that carries the bundle now.", ("bundle", "path")),
        # The reasons are listed in docs/ARCHITECTURE.md (Steering).
        "bundle_moves": Described("counter", "Moves of the bundle, by reason.", ("bundle", "reason")),
        "outage_seconds": Described("histogram", "How long bundles were without a path, of outages that have ended."),
        "service_up": Described("gauge", "How large a part of the bundle's probed servers answers.", ("bundle",)),
        "pair_bytes": Described(
            "counter", "Bytes that a pair carried, both ways; on a hub of all pairs together.", ("pair",)
        ),
        "pair_packets": Described(
            "counter", "Packets that a pair carried, both ways; on a hub of all pairs together.", ("pair",)
        ),
        "dropped_packets": Described("counter", "Packets dropped, by reason.", ("reason",)),
        "dataplane_in_sync": Described("gauge", "Whether kernel and charon hold exactly what the document asks for."),
        "drift": Described("counter", "How often a target was found altered by somebody else.", ("target",)),
        "reconcile_last_success_timestamp_seconds": Described("gauge", "When the target was seen to.", ("target",)),
    }
)  # fmt: skip


def metrics_page() -> str:
    """docs/METRICS.md."""
    rows = "".join(
        f"| `{metric.sample_name(name)}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels)} "
        f"| {metric.about} |\n"
        for name, metric in METRICS.items()
    )
    return _HEAD + rows + _TAIL


_HEAD = """\
# What the agent tells Prometheus

Written by `python -m cpe_agent.edge.metric_table` from the table in `cpe_agent/edge/metric_table.py`.

The page is `/metrics` at the address that `metrics` in agent.yaml names: `127.0.0.1:9273` if it names none. To be asked
from elsewhere, write an address of the LAN or the site's overlay address (`site_address`) there, with port 9273, and
list who asks in `management: {metrics_from: [...]}` of network.yaml; over the overlay a permit to `{site: ...}` for tcp
9273 is needed too, because a Prometheus behind a hub is a host like any other.

Times are UNIX times in seconds: an age is `time() - ...`, what is left `... - time()`. What is not known is left out,
never 0, so that an alert can tell "no loss" from "not measured". Counters start at 0 with the agent, but for the
firewall's (pairs, drops), which live as long as its table does, and `uplink_bytes`, which outlives reboots.

| metric | kind | labels | what it says |
|---|---|---|---|
"""
_TAIL = """
## How many series

No label names a branch, a pair or an address on a hub, so a hub of 2,000 branches and 10,000 pairs has fewer than 200
series; a test counts them. A branch has five for each path, three and its reasons to move for each bundle, and two for
each pair. What varies otherwise (`reason`, `type`, `state`, `limit`, `target`) comes from short fixed lists.

## What to do with them

`configs/prometheus` has alert rules, each with what to do in its `runbook`, and a Grafana dashboard. They also use the
controller's metrics (`cpe_controller_*`, by default at `127.0.0.1:9274`):

| metric | what it says |
|---|---|
| `cpe_controller_sites{state}` | sites by state |
| `cpe_controller_silent_sites` | sites of the network that say nothing |
| `cpe_controller_certificates_near_expiry` | sites whose certificate ends within 50 days |
| `cpe_controller_certificate_expiry_timestamp_seconds{certificate}` | when the controller's own certificates end |
| `cpe_controller_streams` | streams that sites hold now |
| `cpe_controller_rollout{phase}` | 1 for what the rollout is at: running, paused, halted |
| `cpe_controller_rollout_sites{is}` | sites of the rollout, by progress |
| `cpe_controller_build_info{version}` | its version |
"""

if __name__ == "__main__":
    sys.stdout.write(metrics_page())
