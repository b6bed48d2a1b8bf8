"""How healthy is a path, by what its probes say?

Pure: one `Track` per path, stepped with events, each with its time. Theory of operation: a path is probed in rounds;
a round is answered when an echo of it comes back, and missed when none has come within the path's own patience
(smoothed round trip plus four deviations, at least 50 ms, so that a slow path is not a dead one). Only answers keep a
path up. What is known for certain (no IKE_SA, no link, no address, no gateway) counts at once.

| state   | event                                    | new state | why                                               |
|---------|------------------------------------------|-----------|---------------------------------------------------|
| unknown | a round answered                         | up        | it has not failed yet: no need to earn trust back |
| unknown | `misses` rounds missed in a row          | down      | fell: its IKE_SA is up and nothing comes through  |
| up      | `misses` rounds missed in a row          | down      | fell: `stable_since` anew, `falls` counts one     |
| up      | IKE_SA gone, link lost                   | down      | fell; but charon's late word is no second fall    |
| down    | `RECOVER` rounds answered in a row       | up        | hysteresis                                        |
| down    | a round answered in a new IKE_SA         | up        | its handshake was two round trips                 |
| unknown | IKE_SA gone                              | unknown   | it is still being dialled for the first time      |
| any     | answer to a round already counted missed | as above  | late is not lost: the patience grows with it      |
| any     | an extra round missed                    | no change | it measures a path in doubt: loss only            |

How good an up path is, `core.quality` says by the window of its rounds (`core.window`); how long one that fell must be
well before traffic returns, `hold_s` by its falls (`core.damping`).

A modem that has been idle wakes up first: the first answers come a second or three late. A round that an up path is
sent after `IDLE_S` of silence, and those sent until the modem has answered, have until `WAKE_S` after the first of
them. What comes later than the path's own patience then says that the path is alive, and nothing of its latency. So a
path that died while it was idle is found `WAKE_S` and `misses` - 1 quick rounds after it was asked.

A path that stays down with an IKE_SA that charon still believes in is dialled anew (`dead`) after `REDIAL_AFTER_S`, so
that a short gap of a single uplink heals by itself; the wait doubles while redialling does not help. The first time it
is `AWAITED_S` for a path that carries nothing while traffic has nowhere to go: its hub may have lost the IKE_SA (its
charon was restarted) and answers to a new one alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from enum import Enum

import msgspec

from cpe_agent.core import damping, window
from cpe_agent.core.damping import Damping
from cpe_agent.core.window import Figures, Sample
from cpe_agent.model.dataplane import Bundle, Path

RECOVER = 3
PATIENCE_MIN_S = 0.05
PATIENCE_MAX_S = 3.0
PATIENCE_FIRST_S = 1.0
# Carriers put a modem to sleep after some ten seconds, the hasty ones after five.
IDLE_S = 5.0
# Waking one takes a second or three.
WAKE_S = 4.0
# After this an answer is of no use any more.
FORGET_S = WAKE_S + 1
# charon gives an exchange up after about 10 s: an IKE_SA that goes so soon after a fall went with it.
LATE_WORD_S = 30.0
REDIAL_AFTER_S = 1.0
# What is only late has come by then.
AWAITED_S = 0.3
REDIAL_AFTER_MAX_S = 30.0


class State(Enum):
    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"


class Round(msgspec.Struct, frozen=True):
    """A round of probes under way: when it was sent, and what has been answered. Every round asks the ready address.
    `until`: it is not judged before, because a modem may be waking up."""

    sent_at: float
    alive: bool = False
    ready: bool = False
    missed: bool = False
    extra: bool = False
    until: float = -math.inf


class Track(msgspec.Struct, frozen=True):
    """All that is known of one path. `since`: of the present state; `stable_since`: of the last fall (-inf: never);
    `ready_since`: when its peer was willing again after it had not been (-inf: it always was). `missed_at`: when a
    round was last found missed, an extra one or not. `rounds`: those that an answer may still come to."""

    misses: int
    state: State = State.UNKNOWN
    since: float = 0.0
    stable_since: float = -math.inf
    reason: str = ""
    ike: int | None = None
    ike_since: float = 0.0
    link_up: bool = True
    redials: int = 0
    falls: Damping = Damping()
    ready: bool = False
    ready_since: float = -math.inf
    unready_rounds: int = 0
    missed_in_row: int = 0
    missed_at: float = -math.inf
    last_answered: int = 0
    answered_in_row: int = 0
    srtt_s: float | None = None
    rttvar_s: float = 0.0
    sent_at: float = -math.inf
    waking_until: float = -math.inf
    span_s: float = window.WINDOW_S
    window: tuple[Sample, ...] = ()
    rounds: dict[int, Round] = {}

    @property
    def patience_s(self) -> float:
        if self.srtt_s is None:
            return PATIENCE_FIRST_S
        return min(PATIENCE_MAX_S, max(PATIENCE_MIN_S, self.srtt_s + 4 * self.rttvar_s))

    @property
    def redial_after_s(self) -> float:
        return float(min(REDIAL_AFTER_MAX_S, REDIAL_AFTER_S * 2 ** min(self.redials, 10)))

    def usable(self) -> bool:
        """May a bundle be moved here?"""
        return self.state is State.UP and self.ready

    def refuses(self) -> bool:
        """Is the peer not willing to serve? Its ready address must have had its chances: after a restart it was not
        asked yet, and that moves nothing."""
        return self.state is State.UP and not self.ready and self.unready_rounds >= self.misses

    def verdict(self) -> tuple[State, bool, bool, float, str]:
        """All that others act on at once: while it is the same nobody needs to be told."""
        return self.state, self.ready, self.refuses(), self.since, self.reason

    def silent(self, now: float) -> bool:
        """Up as far as anybody knows, but has it been asked and not answered in its usual time?"""
        if self.missed_in_row:
            return True
        late = now - self.patience_s
        return any(r.sent_at < late and not r.alive and not r.missed for r in self.rounds.values())

    def figures(self, now: float) -> Figures:
        """Loss, latency and jitter as of now."""
        return window.figures(self.window, now, self.span_s)

    def good_since(self) -> float:
        """Since when it has been well without a break; -inf if it never was anything else."""
        return max(self.ready_since, self.since if self.stable_since > -math.inf else -math.inf)

    def quick(self) -> bool:
        """Does its window reach back no further than the last few seconds?"""
        return self.span_s <= window.WINDOW_S

    def hold_s(self, failback_s: float) -> float:
        """How long it must have been well before traffic returns to it."""
        return damping.hold_s(self.falls, failback_s)

    def next_deadline(self, awaited: bool = False) -> float:
        """When `tick` or `dead` has something to say at the earliest; inf if never."""
        earliest = math.inf
        patience_s = self.patience_s
        for round_ in self.rounds.values():
            if not round_.missed:
                earliest = min(earliest, max(round_.sent_at + patience_s, round_.until))
        return min(earliest, self.dead_at(awaited))

    def dead_at(self, awaited: bool = False) -> float:
        """When its IKE_SA is to be replaced rather than waited for; inf while it is not down, or has none.

        `awaited`: one of `awaited_paths`.
        """
        if self.state is not State.DOWN or self.ike is None:
            return math.inf
        if awaited and self.reason == "probes" and self.ike_since < self.since:
            return self.since + AWAITED_S
        return max(self.since, self.ike_since) + self.redial_after_s


def sent(track: Track, sequence: int, now: float, interval_s: float = 0.0, extra: bool = False) -> Track:
    """A round of probes has left, at a pace of one in `interval_s`; `extra`: it is one between those."""
    rounds = {n: r for n, r in track.rounds.items() if now - r.sent_at <= FORGET_S} if track.rounds else {}
    waking_until = track.waking_until
    if now - track.sent_at >= IDLE_S and track.state is State.UP:
        waking_until = now + WAKE_S
    rounds[sequence] = Round(now, extra=extra, until=waking_until if waking_until > now else -math.inf)
    span_s = window.span_s(interval_s)
    return msgspec.structs.replace(
        track,
        rounds=rounds,
        sent_at=now,
        waking_until=waking_until,
        span_s=span_s,
        window=track.window if span_s == track.span_s else (),
    )


def answered(track: Track, sequence: int, from_ready: bool, rtt_s: float, now: float) -> Track:
    """An echo came back."""
    found = track.rounds.get(sequence)
    if found is None:
        return track
    rounds = dict(track.rounds)
    if from_ready:
        # Ready implies alive: nothing that may still come of this round says more.
        del rounds[sequence]
    else:
        rounds[sequence] = msgspec.structs.replace(found, alive=True)
    ready, ready_since, unready = track.ready, track.ready_since, track.unready_rounds
    if from_ready:
        ready_since = now if not ready and unready >= track.misses else ready_since
        ready, unready = True, 0
    if found.alive:
        return msgspec.structs.replace(
            track, rounds=rounds, ready=ready, ready_since=ready_since, unready_rounds=unready
        )
    state, since, reason, redials = track.state, track.since, track.reason, track.redials
    in_row = track.answered_in_row + 1
    enough = 1 if track.ike_since > track.since else RECOVER
    risen = state is State.UNKNOWN or (state is State.DOWN and in_row >= enough)
    if risen and track.ike is not None and track.link_up:
        state, since, reason, redials = State.UP, now, "", 0
    srtt_s, rttvar_s, samples = _measured(track, found, rtt_s)
    return msgspec.structs.replace(
        track,
        state=state,
        since=since,
        reason=reason,
        redials=redials,
        ready=ready,
        ready_since=ready_since,
        unready_rounds=unready,
        missed_in_row=0,
        last_answered=max(sequence, track.last_answered),
        answered_in_row=in_row,
        srtt_s=srtt_s,
        rttvar_s=rttvar_s,
        waking_until=-math.inf,
        window=samples,
        rounds=rounds,
    )


def tick(track: Track, now: float) -> Track:
    """Judge the rounds whose time has run out."""
    patience_s = track.patience_s
    due = {n: r for n, r in track.rounds.items() if now >= max(r.sent_at + patience_s, r.until) and not r.missed}
    if not due:
        return track
    rounds = dict(track.rounds)
    missed, in_row, unready, samples = 0, track.missed_in_row, track.unready_rounds, track.window
    for sequence, round_ in due.items():
        if round_.alive:
            del rounds[sequence]
            unready += not round_.ready
            continue
        rounds[sequence] = msgspec.structs.replace(round_, missed=True)
        missed += 1
        samples = window.with_sample(samples, (round_.sent_at, None), track.span_s)
        # One that was sent before the last answered round says nothing of now, however late its time runs out.
        in_row += sequence > track.last_answered and not round_.extra
    track = msgspec.structs.replace(
        track,
        rounds=rounds,
        ready=track.ready and unready < track.misses,
        unready_rounds=unready,
        missed_in_row=in_row,
        missed_at=now if missed else track.missed_at,
        answered_in_row=0 if missed else track.answered_in_row,
        window=samples,
    )
    if missed and in_row >= track.misses and track.state is not State.DOWN:
        return _fall(track, "probes", now)
    return track


def facts(track: Track, ike: int | None, link_up: bool, now: float) -> Track:
    """What charon and the kernel know for certain: the path's established IKE_SA (None: none) and its link."""
    if ike != track.ike:
        track = msgspec.structs.replace(track, ike=ike, ike_since=now, missed_in_row=0, answered_in_row=0, rounds={})
    if link_up is not track.link_up:
        track = msgspec.structs.replace(track, link_up=link_up)
    if track.state is State.UP:
        if not link_up:
            return _fall(track, "link", now)
        if ike is None:
            return _fall(track, "ike", now)
    return track


