"""Which paths have more than one IKE_SA here, and which of these are in use?

Pure; for the answering side, which does not know a dialler's paths by name: there a path is a peer and the selectors of
its probe CHILD_SA (the uplink's path address, the endpoint's probe and ready address). Two IKE_SAs of one path are a
replacement under way, a leftover, or two boxes with one key. Which, is told by what came in since: `core.stale` and
`core.duplicates` judge that from the record that is kept here, one step per look at charon.

A path with one IKE_SA, which is nearly all of them, costs nothing but the look.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from cpe_agent.model.dataplane import PROBE_CHILD, Path, stem_of
from cpe_agent.model.observed import Charon, IkeSa

# charon gives an exchange up after about 10 s, and a replacement is a few of them, one after the other.
OVERLAP_S = 30.0
# So many looks are remembered at which an IKE_SA had received more.
REMEMBERED = 3


class PathKey(msgspec.Struct, frozen=True, order=True):
    """A path as its answering side knows it. Selectors as charon prints them."""

    peer: str
    path_address: tuple[str, ...]
    answering: tuple[str, ...]


class Use(msgspec.Struct, frozen=True):
    """What an IKE_SA was seen to carry since it was one of several: since when, when it last carried anything, the last
    looks at which it had received more, and when more probes had come in it (None: never)."""

    since: float
    counted: dict[int, tuple[int, int]]  # child -> bytes in and out
    carried_at: float
    received_at: tuple[float, ...] = ()
    probed_at: float | None = None


Doubled = Mapping[PathKey, Mapping[int, Use]]  # by the IKE_SAs' unique ids


def step(doubled: Doubled, charon: Charon, now: float) -> Doubled:
    """The record after one more look. Paths with one IKE_SA are not in it."""
    return {
        key: {sa.unique_id: _used(doubled.get(key, {}).get(sa.unique_id), sa, now) for sa in sas}
        for key, sas in by_path(charon.ike_sas).items()
        if len(sas) > 1
    }


def by_path(ike_sas: Iterable[IkeSa]) -> dict[PathKey, list[IkeSa]]:
    """Established IKE_SAs that were dialled by the other end. One without a probe CHILD_SA is of no known path."""
    found: dict[PathKey, list[IkeSa]] = {}
    for sa in ike_sas:
        if sa.initiator or not sa.established or sa.state == "REKEYED":
            continue
        probe = next((child for child in sa.children if child.name == PROBE_CHILD and child.installed), None)
        stem = stem_of(sa.connection)
        if probe is not None and Path.parse(stem) is None:
            found.setdefault(PathKey(stem, probe.remote_ts, probe.local_ts), []).append(sa)
    return found


def _used(use: Use | None, sa: IkeSa, now: float) -> Use:
    counted = {child.unique_id: (child.bytes_in, child.bytes_out) for child in sa.children}
    if use is None:
        return Use(now, counted, now)
    carried = received = probed = False
    for child in sa.children:
        # A child that is new (rekeyed, moved) begins to count at nothing.
        before_in, before_out = use.counted.get(child.unique_id, (0, 0))
        more = child.bytes_in > before_in
        carried = carried or more or child.bytes_out > before_out
        received = received or more
        probed = probed or (more and child.name == PROBE_CHILD)
    return Use(
        use.since,
        counted,
        now if carried else use.carried_at,
        (*use.received_at, now)[-REMEMBERED:] if received else use.received_at,
        now if probed else use.probed_at,
    )
