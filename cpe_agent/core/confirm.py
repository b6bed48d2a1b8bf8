"""Is a new document to be kept, or given up for the one before it?

Pure. In: documents as they are taken up, and what is seen of peers, targets and controller afterwards, each with its
time. Out: the state of the trial and a decision. Theory of operation: a document is on trial from the moment it is
taken up until everything that worked before works again under it; then it is the last good one. What worked is noted
when it is taken up (`Before`), and only what the new document still lists is asked for: a peer that it removes has not
failed. If that is not reached within the document's own `confirm_s`, the site goes back. Each start of the agent with
a document still on trial is an attempt, so one that crashes the agent is given up after two.

An uplink or a hub may fail by chance while a document is on trial, and nobody can tell that from its fault: the site
goes back, which costs nothing. Then it shows: what comes back without the document was the document's doing; what is
still missing after `DOUBT_S` was not, and the document may be tried again, `TRIALS_MAX` times in all. By then it is
asked for what works by then.

| state    | event                                      | new state | decision | why |
|----------|--------------------------------------------|-----------|----------|-----|
| settled  | taken up                                   | on trial  | wait     | first attempt |
| on trial, in doubt | taken up (a newer one)           | on trial  | wait     | what worked before both still counts |
| settled  | started, fewer than `ATTEMPTS_MAX` before  | on trial  | wait     | one attempt more |
| settled  | started, `ATTEMPTS_MAX` before             | settled   | revert   | the agent ended under it each time |
| on trial | seen: all is back, `SETTLE_S` have passed  | settled   | confirm  | it does what the one before did |
| on trial | seen: something is missing at the deadline | in doubt  | revert   | it does less than the one before |
| on trial | seen: otherwise                            | on trial  | wait     | there is time yet |
| in doubt | seen: all is back                          | settled   | blame    | without it, it works |
| in doubt | seen: something is missing at the deadline | settled   | acquit   | without it, it works no better |
| in doubt | seen: otherwise                            | in doubt  | wait     | |
| settled  | seen                                       | settled   | wait     | nothing is on trial |

The first document of a box has none before it: it has no deadline, and only its attempts are counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from enum import Enum

import msgspec

from cpe_agent.core.health import State, Track
from cpe_agent.model.confirmation import Before, Rejection
from cpe_agent.model.dataplane import Connection, Path, stem_of
from cpe_agent.model.document import Document
from cpe_agent.model.observed import Charon

# What crashes the agent, or cuts a path, does so within this time; a document is not called good before.
SETTLE_S = 3.0
# A mistyped confirm_s must not leave a site cut off for a day.
CONFIRM_MAX_S = 3600.0
ATTEMPTS_MAX = 2
# Of a hub's branches some are always on the move.
HUB_SHARE = 0.9
# Under the document before, a dialler that was kept waiting asks again after 15 s; then probes must be answered.
DOUBT_S = 30.0
# A document whose harm outlives it (a modem that takes minutes to recover) looks innocent each time.
TRIALS_MAX = 3

CRASHED = f"the agent ended {ATTEMPTS_MAX} times before it was confirmed"


class Verdict(Enum):
    WAIT = "wait"
    CONFIRM = "confirm"
    REVERT = "revert"
    BLAME = "blame"
    ACQUIT = "acquit"


class TakenUp(msgspec.Struct, frozen=True):
    """A document is in force from now on; `before` is how things were. `first`: there is none to go back to."""

    document: Document
    before: Before
    first: bool


class Started(msgspec.Struct, frozen=True):
    """The agent starts with a document that was on trial, of which `attempts` were made."""

    document: Document
    before: Before
    attempts: int
    first: bool


class Seen(msgspec.Struct, frozen=True):
    """How things are now. `in_sync`: targets that hold what this document asks; `controller`: it has answered a
    connection that was made since these were in sync."""

    healthy: frozenset[str] = frozenset()
    in_sync: frozenset[str] = frozenset()
    controller: bool = False


class Trial(msgspec.Struct, frozen=True):
    """A document on trial; `doubt`: it was given up, and is looked for fault with. `missing`: what is still lacking, in
    words."""

    order: tuple[int, int]
    role: str
    listed: frozenset[str]
    before: Before
    attempts: int
    since: float
    deadline: float
    missing: str = ""
    doubt: bool = False


class Decision(msgspec.Struct, frozen=True):
    """What becomes of the document, why, and when to look again at the latest (inf: only when something happens)."""

    verdict: Verdict
    reason: str = ""
    wake_at: float = math.inf


Event = TakenUp | Started | Seen


def step(trial: Trial | None, event: Event, now: float) -> tuple[Trial | None, Decision]:
    """One event; `trial` None is settled."""
    match event:
        case TakenUp(document, before, first):
            if trial is not None:
                before = _both(trial.before, before)
            begun = _begin(document, before, 1, first, now)
            return begun, Decision(Verdict.WAIT, wake_at=now + SETTLE_S)
        case Started(document, before, attempts, first):
            if attempts >= ATTEMPTS_MAX:
                return None, Decision(Verdict.REVERT, CRASHED)
            begun = _begin(document, before, attempts + 1, first, now)
            return begun, Decision(Verdict.WAIT, wake_at=now + SETTLE_S)
        case Seen():
            return (None, Decision(Verdict.WAIT)) if trial is None else _judge(trial, event, now)


def healthy_peers(connections: Iterable[Connection], charon: Charon, tracks: Mapping[Path, Track]) -> frozenset[str]:
    """The peers with which a path is up now, under exactly these settings: an IKE_SA made with others may outlive them
    and proves nothing. A peer that dials us is healthy while it has an IKE_SA with a CHILD_SA here."""
    by_name: dict[str, set[int]] = {}
    answered: set[str] = set()
    for sa in charon.ike_sas:
        if sa.established and any(child.installed for child in sa.children):
            by_name.setdefault(sa.connection, set()).add(sa.unique_id)
            answered.add(stem_of(sa.connection))
    found = set()
    for connection in connections:
        path = connection.path
        if path is None:
            if connection.stem in answered:
                found.add(connection.stem)
            continue
        track = tracks.get(path)
        if track is None or track.state is not State.UP or track.answered_in_row == 0:
            continue
        if track.ike in by_name.get(connection.name, ()):
            found.add(path.peer)
    return frozenset(found)


def removed_peers(previous: Document, newer: Document) -> tuple[str, ...]:
    """The peers that `newer` took away: on a revert they stay away, since taking a peer away is how one is revoked."""
    return tuple(sorted(previous.peers.keys() - newer.peers.keys()))


def without_peers(document: Document, removed: Iterable[str]) -> Document:
    """`document` with no access for these peers: no connection with them, and no pair that only they can serve."""
    gone = document.peers.keys() & set(removed)
    if not gone:
        return document
    pairs = []
    for pair in document.pairs:
        peers = tuple(peer for peer in pair.peers if peer not in gone)
        if peers:
            pairs.append(pair if peers == pair.peers else msgspec.structs.replace(pair, peers=peers))
    kept = {name: peer for name, peer in document.peers.items() if name not in gone}
    return msgspec.structs.replace(document, peers=kept, pairs=tuple(pairs))


def reverted_to(document: Document, rejections: Iterable[Rejection]) -> Document:
    """What is left of the last good `document` after the newer ones that were given up."""
    newer = (rejection for rejection in rejections if rejection.reverted and rejection.order > document.order)
    return without_peers(document, {peer for rejection in newer for peer in rejection.removed})


def _begin(document: Document, before: Before, attempts: int, first: bool, now: float) -> Trial:
    deadline = math.inf if first else now + min(float(document.policy.confirm_s), CONFIRM_MAX_S)
    return Trial(document.order, document.role, frozenset(document.peers), before, attempts, now, deadline)


def _judge(trial: Trial, seen: Seen, now: float) -> tuple[Trial | None, Decision]:
    missing = _missing(trial, seen)
    if trial.doubt:
        if not missing:
            return None, Decision(Verdict.BLAME)
        if now >= trial.deadline:
            return None, Decision(Verdict.ACQUIT, missing)
        return trial, Decision(Verdict.WAIT, missing, trial.deadline)
    # A confirm_s below the time to settle would confirm nothing, ever.
    settled_at = min(trial.since + SETTLE_S, trial.deadline)
    if not missing and now >= settled_at:
        return None, Decision(Verdict.CONFIRM)
    if missing and now >= trial.deadline:
        reason = f"{missing} within {trial.deadline - trial.since:g} s"
        doubted = msgspec.structs.replace(trial, since=now, deadline=now + DOUBT_S, doubt=True)
        return doubted, Decision(Verdict.REVERT, reason, doubted.deadline)
    wake_at = trial.deadline if missing else settled_at
    return msgspec.structs.replace(trial, missing=missing), Decision(Verdict.WAIT, missing, wake_at)


def _missing(trial: Trial, seen: Seen) -> str:
    """What worked before and does not work now, in words; "" for nothing."""
    targets = sorted(trial.before.targets - seen.in_sync)
    if targets:
        return f"{', '.join(targets)} could not be brought in sync with it"
    asked = trial.before.healthy & trial.listed
    back = asked & seen.healthy
    needed = math.ceil(HUB_SHARE * len(asked)) if trial.role == "hub" else len(asked)
    if len(back) < needed:
        gone = sorted(asked - back)
        some = ", ".join(gone[:3]) + (f" and {len(gone) - 3} more" if len(gone) > 3 else "")
        return f"{some} did not come back"
    if trial.before.controller and not seen.controller:
        return "the controller did not answer any more"
    return ""


def _both(one: Before, other: Before) -> Before:
    return Before(one.healthy | other.healthy, one.targets | other.targets, one.controller or other.controller)
