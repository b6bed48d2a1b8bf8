"""Who are we, and can we prove it?

In: the paths of the certificate and its private key, both PEM. Out: an `Identity`, or an `EdgeError` that names the
file and what mends it. One identity serves TLS and IKEv2; its name is the DNS name in the certificate. That it has
expired is no error here: the data plane may outlive it, and the caller knows a better clock than ours.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from cpe_agent.ports import EdgeError

# A chain of a few certificates. Whatever is longer is the wrong file.
MAX_FILE_BYTES = 256 * 1024


class Identity(msgspec.Struct, frozen=True):
    """`certificate_pem` is our own certificate alone, `chain_pem` has the intermediate ones after it; `key_pem` is
    unencrypted PKCS#8, as charon takes it."""

    name: str
    certificate_pem: bytes
    key_pem: bytes
    not_after: dt.datetime
    not_before: dt.datetime
    chain_pem: bytes

    def __repr__(self) -> str:
        # The key must not get into a log by way of somebody's repr().
        return f"Identity(name={self.name!r}, not_after={self.not_after.isoformat()})"


def load_identity(certificate_path: Path, key_path: Path) -> Identity:
    """The identity of this site. If the certificate's file holds a chain, its first certificate is ours."""
    certificate, *intermediate = _certificates(certificate_path)
    name = _name(certificate_path, certificate)
    key = _key(key_path)
    encoding, public = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if key.public_key().public_bytes(encoding, public) != certificate.public_key().public_bytes(encoding, public):
        raise _error(f"{key_path} is not the key of {certificate_path}: put the two that belong together there")
    return Identity(
        name=name,
        certificate_pem=certificate.public_bytes(serialization.Encoding.PEM),
        key_pem=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        not_after=certificate.not_valid_after_utc,
        not_before=certificate.not_valid_before_utc,
        chain_pem=b"".join(c.public_bytes(serialization.Encoding.PEM) for c in (certificate, *intermediate)),
    )


def vouched_by(identity: Identity, cas: Sequence[str]) -> bool:
    """Is the certificate one of the first of these authorities (PEM), which is the root that is to stay? One that does
    not show who issued it is given the benefit of the doubt."""
    chain = x509.load_pem_x509_certificates(identity.chain_pem)
    if not cas or len(chain) < 2:
        return True
    try:
        chain[-1].verify_directly_issued_by(x509.load_pem_x509_certificate(cas[0].encode()))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _certificates(path: Path) -> list[x509.Certificate]:
    content = _read(path)
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        raise _error(f"{path} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)") from None


def _name(path: Path, certificate: x509.Certificate) -> str:
    mend = "have a certificate issued for this site"
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        raise _error(f"{path} has no subjectAltName, so it names nobody: {mend}") from None
    names = extension.value.get_values_for_type(x509.DNSName)
    if len(names) != 1:
        found = ", ".join(names) if names else "none"
        raise _error(f"{path} must have exactly one DNS name in its subjectAltName (it has {found}): {mend}")
    return names[0]


def _key(path: Path) -> PrivateKeyTypes:
    content = _read(path)
    try:
        return serialization.load_pem_private_key(content, password=None)
    except TypeError:
        raise _error(f"{path} is encrypted, and there is nobody to type its password: store it without one") from None
    except (ValueError, UnsupportedAlgorithm):
        raise _error(f"{path} holds no private key in PEM form (-----BEGIN PRIVATE KEY-----)") from None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise _error(f"{path} is not there: enrol this site, or put it there") from None
    except OSError as error:
        raise _error(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise _error(f"{path} is longer than {MAX_FILE_BYTES} bytes: it cannot be the right file")
    return content


def _error(cause: str) -> EdgeError:
    return EdgeError("identity", "load", cause)
