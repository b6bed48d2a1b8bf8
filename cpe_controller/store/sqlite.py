"""A store in one SQLite file, for a controller on one machine.

WAL: commands write while the server reads, in other processes too. Watchers poll the revision, which costs a page read;
no notification of SQLite's crosses processes.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cpe_controller.files import create
from cpe_controller.store import MAX_VALUE_BYTES, MAX_WRITES, Entry, Listing, StoreError, Write

# A twentieth of the second that a change may take to reach a site, and 20 small reads a second.
POLL_S = 0.05
# Writes take a millisecond; whoever holds the lock this long is stuck.
BUSY_S = 5.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entry (key TEXT PRIMARY KEY, value BLOB, revision INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS entry_revision ON entry (revision);
"""
# A deleted key stays as a row without value, so that a watch sees it go. The first key that cannot start with a prefix
# is the prefix with the highest code point behind it: keys are text, and none holds that code point.
_LAST = "\U0010ffff"

_Rows = list[tuple[str, bytes | None, int]]


class SqliteStore:
    """See `Store`. Used by one thread; any number of processes may open the same file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            # The file holds no keys, but it says how the network is built: for its owner only, from the start. One that
            # is there must not be opened beside SQLite: closing it would take the locks of all our other connections.
            with suppress(FileExistsError):
                os.close(create(path, 0o600))
            self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{path} cannot be opened: {error}") from error
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            self._db.close()
            raise StoreError(f"{path} is no store of ours: {error}") from error

    def get(self, key: str) -> Entry | None:
        rows = self._rows("SELECT key, value, revision FROM entry WHERE key = ? AND value IS NOT NULL", (key,))
        return Entry(*rows[0]) if rows else None

    def list(self, prefix: str) -> Listing:
        with self._transaction("DEFERRED"):
            revision = self._revision()
            rows = self._rows(
                "SELECT key, value, revision FROM entry WHERE key >= ? AND key < ? AND value IS NOT NULL ORDER BY key",
                (prefix, prefix + _LAST),
            )
        return Listing(tuple(Entry(*row) for row in rows), revision)

    def put(self, key: str, value: bytes) -> int:
        revision = self.cas([Write(key, value)])
        assert revision is not None  # nothing was expected, so nothing can have failed to hold
        return revision

    def cas(self, writes: Sequence[Write], checks: Mapping[str, int] | None = None) -> int | None:
        checks = checks or {}
        if len(writes) + len(checks) > MAX_WRITES:
            raise ValueError(f"{len(writes)} writes and {len(checks)} checks at once; at most {MAX_WRITES}")
        for write in writes:
            if write.value is not None and len(write.value) > MAX_VALUE_BYTES:
                raise StoreError(f"{write.key} is {len(write.value)} bytes long; at most {MAX_VALUE_BYTES} are stored")
        expected = [(key, revision) for key, revision in checks.items()]
        expected += [(write.key, write.expect) for write in writes if write.expect is not None]
        with self._transaction("IMMEDIATE"):
            if any(self._revision_of(key) != revision for key, revision in expected):
                return None
            revision = self._revision() + 1
            for write in writes:
                self._rows(
                    "INSERT INTO entry VALUES (?, ?, ?) "
                    "ON CONFLICT (key) DO UPDATE SET value = excluded.value, revision = excluded.revision",
                    (write.key, write.value, revision),
                )
        return revision

    async def watch(self, prefix: str, after: int) -> AsyncIterator[Sequence[Entry]]:
        seen = after
        while True:
            with self._transaction("DEFERRED"):
                newest = self._revision()
                rows = self._rows(
                    "SELECT key, value, revision FROM entry WHERE revision > ? AND key >= ? AND key < ? "
                    "ORDER BY revision, key",
                    (seen, prefix, prefix + _LAST),
                )
            seen = newest
            if rows:
                yield [Entry(*row) for row in rows]
            await asyncio.sleep(POLL_S)

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _transaction(self, kind: str) -> Iterator[None]:
        try:
            self._db.execute(f"BEGIN {kind}")
            try:
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: {error}") from error

    def _rows(self, sql: str, values: tuple[object, ...] = ()) -> _Rows:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: {error}") from error

    def _revision(self) -> int:
        [(newest,)] = self._db.execute("SELECT coalesce(max(revision), 0) FROM entry").fetchall()
        return int(newest)

    def _revision_of(self, key: str) -> int:
        entry = self.get(key)
        return 0 if entry is None else entry.revision
