"""May this document be applied?

Pure. In: a document as it travelled, who may sign, which site we are, the highest (epoch, version) seen, the document
in force, and the clock. Out: the `Document`, or `DocumentError`. The signature is verified over the exact bytes before
anything is parsed.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cpe_agent.model.document import MAX_BYTES, SIGNATURE_CONTEXT, Document, DocumentError
from cpe_agent.model.document_check import decode
from cpe_agent.model.removal import refuse_mass_removal


class Clock(msgspec.Struct, frozen=True):
    """Wall time (never below the floor) and whether it may be believed. An untrusted clock expires nothing."""

    now: float
    trusted: bool


def signing_keys(document: Document | None, bootstrap: Mapping[str, str]) -> dict[str, str]:
    """Key id -> base64 key: what the document in force trusts, or what the box was enrolled with."""
    if document is not None and document.trust.signing_keys:
        return {key.id: key.key for key in document.trust.signing_keys}
    return dict(bootstrap)


def verify(raw: bytes, signature: bytes, key_id: str, keys: Mapping[str, str]) -> None:
    """Raises `DocumentError` unless one of `keys`, `key_id`, has signed exactly these bytes."""
    if len(raw) > MAX_BYTES:
        raise DocumentError("", f"is {len(raw)} bytes long; at most {MAX_BYTES} are read")
    if key_id not in keys:
        raise DocumentError("signature", f"is by key {key_id!r}, which this site does not trust")
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(keys[key_id], validate=True))
        key.verify(signature, SIGNATURE_CONTEXT + raw)
    except (ValueError, binascii.Error) as error:
        raise DocumentError("signature", f"key {key_id!r} is no Ed25519 key: {error}") from None
    except InvalidSignature:
        raise DocumentError("signature", f"does not fit the document (key {key_id!r})") from None


def obey(
    raw: bytes,
    site: str,
    highest: tuple[int, int] | None,
    current: Document | None,
    clock: Clock,
    *,
    stored: bool = False,
) -> Document:
    """The document in verified bytes, if it is ours, newer, alive and no disaster. `stored`: it was accepted before, so
    its own order and an expiry in the meantime do not speak against it."""
    document = decode(raw)
    if document.site != site:
        raise DocumentError("site", f"is {document.site!r}; this is {site!r}")
    if current is not None and document.network != current.network:
        raise DocumentError("network", f"is {document.network!r}; this site belongs to {current.network!r}")
    if stored:
        return document
    if highest is not None and document.order <= highest:
        raise DocumentError("version", f"{_order(document.order)} is not newer than {_order(highest)}")
    if clock.trusted and document.expires_at.timestamp() <= clock.now:
        raise DocumentError("expires_at", f"{document.expires_at.isoformat()} has passed")
    if current is not None and not document.allow_mass_removal:
        refuse_mass_removal(document, current)
    return document


def lapsed(document: Document, clock: Clock) -> bool:
    """Has its time run out, so that it is to be closed? A clock that is not trusted says nothing."""
    return document.on_expiry == "block" and clock.trusted and clock.now >= document.expires_at.timestamp()


def in_time(document: Document, clock: Clock) -> Document:
    """What is left of a document that is in force: once it is lapsed its paths stay up, so that a newer one is in force
    in no time, and nobody may talk."""
    return msgspec.structs.replace(document, pairs=()) if lapsed(document, clock) else document


def _order(order: tuple[int, int]) -> str:
    return f"epoch {order[0]} version {order[1]}"
