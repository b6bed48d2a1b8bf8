"""Where is the rollout kept, and who moves it?

In the store: its state under `rollout`, and under `waiting/SITE` each signed document that is still to be put in force.
One transaction puts documents in force and says so in the state, so that whoever goes on after a crash finds both or
neither. In: the store, and what sites say. Out: the store, one step further.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from cpe_controller.change import DOCUMENTS
from cpe_controller.publish import ROLLOUT, WAITING
from cpe_controller.reports import Contact
from cpe_controller.rollout import Phase, Rollout, step, unheard
from cpe_controller.store import Store, Write


def load(store: Store) -> tuple[Rollout | None, int]:
    """The newest rollout and its revision (0: there never was one)."""
    entry = store.get(ROLLOUT)
    if entry is None:
        return None, 0
    return msgspec.json.decode(entry.value or b"", type=Rollout), entry.revision


def advance(store: Store, contacts: Mapping[str, Contact], now: float) -> Rollout | None:
    """One step. None if nothing changed, also because somebody else changed it at the same time."""
    before, revision = load(store)
    if before is None or before.phase not in (Phase.RUNNING, Phase.PAUSED):
        return None
    after, release = step(before, contacts, now)
    if after == before:
        return None
    writes = [Write(ROLLOUT, msgspec.json.encode(after), revision)]
    for site in release:
        entry = store.get(WAITING + site)
        if entry is not None:
            writes += [Write(DOCUMENTS + site, entry.value), Write(WAITING + site, None, entry.revision)]
    return after if store.cas(writes) is not None else None


def to_ask(store: Store, contacts: Mapping[str, Contact], now: float) -> tuple[str, ...]:
    """Sites whose report the rollout waits for."""
    rollout, _ = load(store)
    return () if rollout is None else unheard(rollout, contacts, now)


def change(store: Store, how: Callable[[Rollout], Rollout]) -> Rollout | None:
    """What an operator does to it; None if there is none that is not over."""
    while True:
        before, revision = load(store)
        if before is None or before.phase.over:
            return None
        after = how(before)
        if store.cas([Write(ROLLOUT, msgspec.json.encode(after), revision)]) is not None:
            return after


def abort(store: Store, reason: str) -> bool:
    """Whether there was one to abort. Sites keep what they have."""

    def aborted(rollout: Rollout) -> Rollout:
        return msgspec.structs.replace(rollout, phase=Phase.ABORTED, reason=reason)

    return change(store, aborted) is not None


def settled(store: Store) -> bool:
    """Whether every site is offered what was applied last."""
    rollout, _ = load(store)
    return rollout is None or rollout.phase is Phase.DONE
