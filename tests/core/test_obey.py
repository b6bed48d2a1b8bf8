"""Which documents may be applied?"""

from __future__ import annotations

import base64
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from cpe_agent.core.obey import Clock, obey, signing_keys, verify
from cpe_agent.model import document as doc
from cpe_agent.model.document import DocumentError, SigningKey, Trust, encode
from tests.core import documents
from tests.core.documents import CENTRE, CENTRE_LAN, EXPIRES, ISSUED, branch, pair

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
IN_TIME = Clock(ISSUED.timestamp() + 60, trusted=True)
TOO_LATE = EXPIRES.timestamp() + 1


def public(key: Ed25519PrivateKey) -> str:
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


KEYS = {"k1": public(KEY), "k2": public(OTHER)}
RAW = encode(branch())
SIGNATURE = KEY.sign(doc.SIGNATURE_CONTEXT + RAW)


def test_a_good_signature() -> None:
    verify(RAW, SIGNATURE, "k1", KEYS)


@given(at=st.integers(0, len(RAW) - 1), flip=st.integers(1, 255))
def test_one_changed_byte_breaks_the_signature(at: int, flip: int) -> None:
    damaged = RAW[:at] + bytes([RAW[at] ^ flip]) + RAW[at + 1 :]
    with pytest.raises(DocumentError) as caught:
        verify(damaged, SIGNATURE, "k1", KEYS)
    assert caught.value.path == "signature"


@pytest.mark.parametrize(
    ("raw", "signature", "key_id", "keys"),
    [
        (RAW + b"\n", SIGNATURE, "k1", KEYS),
        (RAW, SIGNATURE, "k2", KEYS),
        (RAW, SIGNATURE, "k3", KEYS),
        (RAW, SIGNATURE, "k1", {}),
        (RAW, b"", "k1", KEYS),
        (RAW, SIGNATURE[:-1], "k1", KEYS),
        # Without the context line, as some other signed thing would be.
        (RAW, KEY.sign(RAW), "k1", KEYS),
        (RAW, SIGNATURE, "k1", {"k1": "not base64!"}),
        (RAW, SIGNATURE, "k1", {"k1": "AAAA"}),
        (RAW, SIGNATURE, "k1", {"k1": "\u00e9"}),
    ],
)
def test_a_bad_signature(raw: bytes, signature: bytes, key_id: str, keys: dict[str, str]) -> None:
    with pytest.raises(DocumentError) as caught:
        verify(raw, signature, key_id, keys)
    assert caught.value.path == "signature"


def test_too_long_is_refused_before_anything_is_verified() -> None:
    with pytest.raises(DocumentError, match="bytes long"):
        verify(bytes(doc.MAX_BYTES + 1), b"", "k1", {})


def test_who_may_sign() -> None:
    bootstrap = {"boot": public(KEY)}
    assert signing_keys(None, bootstrap) == bootstrap
    assert signing_keys(branch(), bootstrap) == bootstrap
    trusting = branch(trust=Trust(signing_keys=(SigningKey("new", public(OTHER)),)))
    assert signing_keys(trusting, bootstrap) == {"new": public(OTHER)}


def accept(document: doc.Document, **changes: Any) -> doc.Document:
    arguments: dict[str, Any] = {"highest": (1, 6), "current": None, "clock": IN_TIME, **changes}
    return obey(encode(document), "hospital-1", **arguments)


def test_a_good_document_is_returned() -> None:
    assert accept(branch()) == branch()
    assert accept(branch(), highest=None) == branch()


@pytest.mark.parametrize(
    ("document", "arguments", "path"),
    [
        (documents.hub(), {}, "site"),
        (branch(network="village"), {"current": branch()}, "network"),
        (branch(), {"highest": (1, 7)}, "version"),
        (branch(), {"highest": (1, 8)}, "version"),
        (branch(version=100), {"highest": (2, 1)}, "version"),
        (branch(), {"clock": Clock(TOO_LATE, trusted=True)}, "expires_at"),
        (branch(), {"clock": Clock(EXPIRES.timestamp(), trusted=True)}, "expires_at"),
        (branch(peers={}, pairs=()), {"current": branch()}, "peers"),
        (branch(pairs=documents.PAIRS[:1]), {"current": branch()}, "pairs"),
        # Refused for the site before anything else about it matters, stored or not.
        (documents.hub(), {"stored": True}, "site"),
    ],
)
def test_refused(document: doc.Document, arguments: dict[str, Any], path: str) -> None:
    with pytest.raises(DocumentError) as caught:
        accept(document, **arguments)
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("document", "arguments"),
    [
        (branch(epoch=2, version=1), {"highest": (1, 100)}),
        (branch(), {"clock": Clock(TOO_LATE, trusted=False)}),
        (branch(), {"stored": True, "highest": (1, 7), "clock": Clock(TOO_LATE, trusted=True)}),
        (branch(peers={}, pairs=(), allow_mass_removal=True), {"current": branch()}),
        (branch(pairs=(), allow_mass_removal=True), {"current": branch()}),
        # Exactly half is no mass.
        (branch(pairs=documents.PAIRS[:2]), {"current": branch()}),
        # One pair of one is a change that somebody makes on purpose.
        (branch(pairs=()), {"current": branch(pairs=documents.PAIRS[:1])}),
        (branch(peers={"centre": CENTRE}, pairs=(pair("web", CENTRE_LAN, "centre"),)), {}),
    ],
)
def test_accepted(document: doc.Document, arguments: dict[str, Any]) -> None:
    assert accept(document, **arguments) == document
