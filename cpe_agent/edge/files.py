"""How does a file get onto the disk so that a power cut leaves the old one or the new one, whole?

In: a path in a directory that exists, content, mode. Synchronous; raises OSError. `FileStore` and `Credentials` put
their own words to it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, content: bytes, mode: int) -> None:
    """Write beside its place, fsync, rename, and fsync the directory."""
    # Always the same name: what a power cut leaves of it is overwritten, and never piles up.
    beside = path.with_name(f".{path.name}.new")
    # Not what somebody else may have put there: its mode, or what a link leads to.
    with suppress(FileNotFoundError):
        beside.unlink()
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        # Whatever the umask is.
        os.fchmod(descriptor, mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """What was made, renamed or removed in it outlives a power cut from now on."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
