"""What does the agent still know after a restart or a power cut?

In and out: the last good document with its signature, the one before it and the one on trial, those that were given up,
who may sign, the highest order accepted, the clock floor, whether this hub is drained, and the bytes counted of each
uplink; one file each under the state directory. A file is written beside its place, fsynced and renamed, and then the
directory is fsynced: after a power cut there is the old one or the new one, whole.

A file that is not what was written (flash does that) or that cannot be read raises `EdgeError` naming it; that is not
the same as None, "never written", and the caller decides whether to go on as if it were. Saving again mends it. Who
only forged a file has to forge the document's signature as well: the caller verifies it after every load.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from cpe_agent.edge.files import sync_directory, write_whole
from cpe_agent.model.confirmation import REJECTIONS_MAX, Before, Rejection
from cpe_agent.model.document import MAX_BYTES
from cpe_agent.model.enrolment import Enrolment
from cpe_agent.model.usage import Usage
from cpe_agent.ports import EdgeError, Pending, SignedDocument, Signers

DOCUMENT = "document"
PREVIOUS = "document-previous"
PENDING = "document-pending"
REJECTIONS = "rejected.json"
SIGNERS = "signers.json"
ADDRESSES = "controller-addresses.json"
INSTANCE = "instance.json"
ENROLMENT = "enrolment.json"
ORDER = "order.json"
CLOCK_FLOOR = "clock-floor.json"
DRAINED = "drained.json"
USAGES = "metered-bytes.json"

# A document file is one line of JSON, then the document's exact bytes: `tail -n +2` shows what was signed. The line of
# a pending one lists the peers that were healthy, thousands on a hub.
HEADER_MAX_BYTES = 4096
PENDING_HEADER_MAX_BYTES = 1024 * 1024
LIST_MAX_BYTES = 1024 * 1024
# Each document that was given up names the peers that it had taken away: on a hub, all that a document has room for.
# What is longer than is read would be as good as none, and give them back.
REJECTIONS_MAX_BYTES = REJECTIONS_MAX * MAX_BYTES
# A few hundred bytes for each uplink.
USAGES_MAX_BYTES = 256 * 1024

T = TypeVar("T")
H = TypeVar("H", bound="_Header")


class _Header(msgspec.Struct, frozen=True):
    key_id: str
    signature: str  # base64
    sha256: str  # of the document's bytes: tells a damaged file from a forged one


class _PendingHeader(_Header, frozen=True):
    attempts: int
    before: Before


class _Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    epoch: int
    version: int


class _ClockFloor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    wall_s: float


class _Drained(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    drained: bool


class _Instance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    instance: str


class FileStore:
    """A `StorePort` on `state_dir`, which is made (mode 0700) at the first save. One process writes; any may load."""

    def __init__(self, state_dir: Path) -> None:
        self._dir = state_dir

    def load_document(self) -> SignedDocument | None:
        return self._load_signed(DOCUMENT)

    def save_document(self, document: SignedDocument) -> None:
        self._save_signed(DOCUMENT, _header(document), document)

    def load_previous(self) -> SignedDocument | None:
        return self._load_signed(PREVIOUS)

    def save_previous(self, document: SignedDocument | None) -> None:
        """None: there is none."""
        if document is None:
            self._remove(PREVIOUS)
        else:
            self._save_signed(PREVIOUS, _header(document), document)

    def load_pending(self) -> Pending | None:
        found = self._load_with(PENDING, _PendingHeader, PENDING_HEADER_MAX_BYTES)
        if found is None:
            return None
        header, signed = found
        return Pending(signed, header.attempts, header.before)

    def save_pending(self, pending: Pending | None) -> None:
        """None: there is none any more."""
        if pending is None:
            self._remove(PENDING)
            return
        plain = _header(pending.signed)
        header = _PendingHeader(plain.key_id, plain.signature, plain.sha256, pending.attempts, pending.before)
        self._save_signed(PENDING, header, pending.signed)

    def load_rejections(self) -> tuple[Rejection, ...]:
        content = self._read(REJECTIONS, REJECTIONS_MAX_BYTES)
        return () if content is None else self._decode(REJECTIONS, content, tuple[Rejection, ...])

    def save_rejections(self, rejections: Sequence[Rejection]) -> None:
        self._write(REJECTIONS, msgspec.json.encode(list(rejections)) + b"\n")

    def load_signers(self) -> Signers | None:
        content = self._read(SIGNERS, LIST_MAX_BYTES)
        return None if content is None else self._decode(SIGNERS, content, Signers)

    def save_signers(self, signers: Signers) -> None:
        self._write(SIGNERS, msgspec.json.encode(signers) + b"\n")

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

    def load_enrolment(self) -> Enrolment | None:
        content = self._read(ENROLMENT, LIST_MAX_BYTES)
        return None if content is None else self._decode(ENROLMENT, content, Enrolment)

    def save_enrolment(self, enrolment: Enrolment) -> None:
        self._write(ENROLMENT, msgspec.json.encode(enrolment) + b"\n")

    def load_instance(self) -> str:
        content = self._read(INSTANCE, HEADER_MAX_BYTES)
        return "" if content is None else self._decode(INSTANCE, content, _Instance).instance

    def save_instance(self, instance: str) -> None:
        self._write(INSTANCE, msgspec.json.encode(_Instance(instance)) + b"\n")

    def load_addresses(self) -> Mapping[str, tuple[str, ...]]:
        content = self._read(ADDRESSES, LIST_MAX_BYTES)
        return {} if content is None else self._decode(ADDRESSES, content, dict[str, tuple[str, ...]])

    def save_addresses(self, addresses: Mapping[str, tuple[str, ...]]) -> None:
        self._write(ADDRESSES, msgspec.json.encode(dict(addresses)) + b"\n")

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

    def _load_signed(self, name: str) -> SignedDocument | None:
        found = self._load_with(name, _Header, HEADER_MAX_BYTES)
        return None if found is None else found[1]

    def _load_with(self, name: str, kind: type[H], at_most: int) -> tuple[H, SignedDocument] | None:
        """The first line of a document's file, and the document."""
        content = self._read(name, at_most + MAX_BYTES)
        if content is None:
            return None
        line, separator, raw = content.partition(b"\n")
        if not separator:
            raise self._damaged(name, "it has no document after the first line")
        header = self._decode(name, line, kind)
        if hashlib.sha256(raw).hexdigest() != header.sha256:
            raise self._damaged(name, f"its {len(raw)} bytes are not those that were saved")
        try:
            signature = base64.b64decode(header.signature, validate=True)
        except ValueError as error:
            raise self._damaged(name, f"its signature is not base64 ({error})") from None
        return header, SignedDocument(raw=raw, signature=signature, key_id=header.key_id)

    def _save_signed(self, name: str, header: _Header, document: SignedDocument) -> None:
        self._write(name, msgspec.json.encode(header) + b"\n" + document.raw)

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
        try:
            self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(path, content, 0o600)
        except OSError as error:
            raise EdgeError("store", "save", f"{path} cannot be written: {error.strerror}") from None

    def _remove(self, name: str) -> None:
        path = self._dir / name
        try:
            path.unlink()
            sync_directory(self._dir)
        except FileNotFoundError:
            return
        except OSError as error:
            raise EdgeError("store", "save", f"{path} cannot be removed: {error.strerror}") from None


def _header(document: SignedDocument) -> _Header:
    return _Header(
        key_id=document.key_id,
        signature=base64.b64encode(document.signature).decode("ascii"),
        sha256=hashlib.sha256(document.raw).hexdigest(),
    )
