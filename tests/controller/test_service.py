"""Does the service manager learn when the controller serves, and can the service read what root has written?"""

from __future__ import annotations

import os
import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cpe_controller import setup
from cpe_controller.files import save
from cpe_controller.service import READY
from cpe_controller.store.sqlite import SqliteStore
from tests.controller.conftest import serving

NOBODY = 65534
WAIT_S = 10.0


@pytest.mark.parametrize("name", ["path", "abstract"])
def test_that_ready_is_said_once_when_all_is_listened_to(
    name: str, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{tmp_path}/notify" if name == "path" else f"@{tmp_path}/notify"
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0", 1))
        manager.settimeout(WAIT_S)
        with serving(state):
            assert manager.recv(4096) == READY
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as command:
                command.connect(str(state / "control.sock"))
            manager.setblocking(False)
            with pytest.raises(BlockingIOError):
                manager.recv(4096)


def test_that_nobody_has_to_listen(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    with serving(state) as served:
        assert served.process.poll() is None


def test_that_what_root_writes_belongs_to_the_directorys_owner(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    os.chown(state, NOBODY, NOBODY)
    save(state / "a.key", b"secret", 0o600)
    store, written = SqliteStore(state / setup.STORE), sqlite3.connect(state / setup.STORE)
    with closing(store), closing(written):
        written.execute("BEGIN IMMEDIATE")
        made = list(state.iterdir())
        assert len(made) == 4, made
        assert {(file.stat().st_uid, file.stat().st_mode & 0o777) for file in made} == {(NOBODY, 0o600)}