def dead(track: Track, now: float, awaited: bool = False) -> bool:
    """Is the path's IKE_SA to be replaced rather than waited for?"""
    return now >= track.dead_at(awaited)


def awaited_paths(
    bundles: Iterable[Bundle], active: Mapping[str, Path | None], tracks: Mapping[Path, Track]
) -> frozenset[Path]:
    """Paths that carry nothing, of bundles of which none is up, though one has been (`active`)."""
    carrying = set(active.values())
    found: set[Path] = set()
    for bundle in bundles:
        fallen = active.get(bundle.name)
        if fallen is None or fallen not in tracks or tracks[fallen].state is not State.DOWN:
            continue
        if not any(path in tracks and tracks[path].state is State.UP for path in bundle.paths):
            found.update(bundle.paths)
    return frozenset(found - carrying)


def redialled(track: Track) -> Track:
    """Note that its IKE_SA was given up: the next one gets more time."""
    return msgspec.structs.replace(track, redials=track.redials + 1)


def _measured(track: Track, found: Round, rtt_s: float) -> tuple[float, float, tuple[Sample, ...]]:
    """Smoothed round trip, its deviation, and the window, after the first answer to `found`."""
    srtt_s, rttvar_s = track.srtt_s, track.rttvar_s
    if found.until > -math.inf and rtt_s > track.patience_s and srtt_s is not None:
        return srtt_s, rttvar_s, track.window  # it has woken the modem
    if srtt_s is None:
        srtt_s, rttvar_s = rtt_s, rtt_s / 2
    else:
        # Jacobson's estimator, as TCP has it (RFC 6298).
        rttvar_s = 0.75 * rttvar_s + 0.25 * abs(srtt_s - rtt_s)
        srtt_s = 0.875 * srtt_s + 0.125 * rtt_s
    if found.missed:
        return srtt_s, rttvar_s, window.answered_late(track.window, found.sent_at, rtt_s)
    return srtt_s, rttvar_s, window.with_sample(track.window, (found.sent_at, rtt_s), track.span_s)


def _fall(track: Track, reason: str, now: float) -> Track:
    late_word = reason == "ike" and now < track.stable_since + LATE_WORD_S
    counts = track.state is State.UP and not late_word
    return msgspec.structs.replace(
        track,
        state=State.DOWN,
        since=now,
        stable_since=now,
        reason=reason,
        falls=damping.failed(track.falls, now) if counts else track.falls,
        ready=False,
        answered_in_row=0,
    )
