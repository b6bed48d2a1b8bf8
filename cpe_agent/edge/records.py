"""Where are the drills' records, and is what was written there whole?

One file, a line for each record. A line is appended and fsynced before anybody is told of it. A crash in the middle of
a write leaves a piece without an end: it was never told of, so the next record takes its place.
"""

from __future__ import annotations

import os
from pathlib import Path

from cpe_agent.edge.files import sync_directory
from cpe_agent.ports import EdgeError

NAME = "drills.jsonl"
# A drill a day for a hundred years.
MAX_BYTES = 64 * 1024 * 1024


class RecordFile:
    """A `RecordPort` on `state_dir`."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / NAME

    def lines(self) -> tuple[bytes, ...]:
        """Whole lines, without their ends. Raises `EdgeError`."""
        try:
            with self._path.open("rb") as file:
                content = file.read(MAX_BYTES)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise EdgeError("store", "load", f"{self._path} cannot be read: {error.strerror}") from None
        return tuple(content.split(b"\n")[:-1])

    def append(self, line: bytes) -> None:
        """Raises `EdgeError`."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            new = not self._path.exists()
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "r+b") as file:
                whole = file.read().rfind(b"\n") + 1
                file.truncate(whole)
                file.seek(whole)
                file.write(line + b"\n")
                file.flush()
                os.fsync(file.fileno())
            if new:
                sync_directory(self._path.parent)
        except OSError as error:
            raise EdgeError("store", "save", f"{self._path} cannot be written: {error.strerror}") from None
