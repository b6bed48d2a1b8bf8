"""May this be taken out for a drill, what came of it, and does a record still say what was written?

Pure. A drill takes an uplink, or a hub, out of use: its bundles move away make-before-break, and back. `plan` says
which, or refuses. `measured` makes figures of the echoes that were sent and answered meanwhile. Records are lines of
JSON; each holds the SHA-256 of the line before it, so `check` (or an auditor with sha256sum) sees whether one was
changed, taken away or put in between. A drill writes two: that it began, and how it ended; who finds the first without
the second knows that the agent was stopped in between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import msgspec

from cpe_agent.core.health import Track
from cpe_agent.model.dataplane import Bundle, Path
from cpe_agent.model.drill import DrillRecord, Stream

Kind = Literal["uplink", "hub"]
FIRST = "0" * 64


class Refused(Exception):
    """The drill would cost traffic, or there is nothing to drill; the words say why, and what to do."""


class Outage(msgspec.Struct, frozen=True):
    """What is taken out; the bundles that leave; those that stay because nothing else is there to serve them."""

    paths: frozenset[Path]
    moving: tuple[str, ...]
    staying: tuple[str, ...]


def plan(
    kind: Kind,
    name: str,
    bundles: Sequence[Bundle],
    tracks: Mapping[Path, Track],
    active: Mapping[str, Path | None],
    failing: Mapping[str, frozenset[str]],
) -> Outage:
    """What a drill of this uplink or hub does. Raises `Refused`."""
    known = sorted({path.uplink if kind == "uplink" else path.peer for path in tracks})
    if name not in known:
        raise Refused(f"there is no {kind} {name!r} with a path; there is {', '.join(known) or 'none'}")
    out = frozenset(path for path in tracks if (path.uplink if kind == "uplink" else path.peer) == name)
    # One that is down, or still being dialled, says nothing of its hub.
    refusing = {path.peer for path, track in tracks.items() if track.refuses()}
    moving, staying, stuck = [], [], []
    for bundle in bundles:
        present = active.get(bundle.name)
        if present is None:
            raise Refused(f"bundle {bundle.name} is not carried by any path now: mend that first")
        if present not in out:
            continue
        elsewhere = [path for path in bundle.paths if path not in out]
        if kind == "hub" and not elsewhere:
            staying.append(bundle.name)
            continue
        avoided = failing.get(bundle.name, frozenset()) | refusing
        if any(path in tracks and tracks[path].usable() and path.peer not in avoided for path in elsewhere):
            moving.append(bundle.name)
        else:
            tried = ", ".join(map(str, elsewhere)) or "it has no other path at all"
            stuck.append(f"bundle {bundle.name} has no healthy alternative ({tried})")
    if stuck:
        raise Refused("; ".join(stuck))
    if not moving:
        only = f": {', '.join(staying)} can be served by {name} alone" if staying else ""
        raise Refused(f"no traffic is on {kind} {name} that could move{only}")
    return Outage(out, tuple(moving), tuple(staying))


def measured(name: str, asked: str, sent: Sequence[float], answered: Mapping[int, float]) -> Stream:
    """`sent`: when each echo left; `answered`: number -> when its answer came. The outage is the longest time between
    two answered echoes, by when they left, less the usual distance."""
    lost = len(sent) - len(answered)
    came = [at for number, at in enumerate(sent) if number in answered]
    usual = (sent[-1] - sent[0]) / (len(sent) - 1) if len(sent) > 1 else 0.0
    edges = [sent[0], *came, sent[-1]] if sent else []
    gap = max((after - before for before, after in pairwise(edges)), default=0.0)
    outage_ms = round(max(0.0, gap - usual) * 1000, 1) if lost else 0.0
    return Stream(name, asked, len(sent), lost, outage_ms)


def line(record: DrillRecord) -> bytes:
    """As it is written: one line, without its end."""
    return msgspec.json.encode(record)


def digest(written: bytes) -> str:
    return hashlib.sha256(written).hexdigest()


def following(lines: Sequence[bytes]) -> tuple[int, str]:
    """(number, previous) of the record that comes after these."""
    return len(lines) + 1, digest(lines[-1]) if lines else FIRST


def records(lines: Sequence[bytes]) -> tuple[DrillRecord, ...]:
    """Those that can be read."""
    found = []
    for written in lines:
        try:
            found.append(msgspec.json.decode(written, type=DrillRecord))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
    return tuple(found)


def check(lines: Sequence[bytes]) -> str:
    """ "" if the chain holds; else what is wrong, and where."""
    previous = FIRST
    for number, written in enumerate(lines, start=1):
        try:
            record = msgspec.json.decode(written, type=DrillRecord)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            return f"line {number} is no record: {error}"
        if record.number != number:
            return f"line {number} says that it is record {record.number}: one was taken away or put in"
        if record.previous != previous:
            return f"line {number} does not follow from the line before it: one of them was changed"
        previous = digest(written)
    return ""


def unfinished(lines: Sequence[bytes]) -> DrillRecord | None:
    """The drill that began and never ended, if the last record is of one."""
    found = records(lines[-1:])
    return found[0] if found and found[0].outcome == "began" else None
