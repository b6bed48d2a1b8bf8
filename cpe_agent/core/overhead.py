"""What has the agent itself spent on each uplink?

Pure. In: what charon and nftables have counted. Out: bytes since the agent started, by uplink, both directions, as they
are on the wire (from the outer IP header on; a carrier charges the same).

| counted                                                    | how                                                     |
|------------------------------------------------------------|---------------------------------------------------------|
| probes, path-MTU probes and their answers                  | charon's counts of each path's probe CHILD_SA, which    |
|                                                            | has nothing else in it, and `ESP_BYTES` for each packet |
| IKE (setting up, rekeying, DPD) and NAT keepalives         | nftables, by interface: UDP 4500 that is no ESP         |

Not counted are the controller's channel, DNS and NTP: they go by any uplink, as the host's own traffic does, and are in
`uplink_bytes_total` like all else. Nor are the bytes of a CHILD_SA between charon's last answer and its end: some
seconds at most. A hub's answering paths say nothing of the uplink they came by; they are counted where it has only one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from cpe_agent.model.dataplane import IKE_BYTES_IN, IKE_BYTES_OUT, PROBE_CHILD, Path, stem_of
from cpe_agent.model.observed import Charon

# Around an inner packet: IPv4 20, UDP 8, SPI and sequence 8, IV 8, trailer 2, ICV 16. Padding to four bytes is within a
# byte and a half on average, and an IPv6 carrier has 20 more.
ESP_BYTES = 62

# (uplink, what is counted there).
Counter = tuple[str, str]


class Overhead(msgspec.Struct, frozen=True):
    """Bytes by uplink, and where each counter stood. `begun`: counters that were there at first are not ours to add."""

    by_uplink: dict[str, int] = {}
    stood: dict[Counter, int] = {}
    begun: bool = False


def step(overhead: Overhead, counters: Mapping[Counter, int]) -> Overhead:
    """Add what `counters` have grown by. One that is new or has fallen began at 0. One that is gone is forgotten."""
    if not overhead.begun:
        return Overhead(stood=dict(counters), begun=True)
    by_uplink = dict(overhead.by_uplink)
    for key, count in counters.items():
        before = overhead.stood.get(key, 0)
        by_uplink[key[0]] = by_uplink.get(key[0], 0) + count - (before if count >= before else 0)
    return Overhead(by_uplink, dict(counters), True)


def of_probes(charon: Charon, uplinks: Iterable[str]) -> dict[Counter, int]:
    """What each probe CHILD_SA has carried, on the wire."""
    names = tuple(uplinks)
    found: dict[Counter, int] = {}
    for sa in charon.ike_sas:
        path = Path.parse(stem_of(sa.connection))
        uplink = path.uplink if path else names[0] if len(names) == 1 else None
        for child in sa.children:
            if uplink is not None and uplink in names and child.name == PROBE_CHILD:
                packets = child.packets_in + child.packets_out
                found[uplink, f"child {child.unique_id}"] = child.bytes_in + child.bytes_out + packets * ESP_BYTES
    return found


def of_ike(counters: Mapping[str, tuple[int, int]], bound: Mapping[str, str]) -> dict[Counter, int]:
    """What nftables has counted of IKE. `bound`: uplink -> interface."""
    return {
        (uplink, f"{name} {interface}"): counters[f"{name} {interface}"][1]
        for uplink, interface in bound.items()
        for name in (IKE_BYTES_IN, IKE_BYTES_OUT)
        if f"{name} {interface}" in counters
    }
