"""Who did what, when, and which sites took it?

An append-only log in the store. Every entry holds the hash of the one before, so that nothing in the middle can be
altered, left out or put in unnoticed; the head says how many there are. Whoever can write the store can still make a
whole new log: keep the head's hash elsewhere now and then (`cpe-controller audit --check` prints it).
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping, Sequence

import msgspec

from cpe_controller.store import Store, Write

ENTRIES = "audit/"
HEAD = "audit-head"
_FIRST = "0" * 64


class Deed(msgspec.Struct, frozen=True):
    """One entry. `by` is a user of the controller's machine, or "controller"; `hash` is over all that is before it."""

    number: int
    at: dt.datetime
    by: str
    what: str
    about: dict[str, str]
    before: str
    hash: str = ""

    def sealed(self) -> Deed:
        unsealed = msgspec.structs.replace(self, hash="")
        seal = hashlib.sha256(msgspec.json.encode(unsealed, order="deterministic")).hexdigest()
        return msgspec.structs.replace(self, hash=seal)


class Head(msgspec.Struct, frozen=True):
    """The newest entry: its number (0: there is none) and hash."""

    number: int = 0
    hash: str = _FIRST


def append(store: Store, now: dt.datetime, by: str, what: str, about: Mapping[str, str]) -> Deed:
    while True:
        entry = store.get(HEAD)
        head = Head() if entry is None else msgspec.json.decode(entry.value or b"", type=Head)
        deed = Deed(head.number + 1, now, by, what, dict(about), head.hash).sealed()
        writes = [
            Write(_key(deed.number), msgspec.json.encode(deed), expect=0),
            Write(HEAD, msgspec.json.encode(Head(deed.number, deed.hash)), entry.revision if entry else 0),
        ]
        if store.cas(writes) is not None:
            return deed


def deeds(store: Store) -> list[Deed]:
    """All of them, the oldest first."""
    return [msgspec.json.decode(entry.value or b"", type=Deed) for entry in store.list(ENTRIES).entries]


def head(store: Store) -> Head:
    entry = store.get(HEAD)
    return Head() if entry is None else msgspec.json.decode(entry.value or b"", type=Head)


def flaw(found: Sequence[Deed], newest: Head) -> str:
    """What is wrong with the chain, in words; "" if nothing is."""
    before = _FIRST
    for number, deed in enumerate(found, start=1):
        if deed.number != number:
            return f"entry {number} is missing"
        if deed.before != before:
            return f"entry {number} does not follow from the one before: one of the two was altered"
        if deed.sealed().hash != deed.hash:
            return f"entry {number} was altered after it was written"
        before = deed.hash
    if (len(found), before) != (newest.number, newest.hash):
        return (
            f"the log ends at entry {len(found)}, but entry {newest.number} was written: the end is missing or altered"
        )
    return ""


def _key(number: int) -> str:
    return f"{ENTRIES}{number:012}"
