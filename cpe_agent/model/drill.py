"""What is told, and kept, of a drill?

A record is one line of JSON in `drills.jsonl`. Times are wall time in seconds, and the same moment as text.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Stream(msgspec.Struct, frozen=True):
    """The drill's own echoes to a bundle's probed server, through the bundle's tunnel."""

    bundle: str
    server: str
    sent: int
    lost: int
    outage_ms: float


class DrillMove(msgspec.Struct, frozen=True):
    """A bundle that left. Seconds from the taking out until its tunnel was on `to_path`, and from the putting back
    until it was on `from_path` again (None: it was not, within the time that failback takes)."""

    bundle: str
    from_path: str
    to_path: str | None
    left_s: float | None
    back_s: float | None


class DrillRecord(msgspec.Struct, frozen=True):
    """`outcome`: began, done, aborted (put back early), interrupted (the agent was stopped). `unmeasured`: bundles that
    moved and have no probed server, so that nothing is known of their packets. `previous`: SHA-256 of the line
    before."""

    number: int
    previous: str
    at: float
    date: str
    site: str
    kind: Literal["uplink", "hub"]
    name: str
    outcome: Literal["began", "done", "aborted", "interrupted"]
    document: str
    words: str = ""
    moves: tuple[DrillMove, ...] = ()
    staying: tuple[str, ...] = ()
    streams: tuple[Stream, ...] = ()
    unmeasured: tuple[str, ...] = ()


class DrillProgress(msgspec.Struct, frozen=True):
    """How far the drill is: what was said so far, and its last record once it is over."""

    running: bool
    said: tuple[str, ...] = ()
    record: DrillRecord | None = None
