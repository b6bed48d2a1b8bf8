"""The stores: one contract for the fake and for files, then what power cuts, flash and full disks do to files."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpe_agent.edge.store import (
    ADDRESSES,
    CLOCK_FLOOR,
    DOCUMENT,
    INSTANCE,
    ORDER,
    PENDING,
    PREVIOUS,
    REJECTIONS,
    SIGNERS,
    USAGES,
    FileStore,
)
from cpe_agent.model.confirmation import REJECTIONS_MAX, Before, Rejection
from cpe_agent.model.usage import Life, Usage
from cpe_agent.ports import EdgeError, Pending, SignedDocument, Signers, StorePort
from tests.fakes.store import FakeStore

SIGNED = SignedDocument(raw=b'{"schema":1}\n\x00\xff', signature=bytes(range(64)), key_id="2026-a")
OTHER = SignedDocument(raw=b"{}", signature=bytes(64), key_id="b")

USAGES_OF = {
    "lte": Usage("2026-11-05", {"2026-10-05": 3, "2026-11-05": 2**40}, 5, 2**63, 7, Life("boot", "wwan0", 3, 2**63, 7)),
    "wired": Usage("2026-11-01", {}),
}

# The store as the next process finds it.
Restart = Callable[[], StorePort]


@pytest.fixture(params=["fake", "real"])
def restart(request: pytest.FixtureRequest, tmp_path: Path) -> Restart:
    if request.param == "fake":
        fake = FakeStore()
        return lambda: fake
    return lambda: FileStore(tmp_path / "state" / "cpe-agent")


class TestContract:
    def test_nothing_is_known_at_first(self, restart: Restart) -> None:
        assert restart().load_document() is None
        assert restart().load_order() is None
        assert restart().load_clock_floor() == 0.0
        assert restart().load_drained() is False
        assert restart().load_usages() == {}

    def test_what_a_hub_has_given_up_is_not_too_long_to_be_read(self, restart: Restart) -> None:
        """Else its removed peers would have their access back after a restart."""
        removed = tuple(f"hospital-with-a-long-name-{number:05}" for number in range(10_000))
        given_up = tuple(Rejection(1, version, "no", True, removed) for version in range(REJECTIONS_MAX))
        restart().save_rejections(given_up)
        assert restart().load_rejections() == given_up

    def test_a_hub_is_drained_until_it_is_undrained(self, restart: Restart) -> None:
        for drained in (True, True, False, True):
            restart().save_drained(drained)
            assert restart().load_drained() is drained

    def test_what_is_saved_outlives_a_restart(self, restart: Restart) -> None:
        restart().save_document(SIGNED)
        restart().save_order((3, 14))
        restart().save_clock_floor(1_800_000_000.25)
        assert restart().load_document() == SIGNED
        assert restart().load_order() == (3, 14)
        assert restart().load_clock_floor() == 1_800_000_000.25

    def test_what_is_on_trial_outlives_a_restart(self, restart: Restart) -> None:
        assert restart().load_pending() is None and restart().load_previous() is None
        assert restart().load_rejections() == () and restart().load_signers() is None
        before = Before(frozenset({"centre", "cloud"}), frozenset({"rules"}), controller=True)
        for attempts in (1, 2):
            restart().save_pending(Pending(SIGNED, attempts, before))
            assert restart().load_pending() == Pending(SIGNED, attempts, before)
        restart().save_previous(OTHER)
        assert restart().load_previous() == OTHER
        given_up = (Rejection(1, 2, "it crashed", True, ("van-1",), "ab"), Rejection(1, 3, "cut off"))
        restart().save_rejections(given_up)
        assert restart().load_rejections() == given_up
        signers = Signers({"root": "AA=="}, {"a": "AB=="}, {"b": "AC=="})
        restart().save_signers(signers)
        assert restart().load_signers() == signers
        for _ in range(2):  # to remove what is gone is no error
            restart().save_pending(None)
            restart().save_previous(None)
        assert restart().load_pending() is None and restart().load_previous() is None

    def test_a_box_keeps_its_name(self, restart: Restart) -> None:
        assert restart().load_instance() == ""
        restart().save_instance("6f1c1a52")
        assert restart().load_instance() == "6f1c1a52"

    def test_addresses_outlive_a_restart(self, restart: Restart) -> None:
        assert restart().load_addresses() == {}
        addresses = {"controller.example": ("192.0.2.1", "2001:db8::1")}
        restart().save_addresses(addresses)
        assert restart().load_addresses() == addresses

    def test_a_hub_may_have_had_thousands_of_healthy_branches(self, restart: Restart) -> None:
        names = frozenset(f"a-branch-with-quite-a-long-name-{n}" for n in range(10_000))
        restart().save_pending(Pending(SIGNED, 1, Before(names)))
        assert restart().load_pending() == Pending(SIGNED, 1, Before(names))

    def test_what_was_counted_outlives_a_restart(self, restart: Restart) -> None:
        for usages in (USAGES_OF, {"lte": USAGES_OF["lte"]}, USAGES_OF):
            restart().save_usages(usages)
            assert restart().load_usages() == usages

    def test_the_last_one_saved_counts(self, restart: Restart) -> None:
        for document in (SIGNED, OTHER):
            restart().save_document(document)
        for order in ((3, 14), (4, 1)):
            restart().save_order(order)
        for wall_s in (2.0, 1.0):
            restart().save_clock_floor(wall_s)
        assert restart().load_document() == OTHER
        assert restart().load_order() == (4, 1)
        assert restart().load_clock_floor() == 1.0


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def full(state_dir: Path) -> FileStore:
    store = FileStore(state_dir)
    store.save_document(SIGNED)
    store.save_order((3, 14))
    store.save_clock_floor(1.5)
    store.save_pending(Pending(SIGNED, 1, Before()))
    store.save_previous(SIGNED)
    store.save_rejections([Rejection(1, 2, "no")])
    store.save_signers(Signers({}, {}, {}))
    store.save_addresses({})
    store.save_instance("one")
    store.save_usages(USAGES_OF)
    return store


LOADERS: dict[str, Callable[[FileStore], object]] = {
    DOCUMENT: FileStore.load_document,
    ORDER: FileStore.load_order,
    CLOCK_FLOOR: FileStore.load_clock_floor,
    PENDING: FileStore.load_pending,
    PREVIOUS: FileStore.load_previous,
    REJECTIONS: FileStore.load_rejections,
    SIGNERS: FileStore.load_signers,
    ADDRESSES: FileStore.load_addresses,
    INSTANCE: FileStore.load_instance,
    USAGES: FileStore.load_usages,
}
WHOLE_DOCUMENTS = (DOCUMENT, PENDING, PREVIOUS)


def test_nobody_else_can_read_it_and_nothing_else_lies_about(full: FileStore, state_dir: Path) -> None:
    assert stat.S_IMODE(state_dir.stat().st_mode) == 0o700
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in state_dir.iterdir()}
    assert files == dict.fromkeys(LOADERS, 0o600)


@pytest.mark.parametrize("name", LOADERS)
def test_damage_is_told_from_absence_and_mended_by_saving(full: FileStore, state_dir: Path, name: str) -> None:
    whole = (state_dir / name).read_bytes()
    # The last byte of the small files is the newline after the JSON, which says nothing.
    cuts = [whole[:length] for length in range(len(whole) - (name not in WHOLE_DOCUMENTS))]
    for damaged in [*cuts, b"\0" * len(whole), b"\xff\xfe" + whole, b"7\n", whole + b"x"]:
        (state_dir / name).write_bytes(damaged)
        with pytest.raises(EdgeError, match="damaged") as caught:
            LOADERS[name](full)
        assert caught.value.target == "store"
        assert str(state_dir / name) in caught.value.cause
    full.save_document(OTHER)
    full.save_order((5, 1))
    full.save_clock_floor(2.5)
    full.save_pending(Pending(OTHER, 2, Before()))
    full.save_previous(OTHER)
    full.save_rejections([])
    full.save_signers(Signers({}, {}, {}))
    full.save_addresses({})
    full.save_instance("two")
    full.save_usages({})
    assert full.load_usages() == {}
    for load in LOADERS.values():
        load(full)
    assert (full.load_document(), full.load_order(), full.load_clock_floor()) == (OTHER, (5, 1), 2.5)


def test_each_file_is_on_its_own(full: FileStore, state_dir: Path) -> None:
    (state_dir / ORDER).write_bytes(b"")
    assert full.load_document() == SIGNED
    assert full.load_clock_floor() == 1.5


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_save_that_breaks_off_leaves_the_old_one(
    full: FileStore, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os if fails == "fsync" else Path, fails, refuse)
        with pytest.raises(EdgeError, match="No space left on device"):
            full.save_document(OTHER)
    assert full.load_document() == SIGNED
    full.save_document(OTHER)
    assert full.load_document() == OTHER


def test_what_was_left_beside_is_not_followed(full: FileStore, state_dir: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"precious")
    (state_dir / f".{ORDER}.new").symlink_to(elsewhere)
    full.save_order((9, 9))
    assert elsewhere.read_bytes() == b"precious"
    assert full.load_order() == (9, 9)


def test_content_is_on_the_disk_before_the_name_is(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        steps.append("fsync directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "fsync file")
        real_fsync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    FileStore(state_dir).save_order((1, 1))
    assert steps == ["fsync file", "rename", "fsync directory"]


def test_a_state_directory_that_is_no_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = FileStore(tmp_path / "file" / "state")
    with pytest.raises(EdgeError, match=r"file/state/order\.json cannot be written"):
        store.save_order((1, 1))
    with pytest.raises(EdgeError, match="cannot be read"):
        store.load_order()


@given(raw=st.binary(max_size=200), signature=st.binary(max_size=80), key_id=st.text(max_size=20))
def test_any_bytes_survive(tmp_path_factory: pytest.TempPathFactory, raw: bytes, signature: bytes, key_id: str) -> None:
    document = SignedDocument(raw=raw, signature=signature, key_id=key_id)
    directory = tmp_path_factory.mktemp("store")
    FileStore(directory).save_document(document)
    assert FileStore(directory).load_document() == document
