"""What does the agent still know after a restart or a power cut?

In and out: the last good document with its signature, the highest order accepted, the clock floor, whether this hub is
drained, and the bytes counted of each uplink; one file each under the state directory. A file is written beside its
place, fsynced and renamed, and then the directory is fsynced: after a power cut there is the old one or the new one,
whole.

A file that is not what was written (flash does that) or that cannot be read raises `EdgeError` naming it; that is not
the same as None, "never written", and the caller decides whether to go on as if it were. Saving again mends it. Who
only forged a file has to forge the document's signature as well: the caller verifies it after every load.
"""

from __future__ import annotations

import base64
import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from cpe_agent.model.document import MAX_BYTES
from cpe_agent.model.usage import Usage
from cpe_agent.ports import EdgeError, SignedDocument

DOCUMENT = "document"
ORDER = "order.json"
CLOCK_FLOOR = "clock-floor.json"
DRAINED = "drained.json"
USAGES = "metered-bytes.json"

# The document file is one line of JSON, then the document's exact bytes: `tail -n +2` shows what was signed.
HEADER_MAX_BYTES = 4096
# A few hundred bytes for each uplink.
USAGES_MAX_BYTES = 256 * 1024

T = TypeVar("T")


class _Header(msgspec.Struct, frozen=True):
    key_id: str
    signature: str  # base64
    sha256: str  # of the document's bytes: tells a damaged file from a forged one


class _Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    epoch: int
    version: int


class _ClockFloor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    wall_s: float


class _Drained(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    drained: bool


class FileStore:
    """A `StorePort` on `state_dir`, which is made (mode 0700) at the first save. One process writes; any may load."""

    def __init__(self, state_dir: Path) -> None:
        self._dir = state_dir

    def load_document(self) -> SignedDocument | None:
        content = self._read(DOCUMENT, HEADER_MAX_BYTES + MAX_BYTES)
        if content is None:
            return None
        line, separator, raw = content.partition(b"\n")
        if not separator:
            raise self._damaged(DOCUMENT, "it has no document after the first line")
        header = self._decode(DOCUMENT, line, _Header)
        if hashlib.sha256(raw).hexdigest() != header.sha256:
            raise self._damaged(DOCUMENT, f"its {len(raw)} bytes are not those that were saved")
        try:
            signature = base64.b64decode(header.signature, validate=True)
        except ValueError as error:
            raise self._damaged(DOCUMENT, f"its signature is not base64 ({error})") from None
        return SignedDocument(raw=raw, signature=signature, key_id=header.key_id)

    def save_document(self, document: SignedDocument) -> None:
        header = _Header(
            key_id=document.key_id,
            signature=base64.b64encode(document.signature).decode("ascii"),
            sha256=hashlib.sha256(document.raw).hexdigest(),
        )
        self._write(DOCUMENT, msgspec.json.encode(header) + b"\n" + document.raw)

    def load_order(self) -> tuple[int, int] | None:
        """The highest (epoch, version) ever accepted."""
        content = self._read(ORDER, HEADER_MAX_BYTES)
        if content is None:
            return None
        order = self._decode(ORDER, content, _Order)
        return order.epoch, order.version

    def save_order(self, order: tuple[int, int]) -> None:
        self._write(ORDER, msgspec.json.encode(_Order(*order)) + b"\n")

    def load_clock_floor(self) -> float:
        """Wall time, in seconds since 1970, that has certainly passed; 0.0 if none was ever saved."""
        content = self._read(CLOCK_FLOOR, HEADER_MAX_BYTES)
        return 0.0 if content is None else self._decode(CLOCK_FLOOR, content, _ClockFloor).wall_s

    def save_clock_floor(self, wall_s: float) -> None:
        self._write(CLOCK_FLOOR, msgspec.json.encode(_ClockFloor(wall_s)) + b"\n")

    def load_drained(self) -> bool:
        """Whether an operator has drained this hub; False if it was never said."""
        content = self._read(DRAINED, HEADER_MAX_BYTES)
        return content is not None and self._decode(DRAINED, content, _Drained).drained

    def save_drained(self, drained: bool) -> None:
        self._write(DRAINED, msgspec.json.encode(_Drained(drained)) + b"\n")

    def load_usages(self) -> dict[str, Usage]:
        """What was counted of each uplink, by name; empty if nothing ever was."""
        content = self._read(USAGES, USAGES_MAX_BYTES)
        return {} if content is None else self._decode(USAGES, content, dict[str, Usage])

    def save_usages(self, usages: dict[str, Usage]) -> None:
        self._write(USAGES, msgspec.json.encode(usages) + b"\n")

    def _read(self, name: str, at_most: int) -> bytes | None:
        path = self._dir / name
        try:
            with path.open("rb") as file:
                content = file.read(at_most + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise EdgeError("store", "load", f"{path} cannot be read: {error.strerror}") from None
        if not content:
            raise self._damaged(name, "it is empty")
        if len(content) > at_most:
            raise self._damaged(name, f"it is longer than {at_most} bytes")
        return content

    def _decode(self, name: str, content: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self._damaged(name, str(error)) from None

    def _damaged(self, name: str, why: str) -> EdgeError:
        return EdgeError("store", "load", f"{self._dir / name} is damaged: {why}; the next save replaces it")

    def _write(self, name: str, content: bytes) -> None:
        path = self._dir / name
        # Always the same name: what a power cut leaves of it is overwritten, and never piles up.
        beside = self._dir / f".{name}.new"
        try:
            self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Not what somebody else may have put there: its mode, or what a link leads to.
            with suppress(FileNotFoundError):
                beside.unlink()
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
            self._sync_directory()
        except OSError as error:
            raise EdgeError("store", "save", f"{path} cannot be written: {error.strerror}") from None

    def _sync_directory(self) -> None:
        descriptor = os.open(self._dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
