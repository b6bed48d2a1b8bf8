"""How healthy is a path, by what its probes say?

Pure: one `Track` per path, stepped with events, each with its time. Theory of operation: a path is probed in rounds;
a round is answered when an echo of it comes back, and missed when none has come within the path's own patience
(smoothed round trip plus four deviations, at least 50 ms, so that a slow path is not a dead one). Only answers keep a
path up. What is known for certain (no IKE_SA, no link) counts at once.

| state   | event                                     | new state | why |
|---------|-------------------------------------------|-----------|-----|
| unknown | a round answered                          | up        | it has not failed yet: no need to earn trust back |
| unknown | `misses` rounds missed in a row           | down      | fell: its IKE_SA is up and nothing comes through |
| up      | `misses` rounds missed in a row           | down      | fell: `stable_since` starts anew |
| up      | IKE_SA gone, link lost                    | down      | fell |
| down    | `RECOVER` rounds answered in a row        | up        | hysteresis |
| unknown | IKE_SA gone                               | unknown   | it is still being dialled for the first time |
| any     | answer to a round already counted missed  | as above  | late is not lost: the patience grows with it |

A path that stays down with an IKE_SA that charon still believes in is dialled anew (`dead`) after `REDIAL_AFTER_S`, so
that a short gap of a single uplink heals by itself; the wait doubles while redialling does not help.
"""

from __future__ import annotations

import math
from enum import Enum

import msgspec

RECOVER = 3
WINDOW = 50
PATIENCE_MIN_S = 0.05
PATIENCE_MAX_S = 3.0
PATIENCE_FIRST_S = 1.0
REDIAL_AFTER_S = 1.0
REDIAL_AFTER_MAX_S = 30.0


class State(Enum):
    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"


class Round(msgspec.Struct, frozen=True):
    """A round of probes under way: when it was sent, and what has been answered. Every round asks the ready address."""

    sent_at: float
    alive: bool = False
    ready: bool = False
    missed: bool = False


class Track(msgspec.Struct, frozen=True):
    """All that is known of one path. `since`: of the present state; `stable_since`: of the last fall (-inf: never)."""

    misses: int
    state: State = State.UNKNOWN
    since: float = 0.0
    stable_since: float = -math.inf
    reason: str = ""
    ike: int | None = None
    ike_since: float = 0.0
    link_up: bool = True
    redials: int = 0
    ready: bool = False
    unready_rounds: int = 0
    missed_in_row: int = 0
    last_answered: int = 0
    answered_in_row: int = 0
    srtt_s: float | None = None
    rttvar_s: float = 0.0
    window: tuple[bool, ...] = ()
    rounds: dict[int, Round] = {}

    @property
    def patience_s(self) -> float:
        if self.srtt_s is None:
            return PATIENCE_FIRST_S
        return min(PATIENCE_MAX_S, max(PATIENCE_MIN_S, self.srtt_s + 4 * self.rttvar_s))

    @property
    def loss(self) -> float:
        """Share of the last rounds that was missed, 0 to 1."""
        return 1 - sum(self.window) / len(self.window) if self.window else 0.0

    @property
    def redial_after_s(self) -> float:
        return float(min(REDIAL_AFTER_MAX_S, REDIAL_AFTER_S * 2 ** min(self.redials, 10)))

    def usable(self) -> bool:
        """May a bundle be moved here?"""
        return self.state is State.UP and self.ready

    def next_deadline(self) -> float:
        """When `tick` has something to say at the earliest; inf if never."""
        open_rounds = [r.sent_at + self.patience_s for r in self.rounds.values() if not r.alive and not r.missed]
        deadlines = [*open_rounds]
        if self.state is State.DOWN and self.ike is not None:
            deadlines.append(max(self.since, self.ike_since) + self.redial_after_s)
        return min(deadlines, default=math.inf)


def sent(track: Track, sequence: int, now: float) -> Track:
    """A round of probes has left. Rounds older than the longest patience are forgotten."""
    rounds = {n: r for n, r in track.rounds.items() if now - r.sent_at <= PATIENCE_MAX_S + 1}
    rounds[sequence] = Round(now)
    return msgspec.structs.replace(track, rounds=rounds)


