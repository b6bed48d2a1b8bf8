"""How are files of the state directory read and written?

In: a path. Out: its bytes, or a `SetupError` in words. What is written is there whole or not at all, and never for a
moment readable by more than its mode says. What root makes belongs to whoever owns the directory: to the user that
serves, where one serves from there, who could not read it otherwise.
"""

from __future__ import annotations

import os
from pathlib import Path


class SetupError(Exception):
    """A state directory that cannot be made or used; the text says why and what to do."""


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror}") from error


def create(path: Path, mode: int) -> int:
    """A new file's descriptor. Raises OSError, also if it is there."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, mode)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    return descriptor


def save(path: Path, data: bytes, mode: int) -> None:
    new = path.with_name(f".{path.name}.new")
    try:
        new.unlink(missing_ok=True)
        with os.fdopen(create(new, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise SetupError(f"{path} cannot be written: {error.strerror}") from error
