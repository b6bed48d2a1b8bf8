"""Which sites get their new document now, and is it time for the next?

An apply goes out in waves, so that what is wrong with it is found where it hurts least: some branches first (canaries),
then one hub, then the other, then all the rest. A hub's wave is over only when the branches that had a path to that hub
have one again. The first bad report halts it. Pure: `step(rollout, contacts, now)` gives the next state and the sites
to release; a step that is repeated after a crash asks for nothing that was done.

    phase    what is seen                                              then
    running  a released site rejected its new document, or reverted    halted
             the wave is not out                                       release it, BATCH sites a step
             all that are waited for have confirmed                    the next wave; done after the last
             wait_s is over                                            halted, and says who is missing
             otherwise                                                 wait
    paused   a released site rejected or reverted                      halted
             otherwise                                                 nothing is released
    halted   `resume`                                                  running: who rejected is waited for no longer
    done, aborted                                                      the end

A branch that was silent when its wave went out is not waited for: it takes its document when it is back. A hub is.

A branch whose paths are as they were has nothing to say for a minute: `unheard` names those that are to be asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Literal

import msgspec

from cpe_controller.fleet import SILENT_S
from cpe_controller.reports import Contact

# Of the branches that change, one in so many is a canary; never more than the second.
CANARY_EACH = 20
CANARIES_MAX = 10
# A transaction of the store has room for twice as many writes.
BATCH = 40
# Beyond confirm_s: for the document to get there, and for the report of it.
REPORT_S = 90.0
# Of the branches that had a path to a hub, so many must have one again.
WITNESSES_BACK = 0.9
# A hub's document is in force for 3 s when the hub confirms it; a branch whose path to it stands by may take a second
# or two more to find that it is dead. Asked sooner, it would say what was.
NOTICED_S = 2.0

Order = tuple[int, int]


class Phase(Enum):
    PREPARING = "preparing"
    RUNNING = "running"
    PAUSED = "paused"
    HALTED = "halted"
    ABORTED = "aborted"
    DONE = "done"

    @property
    def over(self) -> bool:
        return self in (Phase.ABORTED, Phase.DONE)


class Wave(msgspec.Struct, frozen=True):
    """Sites that get their document together."""

    kind: Literal["canary", "hub", "rest"]
    sites: tuple[str, ...]


class Rollout(msgspec.Struct, frozen=True):
    """`targets` are the new documents. Of wave number `wave` the first `out` sites have theirs; `since` is when it was
    complete. `unawaited` sites need not confirm; `witnesses` had a path to the hub of this wave. Times in seconds."""

    targets: dict[str, Order]
    waves: tuple[Wave, ...]
    wait_s: float
    started_at: float
    phase: Phase = Phase.PREPARING
    reason: str = ""
    wave: int = 0
    out: int = 0
    since: float = 0.0
    unawaited: tuple[str, ...] = ()
    witnesses: tuple[str, ...] = ()

    def released(self) -> Iterator[str]:
        for wave in self.waves[: self.wave]:
            yield from wave.sites
        if self.wave < len(self.waves):
            yield from self.waves[self.wave].sites[: self.out]


def waves(
    hubs: Sequence[str],
    branches: Sequence[str],
    wanted_canaries: Sequence[str],
    contacts: Mapping[str, Contact],
    now: float,
) -> tuple[Wave, ...]:
    """`hubs` and `branches` are those that change. Canaries are the wanted ones, or some that are heard of now."""
    canaries = [site for site in wanted_canaries if site in branches]
    if not canaries and (hubs or len(branches) > 1):
        living = [site for site in branches if _heard(contacts.get(site), now)]
        number = min(CANARIES_MAX, -(-len(branches) // CANARY_EACH))
        canaries = living[:number]
    rest = tuple(site for site in branches if site not in canaries)
    found = [Wave("canary", tuple(canaries)), *(Wave("hub", (hub,)) for hub in hubs), Wave("rest", rest)]
    return tuple(wave for wave in found if wave.sites)


def step(rollout: Rollout, contacts: Mapping[str, Contact], now: float) -> tuple[Rollout, tuple[str, ...]]:
    """The next state, and the sites whose documents are to be put in force with it."""
    if rollout.phase not in (Phase.RUNNING, Phase.PAUSED):
        return rollout, ()
    if refusal := next(_refusals(rollout, contacts), None):
        return msgspec.structs.replace(rollout, phase=Phase.HALTED, reason=refusal[1]), ()
    if rollout.phase is Phase.PAUSED:
        return rollout, ()
    if rollout.wave >= len(rollout.waves):
        return msgspec.structs.replace(rollout, phase=Phase.DONE), ()
    wave = rollout.waves[rollout.wave]
    if rollout.out < len(wave.sites):
        return _release(rollout, wave, contacts, now)
    missing = _missing(rollout, wave, contacts)
    if not missing:
        new = msgspec.structs.replace(rollout, wave=rollout.wave + 1, out=0, witnesses=())
        return new if new.wave < len(new.waves) else msgspec.structs.replace(new, phase=Phase.DONE), ()
    if now - rollout.since >= rollout.wait_s:
        reason = f"after {rollout.wait_s:g} s: {'; '.join(missing[:5])}"
        more = f"; and {len(missing) - 5} more" if len(missing) > 5 else ""
        return msgspec.structs.replace(rollout, phase=Phase.HALTED, reason=reason + more), ()
    return rollout, ()


def resumed(rollout: Rollout, contacts: Mapping[str, Contact], now: float) -> Rollout:
    """Whoever refused, or did not confirm, was seen by the operator: go on without them."""
    unawaited = {*rollout.unawaited, *(site for site, _ in _refusals(rollout, contacts))}
    witnesses = rollout.witnesses
    if rollout.phase is Phase.HALTED and rollout.wave < len(rollout.waves):
        wave = rollout.waves[rollout.wave]
        if rollout.out == len(wave.sites):
            unawaited |= {site for site in wave.sites if not _confirmed(rollout, site, contacts)}
            witnesses = ()
    return msgspec.structs.replace(
        rollout,
        phase=Phase.RUNNING,
        reason="",
        since=now,
        unawaited=tuple(sorted(unawaited)),
        witnesses=witnesses,
    )


def confirmed(rollout: Rollout, contacts: Mapping[str, Contact]) -> int:
    return sum(_confirmed(rollout, site, contacts) for site in rollout.released())


def unheard(rollout: Rollout, contacts: Mapping[str, Contact], now: float) -> tuple[str, ...]:
    """The branches whose next report may end this wave: its hub has confirmed, and they have said nothing since."""
    if rollout.phase is not Phase.RUNNING or not rollout.witnesses:
        return ()
    wave = rollout.waves[rollout.wave]
    [hub] = wave.sites
    if not _confirmed(rollout, hub, contacts) or not _missing(rollout, wave, contacts):
        return ()
    took_at = contacts[hub].took_at
    if now < took_at + NOTICED_S:
        return ()
    return tuple(site for site in rollout.witnesses if site in contacts and contacts[site].reported_at <= took_at)


def _release(
    rollout: Rollout, wave: Wave, contacts: Mapping[str, Contact], now: float
) -> tuple[Rollout, tuple[str, ...]]:
    batch = wave.sites[rollout.out : rollout.out + BATCH]
    silent = () if wave.kind == "hub" else tuple(site for site in batch if not _heard(contacts.get(site), now))
    witnesses = rollout.witnesses
    if wave.kind == "hub":
        [hub] = wave.sites
        heard = (site for site, contact in contacts.items() if _heard(contact, now) and _up(contact, hub))
        witnesses = tuple(sorted(heard))
    new = msgspec.structs.replace(
        rollout,
        out=rollout.out + len(batch),
        since=now,
        unawaited=tuple(sorted({*rollout.unawaited, *silent})),
        witnesses=witnesses,
    )
    return new, batch


def _refusals(rollout: Rollout, contacts: Mapping[str, Contact]) -> Iterator[tuple[str, str]]:
    for site in rollout.released():
        contact = contacts.get(site)
        rejected = contact.report.rejected if contact and contact.report else None
        if rejected is not None and rejected.order == rollout.targets[site] and site not in rollout.unawaited:
            did = "went back from" if rejected.reverted else "rejected"
            yield site, f"{site} {did} version {rejected.version}: {rejected.reason}"


def _missing(rollout: Rollout, wave: Wave, contacts: Mapping[str, Contact]) -> list[str]:
    """Who is still waited for, in words."""
    awaited = [site for site in wave.sites if site not in rollout.unawaited]
    missing = [f"{site} has not confirmed" for site in awaited if not _confirmed(rollout, site, contacts)]
    hub = wave.sites[0]
    if missing or not rollout.witnesses or hub not in contacts:
        return missing
    away = [site for site in rollout.witnesses if not _back(contacts.get(site), hub, contacts[hub].took_at)]
    if len(rollout.witnesses) - len(away) >= WITNESSES_BACK * len(rollout.witnesses):
        return []
    return [f"{site} has not said that it reaches {hub} again" for site in away]


def _confirmed(rollout: Rollout, site: str, contacts: Mapping[str, Contact]) -> bool:
    contact = contacts.get(site)
    return contact is not None and contact.took is not None and contact.took >= rollout.targets[site]


def _back(contact: Contact | None, hub: str, since: float) -> bool:
    return contact is not None and contact.reported_at > since and _up(contact, hub)


def _up(contact: Contact, hub: str) -> bool:
    return contact.report is not None and hub in contact.report.peers_up()


def _heard(contact: Contact | None, now: float) -> bool:
    """It reports; what is only connected cannot confirm."""
    return contact is not None and contact.report is not None and now - contact.reported_at < SILENT_S
