"""Which paths have more than one IKE_SA here, and which of these are in use?

Pure; for the answering side, which does not know a dialler's paths by name: there a path is a peer and the selectors of
its probe CHILD_SA (the uplink's path address, the endpoint's probe and ready address). Two IKE_SAs of one path are a
replacement under way, a leftover, or two boxes with one key. Which, is told by what came in since: `core.stale` and
`core.duplicates` judge that from the record that is kept here, one step per look at charon.

Two boxes with one key do not sit side by side: the hub answers the newest CHILD_SA, so the other box finds its path
dead and dials anew, and then it is the first one's turn. So what is remembered across IKE_SAs that come and go is when
two of one path were both heard: a replacement is a single short time, two boxes are one after the other.

A path with one IKE_SA, which is nearly all of them, costs nothing but the look.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from cpe_agent.model.dataplane import PROBE_CHILD, stem_of
from cpe_agent.model.observed import Charon, IkeSa

# charon gives an exchange up after about 10 s, and a replacement is a few of them, one after the other.
OVERLAP_S = 30.0
# A branch replaces an IKE_SA at most once a minute (the document's `max_age_s`, less a tenth by chance). Two boxes meet
# more often: the unluckier one waits at most half a minute before it dials again.
MEET_AGAIN_S = 45.0
# The slowest pace of probes that a document can ask for is one in 600 s.
HEARD_S = 660.0
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


class Meeting(msgspec.Struct, frozen=True):
    """Two IKE_SAs of one path were both heard, from `since` until `last`; which two at last, and where from."""

    since: float
    last: float
    ids: tuple[int, int]
    hosts: tuple[str, str]


class Doubled(msgspec.Struct, frozen=True):
    """The record. `uses`: by path and unique id, of paths with several IKE_SAs now."""

    uses: Mapping[PathKey, Mapping[int, Use]] = {}
    meetings: Mapping[PathKey, Meeting] = {}


def step(doubled: Doubled, charon: Charon, now: float) -> Doubled:
    """The record after one more look."""
    uses: dict[PathKey, dict[int, Use]] = {}
    meetings = {key: meeting for key, meeting in doubled.meetings.items() if now - meeting.last <= HEARD_S}
    for key, sas in by_path(charon.ike_sas).items():
        if len(sas) < 2:
            continue
        before = doubled.uses.get(key, {})
        uses[key] = {sa.unique_id: _used(before.get(sa.unique_id), sa, now) for sa in sas}
        met = _met(sas, uses[key], meetings.get(key))
        if met is not None:
            meetings[key] = met
    return Doubled(uses, meetings)


def by_path(ike_sas: Iterable[IkeSa]) -> dict[PathKey, list[IkeSa]]:
    """Established IKE_SAs that were dialled by the other end. One without a probe CHILD_SA is of no known path."""
    found: dict[PathKey, list[IkeSa]] = {}
    for sa in ike_sas:
        if sa.initiator or not sa.established or sa.state == "REKEYED":
            continue
        for child in sa.children:
            if child.name == PROBE_CHILD and child.installed:
                key = PathKey(stem_of(sa.connection), child.remote_ts, child.local_ts)
                found.setdefault(key, []).append(sa)
                break
    return found


def _met(sas: list[IkeSa], uses: Mapping[int, Use], before: Meeting | None) -> Meeting | None:
    """The meeting as it is now; None if no two were heard since both are there."""
    heard = sorted(sas, key=lambda sa: uses[sa.unique_id].probed_at or -1.0)[-2:]
    both = [uses[sa.unique_id] for sa in heard]
    probed = [use.probed_at for use in both if use.probed_at is not None]
    if len(probed) < 2 or min(probed) <= max(use.since for use in both):
        return before
    at = min(probed)
    one, other = sorted((sa.unique_id, sa.remote_host) for sa in heard)
    ids, hosts = (one[0], other[0]), (one[1], other[1])
    if before is None or (ids != before.ids and at - before.last > MEET_AGAIN_S):
        return Meeting(at, at, ids, hosts)
    return Meeting(before.since, max(at, before.last), ids, hosts)


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
