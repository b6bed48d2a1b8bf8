"""What does the controller remember, and who is told when it changes?

Keys are slash-separated texts, values are bytes. Every write gets the store's next revision, which only grows. The
interface is what etcd offers and no more (revisions, transactions of compares and writes, watches from a revision), so
that etcd can take SQLite's place behind it: hence the limits below.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

# etcd's defaults: 128 operations in a transaction, 1.5 MiB in a request.
MAX_WRITES = 100
MAX_VALUE_BYTES = 1_400_000


@dataclass(frozen=True)
class Entry:
    """A key's value and the revision that wrote it. A watch gives `value` None for a deleted key."""

    key: str
    value: bytes | None
    revision: int


@dataclass(frozen=True)
class Listing:
    """Entries sorted by key, as of `revision`: watch from there to miss nothing."""

    entries: tuple[Entry, ...]
    revision: int


@dataclass(frozen=True)
class Write:
    """Set `key` (None deletes it) if revision `expect` wrote it last (0: it is absent; None: whatever it is)."""

    key: str
    value: bytes | None
    expect: int | None = None


class StoreError(Exception):
    """The store cannot be opened, read or written; the text says which and why."""


class Store(Protocol):
    """Every method may raise `StoreError`."""

    def get(self, key: str) -> Entry | None:
        """The entry, or None where there is none. Its value is never None."""
        ...

    def list(self, prefix: str) -> Listing:
        """Every entry whose key starts with `prefix`."""
        ...

    def put(self, key: str, value: bytes) -> int:
        """Write whatever was there before. Returns the new revision."""
        ...

    def cas(self, writes: Sequence[Write], checks: Mapping[str, int] | None = None) -> int | None:
        """Compare and swap: all writes in one revision, or none and None if an expectation or a check does not hold.

        `checks` are keys that are compared (as `Write.expect`) but not written. Deleting an absent key is no error. At
        most MAX_WRITES writes and checks; more raise ValueError.
        """
        ...

    def watch(self, prefix: str, after: int) -> AsyncIterator[Sequence[Entry]]:
        """Batches of entries written after revision `after`, in order, whoever wrote them. Never ends by itself.

        Several writes of one key may be seen as the last of them; the last is never missed.
        """
        ...

    def close(self) -> None:
        """Close it; a closed store is of no further use."""
        ...
