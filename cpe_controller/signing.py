"""Who says that a document is ours?

An Ed25519 key signs `SIGNATURE_CONTEXT` and the document's exact bytes. Only `apply` needs the key; what serves
documents serves the signatures that were made.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cpe_agent.model.document import SIGNATURE_CONTEXT, SigningKey
from cpe_controller.pki import private_key


@dataclass(frozen=True)
class Signer:
    """A signing key. `public` is what documents list under trust.signing_keys."""

    _key: Ed25519PrivateKey
    public: SigningKey

    @classmethod
    def new(cls) -> Signer:
        return cls.of(Ed25519PrivateKey.generate())

    @classmethod
    def of(cls, key: Ed25519PrivateKey) -> Signer:
        return cls(key, _public(key.public_key()))

    @classmethod
    def from_pem(cls, pem: bytes) -> Signer:
        """Raises ValueError if it is no unencrypted Ed25519 private key."""
        key = private_key(pem)
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError("is no Ed25519 key")
        return cls.of(key)

    def pem(self) -> bytes:
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def sign(self, raw: bytes) -> str:
        """The value of the signature header for a document's exact bytes."""
        return base64.b64encode(self._key.sign(SIGNATURE_CONTEXT + raw)).decode()


def public_key(pem: bytes) -> SigningKey:
    """Raises ValueError if it is no Ed25519 public key in PEM form."""
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("it begins with -----BEGIN PUBLIC KEY-----") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("is no Ed25519 key")
    return _public(key)


def verify(key: SigningKey, raw: bytes, signature: str) -> bool:
    """Whether `signature` (the header's value) is `key`'s over `raw`."""
    try:
        public = Ed25519PublicKey.from_public_bytes(base64.b64decode(key.key, validate=True))
        public.verify(base64.b64decode(signature, validate=True), SIGNATURE_CONTEXT + raw)
    except (InvalidSignature, ValueError):
        return False
    return True


def _public(key: Ed25519PublicKey) -> SigningKey:
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return SigningKey(id=hashlib.sha256(raw).hexdigest()[:16], key=base64.b64encode(raw).decode())