def answered(track: Track, sequence: int, from_ready: bool, rtt_s: float, now: float) -> Track:
    """An echo came back."""
    found = track.rounds.get(sequence)
    if found is None:
        return track
    first = not found.alive
    rounds = dict(track.rounds)
    rounds[sequence] = Round(found.sent_at, True, found.ready or from_ready, found.missed)
    track = msgspec.structs.replace(track, rounds=rounds)
    if from_ready:
        track = msgspec.structs.replace(track, ready=True, unready_rounds=0)
    if not first:
        return track
    if track.srtt_s is None:
        srtt, rttvar = rtt_s, rtt_s / 2
    else:
        # Jacobson's estimator, as TCP has it (RFC 6298).
        rttvar = 0.75 * track.rttvar_s + 0.25 * abs(track.srtt_s - rtt_s)
        srtt = 0.875 * track.srtt_s + 0.125 * rtt_s
    window = track.window if found.missed else (*track.window, True)[-WINDOW:]
    track = msgspec.structs.replace(
        track,
        srtt_s=srtt,
        rttvar_s=rttvar,
        window=window,
        missed_in_row=0,
        last_answered=max(sequence, track.last_answered),
        answered_in_row=track.answered_in_row + 1,
    )
    risen = track.state is State.UNKNOWN or (track.state is State.DOWN and track.answered_in_row >= RECOVER)
    if risen and track.ike is not None and track.link_up:
        return msgspec.structs.replace(track, state=State.UP, since=now, reason="", redials=0)
    return track


def tick(track: Track, now: float) -> Track:
    """Judge the rounds whose time has run out."""
    rounds = dict(track.rounds)
    missed = 0
    in_row = track.missed_in_row
    unready = track.unready_rounds
    for sequence, round_ in track.rounds.items():
        if now < round_.sent_at + track.patience_s:
            continue
        if not round_.alive and not round_.missed:
            rounds[sequence] = msgspec.structs.replace(round_, missed=True)
            missed += 1
            # One that was sent before the last answered round says nothing of now, however late its time runs out.
            in_row += sequence > track.last_answered
        elif round_.alive:
            del rounds[sequence]
            unready += not round_.ready
    track = msgspec.structs.replace(track, rounds=rounds, unready_rounds=unready)
    if track.unready_rounds >= track.misses and track.ready:
        track = msgspec.structs.replace(track, ready=False)
    if not missed:
        return track
    track = msgspec.structs.replace(
        track,
        window=(*track.window, *[False] * missed)[-WINDOW:],
        missed_in_row=in_row,
        answered_in_row=0,
    )
    if track.missed_in_row >= track.misses and track.state is not State.DOWN:
        return _fall(track, "probes", now)
    return track


def facts(track: Track, ike: int | None, link_up: bool, now: float) -> Track:
    """What charon and the kernel know for certain: the path's established IKE_SA (None: none) and its link."""
    if ike != track.ike:
        track = msgspec.structs.replace(track, ike=ike, ike_since=now, missed_in_row=0, answered_in_row=0, rounds={})
    track = msgspec.structs.replace(track, link_up=link_up)
    if track.state is State.UP:
        if not link_up:
            return _fall(track, "link", now)
        if ike is None:
            return _fall(track, "ike", now)
    return track


def dead(track: Track, now: float) -> bool:
    """Is the path's IKE_SA to be replaced rather than waited for?"""
    return (
        track.state is State.DOWN
        and track.ike is not None
        and now >= max(track.since, track.ike_since) + track.redial_after_s
    )


def redialled(track: Track) -> Track:
    """Note that its IKE_SA was given up: the next one gets more time."""
    return msgspec.structs.replace(track, redials=track.redials + 1)


def _fall(track: Track, reason: str, now: float) -> Track:
    return msgspec.structs.replace(
        track, state=State.DOWN, since=now, stable_since=now, reason=reason, ready=False, answered_in_row=0
    )
