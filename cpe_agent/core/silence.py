"""Into which traffic CHILD_SAs do we send and get nothing back, although their paths are well?

Pure. In: bundles with their active paths, charon's account, path health, and what earlier looks have seen. Out: the
CHILD_SAs (unique ids) that are to be made anew, and conditions. Theory of operation: probes prove a path, its IKE_SA
and the probe CHILD_SA; that the traffic CHILD_SA works at both ends shows only in its own bytes. charon is looked at
when anything happens, and every few seconds in any case, which is often enough here.

| bundle | a look sees                                                  | then                                        |
|--------|--------------------------------------------------------------|---------------------------------------------|
| any    | more bytes in; or another CHILD_SA; or the path is down      | heard: it starts anew                       |
| any    | bytes in, `TOLD_S` after it was made anew                    | how often it was made anew is forgotten     |
| heard  | more bytes out, none in                                      | asking, since then                          |
| asking | `SILENT_S` or longer after, still more bytes out and none in | made anew, once; then after twice the wait  |

Traffic that is one way by nature cannot be told from this. So the wait doubles up to an hour, and `BundleSilent` turns
from a fault into a remark once `REMADE_MAX` attempts have changed nothing: then it is not the CHILD_SA. When one has
helped, it says so for `TOLD_S`: somebody is to look at the hub that lost its SA.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec

from cpe_agent.core.health import State, Track
from cpe_agent.model.condition import Condition, Severity
from cpe_agent.model.dataplane import Bundle, Path, stem_of
from cpe_agent.model.observed import Charon, ChildSa

# Longer than a server takes to restart a connection; two looks fit in, however little happens.
SILENT_S = 20.0
SILENT_MAX_S = 3600.0
REMADE_MAX = 3
# Longer than the longest pause between two looks at the conditions.
TOLD_S = 60.0
# A few unanswered packets are nobody's fault: a ping to a host that is off.
SILENT_BYTES = 1000


class Ear(msgspec.Struct, frozen=True):
    """What the looks at a bundle's CHILD_SA have seen. `since`: when its bytes went out in vain for the first time
    (None: they did not), `sent`: how many had gone out by then. `remade`: how often of late, the last time at
    `remade_at`; `helped`: bytes have come in since; `doomed`: it is to be made anew, and still there."""

    child: int
    bytes_in: int
    bytes_out: int
    since: float | None = None
    sent: int = 0
    remade: int = 0
    remade_at: float = -math.inf
    helped: bool = False
    doomed: bool = False

    @property
    def wait_s(self) -> float:
        return float(min(SILENT_MAX_S, SILENT_S * 2.0 ** min(self.remade, 10)))


Ears = Mapping[str, Ear]


class Silence(msgspec.Struct, frozen=True):
    """New state, the CHILD_SAs to be made anew, and what to say of it."""

    ears: dict[str, Ear]
    remake: frozenset[int]
    conditions: tuple[Condition, ...]


def step(
    ears: Ears,
    bundles: Iterable[Bundle],
    active: Mapping[str, Path | None],
    charon: Charon,
    tracks: Mapping[Path, Track],
    now: float,
) -> Silence:
    """One look."""
    heard: dict[str, Ear] = {}
    remake: set[int] = set()
    found: list[Condition] = []
    for bundle in bundles:
        path = active.get(bundle.name)
        child = _newest(bundle, path, charon)
        before = ears.get(bundle.name)
        if path is None or child is None or path not in tracks or tracks[path].state is not State.UP:
            if before is not None:
                heard[bundle.name] = msgspec.structs.replace(before, since=None)
            continue
        ear = _listen(before, child, now)
        if ear.since is not None and now >= ear.since + ear.wait_s and child.bytes_out >= ear.sent + SILENT_BYTES:
            remade = ear.remade + 1
            ear = msgspec.structs.replace(ear, since=None, remade=remade, remade_at=now, helped=False, doomed=True)
        if ear.doomed:
            remake.add(child.unique_id)
        if ear.remade and not (ear.helped and now >= ear.remade_at + TOLD_S):
            found.append(_condition(bundle, path, ear))
        heard[bundle.name] = ear
    return Silence(heard, frozenset(remake), tuple(found))


def _newest(bundle: Bundle, path: Path | None, charon: Charon) -> ChildSa | None:
    """The CHILD_SA that carries the bundle on its active path."""
    children = [
        child
        for sa in charon.ike_sas
        if stem_of(sa.connection) == str(path)
        for child in sa.children
        if child.name == bundle.child and child.installed
    ]
    return max(children, key=lambda child: child.unique_id, default=None)


def _listen(before: Ear | None, child: ChildSa, now: float) -> Ear:
    if before is None or child.unique_id != before.child:
        return _heard(before, child, child.bytes_in > 0, now)
    if child.bytes_in > before.bytes_in:
        return _heard(before, child, True, now)
    since, sent = before.since, before.sent
    if since is None and child.bytes_out > before.bytes_out:
        since, sent = now, before.bytes_out
    return msgspec.structs.replace(before, bytes_out=child.bytes_out, since=since, sent=sent)


def _heard(before: Ear | None, child: ChildSa, bytes_in: bool, now: float) -> Ear:
    ear = Ear(child.unique_id, child.bytes_in, child.bytes_out)
    if before is None or not before.remade or (bytes_in and now >= before.remade_at + TOLD_S):
        return ear
    helped = bytes_in or before.helped
    return msgspec.structs.replace(ear, remade=before.remade, remade_at=before.remade_at, helped=helped)


def _condition(bundle: Bundle, path: Path, ear: Ear) -> Condition:
    if ear.helped:
        reason = (
            f"bytes went out on {path} and none came in; its CHILD_SA was made anew ({ear.remade} times), and all is "
            f"well again; if it comes back, look at {path.peer}: it loses SAs"
        )
        return Condition("BundleSilent", bundle.name, reason, Severity.OK)
    if ear.remade <= REMADE_MAX:
        reason = (
            f"bytes go out on {path} and none come in, though the path is well; its CHILD_SA was made anew "
            f"({ear.remade} times); look at {path.peer}: `cpe-agent verify` there, and the servers behind it"
        )
        return Condition("BundleSilent", bundle.name, reason)
    reason = (
        f"bytes go out on {path} and none come in; {ear.remade} new CHILD_SAs changed nothing: it is not the tunnel, "
        f"but one-way traffic, or servers behind {path.peer} that do not answer"
    )
    return Condition("BundleSilent", bundle.name, reason, Severity.OK)
