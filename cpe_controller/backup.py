"""How does a controller survive the loss of its machine?

`backup`: everything of a state directory but the roots' keys, in one file, while the controller runs. `restore`: a new
state directory from it, in a new epoch: whatever sites have been offered since the backup, the next documents are
newer.

What the file does not know is lost: who was revoked or enrolled since. Boxes that took another's place are recognised
by their certificates; revoke again whom you revoked.
"""

from __future__ import annotations

import datetime as dt
import gzip
import io
import sqlite3
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import msgspec

from cpe_controller import audit
from cpe_controller.authorities import NEXT_CERTIFICATE
from cpe_controller.files import SetupError, read, save
from cpe_controller.publish import ROLLOUT, WAITING
from cpe_controller.setup import NEXT_KEY, SETUP, STORE, Setup, has_store, opened
from cpe_controller.store import MAX_WRITES, Store, Write

# Name -> mode. signing.key is left out where it is not held.
FILES = {
    "root.pem": 0o644,
    NEXT_CERTIFICATE: 0o644,
    "sites.pem": 0o644,
    "sites.key": 0o600,
    "server.pem": 0o644,
    "server.key": 0o600,
    "signing.pub": 0o644,
    "signing.key": 0o600,
    NEXT_KEY: 0o600,
}
_OPTIONAL = ("signing.key", NEXT_KEY, NEXT_CERTIFICATE)
# A store of 10,000 sites has about 100 MB.
FILE_MAX_BYTES = 4 * 1024**3


def backup(state_dir: Path, file: Path, by: str) -> tuple[str, ...]:
    """The names of what is in it. It holds private keys: for its owner only."""
    with opened(state_dir) as (store, _):
        audit.append(store, dt.datetime.now(dt.UTC), by, "backup", {"to": str(file)})
    packed = io.BytesIO()
    names = []
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in _contents(state_dir):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
            names.append(name)
    save(file, packed.getvalue(), 0o600)
    return tuple(names)


def restore(file: Path, state_dir: Path, now: dt.datetime, by: str) -> Setup:
    """Raises SetupError; a directory that holds a controller, or keys that the backup does not, is left alone."""
    if has_store(state_dir):
        raise SetupError(f"{state_dir} holds a controller; restore into another directory, or move that one away")
    contents = _unpacked(file)
    _refuse_other_keys(state_dir, contents)
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"{state_dir} cannot be made: {error.strerror}") from error
    for name, mode in FILES.items():
        if name in contents:
            save(state_dir / name, contents[name], mode)
    # Last, and whole: a directory without it holds no controller.
    save(state_dir / STORE, contents[STORE], 0o600)
    with opened(state_dir) as (store, setup):
        setup = _in_new_epoch(store, setup, now)
        audit.append(store, now, by, "restore", {"from": str(file), "epoch": str(setup.epoch)})
    return setup


def _refuse_other_keys(state_dir: Path, contents: Mapping[str, bytes]) -> None:
    """A directory that has lost its store is mended in place, but no key is ever written over."""
    for name in sorted(contents):
        path = state_dir / name
        if (name == "root.pem" or path.suffix == ".key") and path.exists() and read(path) != contents[name]:
            raise SetupError(
                f"{path} is not the one of this backup; restore into another directory, or move {state_dir} away"
            )


def _in_new_epoch(store: Store, setup: Setup, now: dt.datetime) -> Setup:
    """By the clock, and not the next number: of two restores of one backup the later must be newer."""
    new = msgspec.structs.replace(setup, epoch=max(setup.epoch + 1, int(now.timestamp())))
    stale = [entry.key for entry in store.list(WAITING).entries]
    store.cas([Write(SETUP, msgspec.json.encode(new)), Write(ROLLOUT, None)])
    for start in range(0, len(stale), MAX_WRITES):
        store.cas([Write(key, None) for key in stale[start : start + MAX_WRITES]])
    return new


def _contents(state_dir: Path) -> Iterator[tuple[str, bytes]]:
    for name in FILES:
        path = state_dir / name
        if name in _OPTIONAL and not path.exists():
            continue
        try:
            yield name, path.read_bytes()
        except OSError as error:
            raise SetupError(f"{path} cannot be read: {error.strerror}") from error
    with tempfile.TemporaryDirectory(dir=state_dir) as directory:
        copy = Path(directory) / STORE
        try:
            with closing(sqlite3.connect(state_dir / STORE)) as source, closing(sqlite3.connect(copy)) as target:
                source.backup(target)
        except sqlite3.Error as error:
            raise SetupError(f"{state_dir / STORE} cannot be copied: {error}") from error
        yield STORE, copy.read_bytes()


def _unpacked(file: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(file, "r:gz") as tar:
            for entry in tar:
                content = tar.extractfile(entry) if entry.isfile() and entry.size <= FILE_MAX_BYTES else None
                if entry.name not in (*FILES, STORE) or content is None:
                    raise SetupError(f"{file} is no backup of ours: it holds {entry.name!r}")
                found[entry.name] = content.read()
    except (EOFError, tarfile.TarError, gzip.BadGzipFile, zlib.error):
        raise SetupError(
            f"{file} is no backup of ours, or is cut short: `cpe-controller backup FILE` makes one"
        ) from None
    except OSError as error:
        raise SetupError(f"{file} cannot be read: {error.strerror or error}") from error
    missing = [name for name in (*FILES, STORE) if name not in found and name not in _OPTIONAL]
    if missing:
        raise SetupError(f"{file} is no whole backup: {', '.join(missing)} is missing")
    return found
