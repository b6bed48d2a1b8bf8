"""The store's contract. Whatever store is added is added to STORES and must keep it."""

from __future__ import annotations

import asyncio
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cpe_controller.store import MAX_WRITES, Store, StoreError, Write
from cpe_controller.store.sqlite import SqliteStore

Open = Callable[[], Store]


@pytest.fixture(params=["sqlite"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the same store again and again, as several processes would."""
    opened: list[Store] = []

    def again() -> Store:
        store = SqliteStore(tmp_path / "store")
        if threading.current_thread() is threading.main_thread():
            opened.append(store)  # SQLite's connections are closed by the thread that opened them
        return store

    yield again
    for store in opened:
        store.close()


def test_what_was_put_is_got_from_anywhere(open_store: Open) -> None:
    one, other = open_store(), open_store()
    assert one.get("a") is None
    first = one.put("a", b"1")
    second = one.put("a", b"2")
    assert second > first
    entry = other.get("a")
    assert entry is not None and (entry.value, entry.revision) == (b"2", second)


def test_list_is_by_prefix_and_sorted(open_store: Open) -> None:
    store = open_store()
    for key in ("d/b", "d/a", "d", "e/a", "d/é"):
        store.put(key, key.encode())
    listing = store.list("d/")
    assert [entry.key for entry in listing.entries] == ["d/a", "d/b", "d/é"]
    assert listing.revision == store.list("").revision


def test_cas_is_all_or_nothing(open_store: Open) -> None:
    store = open_store()
    revision = store.put("a", b"1")
    assert store.cas([Write("b", b"1"), Write("a", b"2", expect=revision - 1)]) is None
    assert store.get("b") is None
    assert store.cas([Write("b", b"1", expect=0), Write("a", b"2", expect=revision)]) is not None
    assert store.cas([Write("b", b"2", expect=0)]) is None
    assert store.cas([Write("c", b"1")], {"a": revision}) is None
    assert store.get("c") is None


def test_a_deleted_key_is_absent(open_store: Open) -> None:
    store = open_store()
    store.put("a", b"1")
    assert store.cas([Write("a", None), Write("never-there", None)]) is not None
    assert store.get("a") is None
    assert store.list("").entries == ()
    assert store.cas([Write("a", b"2", expect=0)]) is not None


def test_limits_are_kept(open_store: Open) -> None:
    store = open_store()
    with pytest.raises(ValueError, match="101 writes"):
        store.cas([Write(str(n), b"") for n in range(MAX_WRITES + 1)])
    with pytest.raises(StoreError, match="bytes long"):
        store.put("a", bytes(2_000_000))
    assert store.list("").entries == ()


def test_a_watch_misses_nothing(open_store: Open) -> None:
    store, other = open_store(), open_store()
    store.put("d/old", b"")
    after = store.list("d/").revision
    store.put("d/before", b"1")

    async def watch() -> list[tuple[str, bytes | None]]:
        seen: list[tuple[str, bytes | None]] = []
        async for entries in store.watch("d/", after):
            seen += [(entry.key, entry.value) for entry in entries]
            if len(seen) == 1:
                other.put("elsewhere", b"")
                other.put("d/during", b"2")
                other.cas([Write("d/old", None)])
            if len(seen) >= 3:
                return seen
        raise AssertionError("a watch never ends")

    seen = asyncio.run(asyncio.wait_for(watch(), 5))
    assert seen == [("d/before", b"1"), ("d/during", b"2"), ("d/old", None)]


def test_concurrent_writers_each_count_once(open_store: Open) -> None:
    open_store().put("n", b"0")

    def add(times: int) -> None:
        store = open_store()
        try:
            while times:
                entry = store.get("n")
                assert entry is not None and entry.value is not None
                if store.cas([Write("n", b"%d" % (int(entry.value) + 1), entry.revision)]) is not None:
                    times -= 1
        finally:
            store.close()

    threads = [threading.Thread(target=add, args=(20,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entry = open_store().get("n")
    assert entry is not None and entry.value == b"60"


def test_the_file_is_its_owners_only(tmp_path: Path) -> None:
    SqliteStore(tmp_path / "store").close()
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o600
    (tmp_path / "other").write_text("this is no database, but it is long enough to look at " * 20)
    with pytest.raises(StoreError, match="no store of ours"):
        SqliteStore(tmp_path / "other")
    with pytest.raises(StoreError, match="cannot be opened"):
        SqliteStore(tmp_path / "nowhere" / "store")
