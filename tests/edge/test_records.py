"""Is every record whole, whatever happens in the middle of a write?"""

from __future__ import annotations

from pathlib import Path

import pytest

from cpe_agent.edge.records import NAME, RecordFile
from cpe_agent.ports import EdgeError


def test_that_lines_come_back_in_their_order(tmp_path: Path) -> None:
    store = RecordFile(tmp_path / "state")
    assert store.lines() == ()
    for line in (b"one", b"two", b"three"):
        store.append(line)
    assert RecordFile(tmp_path / "state").lines() == (b"one", b"two", b"three")
    assert (tmp_path / "state" / NAME).stat().st_mode & 0o777 == 0o600


def test_that_a_piece_of_a_line_is_no_record_and_gives_way_to_the_next(tmp_path: Path) -> None:
    store = RecordFile(tmp_path)
    store.append(b"one")
    with (tmp_path / NAME).open("ab") as file:
        file.write(b'{"number":2,"prev')
    assert store.lines() == (b"one",)
    store.append(b"two")
    assert (tmp_path / NAME).read_bytes() == b"one\ntwo\n"


def test_that_what_is_written_before_is_never_touched(tmp_path: Path) -> None:
    store = RecordFile(tmp_path)
    store.append(b"one")
    inode, before = (tmp_path / NAME).stat().st_ino, (tmp_path / NAME).read_bytes()
    store.append(b"two")
    assert (tmp_path / NAME).stat().st_ino == inode and (tmp_path / NAME).read_bytes().startswith(before)


def test_that_a_place_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    store = RecordFile(tmp_path)
    with pytest.raises(EdgeError, match=NAME):
        store.lines()
    with pytest.raises(EdgeError, match=NAME):
        store.append(b"one")
