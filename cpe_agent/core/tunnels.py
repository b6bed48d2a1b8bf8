"""By which operations does charon come to hold the wanted tunnels?

In: wanted `Tunnels`, observed `Charon`, and when each initiation may be tried again. Out: operations, in the order in
which they matter. Theory of operation:

- charon tells everything: which connections are loaded, which IKE_SAs live, which of them is busy with a task of ours.
  Nothing is remembered here but how often an initiation was tried (`Attempts`), so a restart adopts what runs.
- Only dialled paths are initiated; an answering connection is loaded and left to its dialler. One initiation is in
  flight per path at most: none is issued while the path's IKE_SA is being set up or is busy.
- An IKE_SA belongs to a path by the stem in its connection's name, and to the present settings by the digest in it.
  One with other settings stays until its successor carries what it should (make before break).
- A traffic child lives on its bundle's active path. The one left behind is ended only when the new one is installed;
  at another hub a moment later (`core.carried`). If the new hub falls within that time, its IKE_SA is ended by force:
  the newest child would keep the traffic. If the bundle goes back within that time, what was kept is ended and started
  anew, so that it is the newest again before the other is ended.
- A trial child asks a bundle's servers on a path that does not carry it. It is there while it is wanted, no longer.
- A dead IKE_SA (judged by probes) is ended by force, after the traffic has been started elsewhere; on its own path the
  traffic child comes first and the probe second. One that leaves an initiation of ours unanswered is dead too, whatever
  the probes say: where the kernel does ESP, it answers them for IKE_SAs that a restarted charon has lost. When the
  probes are not answered either, nothing is waited for.
- A traffic child through which nothing comes back is ended first and started anew then: in one IKE_SA charon refuses
  a second one like it.
- Children that go beyond the present configuration (a LAN that was removed) are ended, on hubs too.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import msgspec

from cpe_agent.core.carried import Carried, config_of, find, newest_like
from cpe_agent.core.selectors import uncovered
from cpe_agent.model.dataplane import PROBE_CHILD, TRIAL_CHILD, Child, Connection, Path, Tunnels, stem_of
from cpe_agent.model.observed import Charon, ChildSa, IkeSa, LoadedChild
from cpe_agent.model.ops import (
    Initiate,
    LoadConnection,
    LoadCredentials,
    TerminateChild,
    TerminateIke,
    TunnelOp,
    UnloadConnection,
)

# First retry after half a second: a hub that restarts is back in about that. A gateway that stays away is asked at
# most every 15 s, which charon survives for ever (its own retransmissions stretch the cycle further).
RETRY_FIRST_S = 0.5
RETRY_MAX_S = 15.0
# A set-up that nobody answers and a child that the peer refuses end without an event: look again so soon.
UNDER_WAY_S = 1.0
# charon repeats itself each second: three in vain. A live peer answers in a round trip.
UNANSWERED_S = 3.0
# While a child is kept for late answers: there is no event when it is to go.
LATE_S = 0.5


class Attempt(msgspec.Struct, frozen=True):
    """Initiations of one (connection, child) in a row without success, when the next may be made, and when the last one
    was."""

    count: int
    not_before: float
    made_at: float = 0.0


Attempts = dict[tuple[str, str], Attempt]


class Step(msgspec.Struct, frozen=True):
    """What to do, what to remember, and when to look again at the latest (None: only when something happens)."""

    ops: tuple[TunnelOp, ...]
    attempts: Attempts
    wake_at: float | None


def step(wanted: Tunnels, observed: Charon, attempts: Attempts, now: float) -> Step:
    """One look at charon. Idempotent: with everything in place there are no operations."""
    ops: list[TunnelOp] = []
    if wanted.connections and not observed.credentials_loaded:
        ops.append(LoadCredentials())
    ops += _loads(wanted, observed)
    by_stem: dict[str, list[IkeSa]] = {}
    for sa in observed.ike_sas:
        by_stem.setdefault(stem_of(sa.connection), []).append(sa)
    carried = find(wanted, observed.ike_sas)
    starts: list[tuple[bool, Initiate]] = []
    ends: list[TunnelOp] = []
    waiting = [now + LATE_S] if carried.late else []
    remembered: Attempts = {}
    for connection in wanted.connections:
        sas = by_stem.pop(connection.stem, [])
        path = connection.path
        if path is None:
            ends += _answering_ends(connection, sas, wanted.stale)
            continue
        unanswered = {key[1] for key, made in attempts.items() if key[0] == connection.name and _unanswered(made, now)}
        start, path_ends = _dialled(connection, path, wanted, sas, carried, unanswered)
        ends += path_ends
        # A child that was narrowed is no success: it is asked for again ever more rarely.
        live = {
            child.name
            for sa in sas
            if sa.connection == connection.name and sa.unique_id not in wanted.dead
            for child in connection.children
            if newest_like(sa, child)
        }
        for key, attempt in attempts.items():
            if key[0] == connection.name and key[1] not in live:
                remembered[key] = attempt
        if start is None:
            if any(sa.busy or not sa.established for sa in sas):
                waiting.append(now + UNDER_WAY_S)
            continue
        key = (start.connection, start.child)
        attempt = remembered.get(key, Attempt(0, now))
        if attempt.not_before > now:
            waiting.append(attempt.not_before)
            continue
        remembered[key] = Attempt(attempt.count + 1, now + _retry_after(connection, attempt.count), now)
        waiting.append(remembered[key].not_before)
        starts.append((start.child == PROBE_CHILD, start))
    for sas in by_stem.values():
        ends += [
            TerminateIke(sa.unique_id, force=True)
            for sa in sas
            if sa.unique_id in wanted.dead or not _needed(sa, wanted, carried)
        ]
    # Traffic first: a bundle waits for it. Ends last: never before.
    ops += [start for _, start in sorted(starts, key=lambda item: item[0])]
    ops += ends
    names = {connection.name for connection in wanted.connections}
    ops += [UnloadConnection(name) for name in sorted(set(observed.connections) - names)]
    return Step(tuple(ops), remembered, min(waiting, default=None))


def head_start(wanted: Tunnels, known: Charon, attempts: Attempts, now: float) -> Step:
    """Traffic children that are missing where they belong, on IKE_SAs that were established when charon was last asked.

    Traffic waits for them, and a listing takes time: on a hub with two thousand branches, a second. If all has changed
    since, charon refuses or finds nothing to do, and the look that follows sees to it.
    """
    ready = {sa.connection for sa in known.ike_sas if sa.established and sa.connection in known.connections}
    able = tuple(c for c in wanted.connections if c.path in wanted.active and c.name in ready)
    found = step(msgspec.structs.replace(wanted, connections=able), known, attempts, now)
    ops = tuple(op for op in found.ops if isinstance(op, Initiate) and op.child != PROBE_CHILD)
    made = {(op.connection, op.child): found.attempts[op.connection, op.child] for op in ops}
    return Step(ops, {**attempts, **made}, None)


def altered(wanted: Tunnels, observed: Charon) -> tuple[str, ...]:
    """What is not loaded as wanted, in words; empty when it is. SAs are another matter: they come and go."""
    found: list[str] = []
    if wanted.connections and not observed.credentials_loaded:
        found.append("credentials are not loaded")
    found += [f"connection {op.connection.stem} is not loaded" for op in _loads(wanted, observed)]
    names = {connection.name for connection in wanted.connections}
    found += [f"connection {name} is not wanted" for name in sorted(set(observed.connections) - names)]
    return tuple(found)


def _loads(wanted: Tunnels, observed: Charon) -> list[LoadConnection]:
    ops = []
    for connection in wanted.connections:
        loaded = observed.connections.get(connection.name)
        want = tuple(sorted(LoadedChild(c.name, c.local_ts, c.remote_ts) for c in connection.children))
        if loaded is None or tuple(sorted(loaded)) != want:
            ops.append(LoadConnection(connection))
    return ops


def _dialled(
    connection: Connection,
    path: Path,
    wanted: Tunnels,
    sas: list[IkeSa],
    carried: Carried,
    unanswered: set[str],
) -> tuple[Initiate | None, list[TunnelOp]]:
    dead = [sa for sa in sas if sa.unique_id in wanted.dead]
    ends: list[TunnelOp] = [TerminateIke(sa.unique_id, force=True) for sa in dead]
    if any(sa.connection == connection.name for sa in dead):
        # charon would start a child in the dead IKE_SA, or refuse it as a double: first that must be gone.
        return None, ends
    alive = [sa for sa in sas if sa.unique_id not in wanted.dead]
    current = [sa for sa in alive if sa.connection == connection.name]
    established = [sa for sa in current if sa.established]
    traffic = sorted(wanted.active.get(path, frozenset()))
    if not established:
        if any(not sa.established and sa.state != "DELETING" for sa in current):
            return None, ends
        return Initiate(connection.name, traffic[0] if traffic else PROBE_CHILD), ends
    newest = max(established, key=lambda sa: sa.unique_id)
    start = None
    lacking = []
    for name in [*traffic, PROBE_CHILD]:
        config = config_of(connection, name)
        if config is not None and newest_like(newest, config) is None:
            lacking.append(name)
    if lacking and newest.creating and (lacking[0] in unanswered or path in wanted.fallen):
        return None, [*ends, TerminateIke(newest.unique_id, force=True)]
    if path in wanted.fallen and any(_pins(child, carried) for child in newest.children):
        # Its DELETE would not be answered, and our packets would follow it until then.
        return None, [*ends, TerminateIke(newest.unique_id, force=True)]
    if lacking and not newest.busy:
        start = Initiate(connection.name, lacking[0])
    if not lacking:
        # The successor carries all it should: what came before it, with other settings or doubled, can go.
        ends += [
            TerminateIke(sa.unique_id, force=False)
            for sa in alive
            # What a rekeying has replaced is being deleted by charon; ended again it would go without telling the peer.
            if sa is not newest and sa.established and sa.state != "REKEYED" and not _needed(sa, wanted, carried)
        ]
    ends += _surplus(connection, newest, set(traffic) | {PROBE_CHILD}, wanted, carried)
    return start, ends


def _pins(child: ChildSa, carried: Carried) -> bool:
    """Is it newer than the one that should carry this traffic? So it is where a bundle is back at a hub that it left a
    moment ago, and whose child was kept."""
    return child.name in carried.at and child.unique_id > carried.at[child.name][1].unique_id


def _unanswered(attempt: Attempt, now: float) -> bool:
    return attempt.count > 0 and now >= attempt.made_at + UNANSWERED_S


def _needed(sa: IkeSa, wanted: Tunnels, carried: Carried) -> bool:
    """Does it hold the traffic of a bundle that is not yet carried where it belongs now?"""
    homeless = {name for names in wanted.active.values() for name in names} - carried.at.keys()
    return any(child.installed and child.name in homeless for child in sa.children)


def _surplus(
    connection: Connection,
    sa: IkeSa,
    belonging: set[str],
    wanted: Tunnels,
    carried: Carried,
) -> list[TunnelOp]:
    ends: list[TunnelOp] = []
    if sa.busy:
        # An end that waits behind another exchange shows nowhere: it would be queued again at each look.
        return ends
    for child in sa.children:
        if not child.installed:
            continue
        config = config_of(connection, child.name)
        if child.name in belonging and config is not None:
            best = newest_like(sa, config)
            doubled = best is not None and best.unique_id != child.unique_id and child.state == "INSTALLED"
            # A double, or one with yesterday's selectors, goes once the right one is there; at once if it goes too far.
            anew = child.unique_id in wanted.remake or child.unique_id in carried.overtaken
            surplus = doubled or anew or (best is None and not _covered(child, config))
        else:
            # A bundle that is not placed yet (the agent has just started) keeps its child: it will be adopted.
            trial = child.name.startswith(f"{TRIAL_CHILD}-")
            left = child.name in carried.at and child.unique_id not in carried.late
            surplus = config is None or trial or left or child.name in wanted.barred
        if surplus:
            ends.append(TerminateChild(child.unique_id))
    return ends


def _answering_ends(connection: Connection, sas: Iterable[IkeSa], stale: frozenset[int]) -> list[TunnelOp]:
    """On the answering side: end what our present configuration would not agree to any more, and what is left over."""
    ends: list[TunnelOp] = []
    for sa in sas:
        if sa.unique_id in stale and not sa.busy:
            ends.append(TerminateIke(sa.unique_id, force=False))
            continue
        for child in () if sa.busy else sa.children:
            config = config_of(connection, child.name)
            if child.installed and (config is None or not _covered(child, config)):
                ends.append(TerminateChild(child.unique_id))
    return ends


def _covered(child: ChildSa, config: Child) -> bool:
    return not uncovered(child.local_ts, config.local_ts) and not uncovered(child.remote_ts, config.remote_ts)


def _retry_after(connection: Connection, count: int) -> float:
    """Doubling, capped, and spread by a hash of who dials whom, so that a hub's return is no stampede."""
    spread = 0.75 + (zlib.crc32(f"{connection.ike.local_id}/{connection.stem}/{count}".encode()) % 1000) / 2000
    return float(min(RETRY_MAX_S, RETRY_FIRST_S * 2 ** min(count, 10)) * spread)
