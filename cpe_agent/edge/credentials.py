"""Where do key, certificate and authorities of an enrolled box live, and how are they replaced?

`STATE/identity` is a symbolic link to a directory of `STATE/identities` with key.pem, certificate.pem and ca.pem that
belong together. A renewed set is written whole beside the old one and the link is renamed over: a power cut leaves one
or the other, never a key without its certificate. Private keys are made here and leave this machine for nobody.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cpe_agent.edge.files import sync_directory, write_whole
from cpe_agent.ports import EdgeError

LINK = "identity"
SETS = "identities"
KEY, CERTIFICATE, AUTHORITIES = "key.pem", "certificate.pem", "ca.pem"
# The key of an enrolment or a renewal that is under way: the same one is asked with until it is answered.
NEXT_KEY = "next-key.pem"


class Credentials:
    """Of the box whose state directory this is. One process writes."""

    def __init__(self, state_dir: Path) -> None:
        self._dir = state_dir

    @property
    def present(self) -> bool:
        return all((self._dir / LINK / name).is_file() for name in (KEY, CERTIFICATE, AUTHORITIES))

    def next_csr(self) -> str:
        """A request (PEM) for the key that is to come, which is made at the first call and kept until `replace`.
        Raises EdgeError."""
        path = self._dir / NEXT_KEY
        try:
            try:
                pem = path.read_bytes()
                key = serialization.load_pem_private_key(pem, None)
                if pem == self._key_in_use():
                    # Its certificate came, and then the power went before it was tidied away.
                    raise ValueError
            except (FileNotFoundError, ValueError, TypeError):
                key = ec.generate_private_key(ec.SECP256R1())
                self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_whole(path, _pem(key), 0o600)
        except OSError as error:
            raise EdgeError("store", "make key", f"{path} cannot be written: {error.strerror}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise EdgeError("store", "make key", f"{path} is no P-256 key: remove it")
        # The controller sets the names.
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cpe-agent")])
        request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
        return request.public_bytes(serialization.Encoding.PEM).decode()

    def _key_in_use(self) -> bytes:
        try:
            return (self._dir / LINK / KEY).read_bytes()
        except FileNotFoundError:
            return b""

    def replace(self, chain_pem: str, cas_pem: str) -> None:
        """The certificate for the next key has come: from now on these are the box's. Raises EdgeError, also if the
        certificate is for another key; then nothing has changed."""
        try:
            key = (self._dir / NEXT_KEY).read_bytes()
            private = serialization.load_pem_private_key(key, None)
            certificates = x509.load_pem_x509_certificates(chain_pem.encode())
            x509.load_pem_x509_certificates(cas_pem.encode())
        except (OSError, ValueError, TypeError) as error:
            raise EdgeError("controller", "certificate", f"what came is no certificate: {error}") from None
        if _public(private) != _public(certificates[0]):
            raise EdgeError("controller", "certificate", "the certificate that came is for another key")
        sets = self._dir / SETS
        fresh = sets / f"{certificates[0].serial_number:x}"
        try:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(mode=0o700, parents=True)
            write_whole(fresh / KEY, key, 0o600)
            write_whole(fresh / CERTIFICATE, chain_pem.encode(), 0o644)
            write_whole(fresh / AUTHORITIES, cas_pem.encode(), 0o644)
            sync_directory(fresh)
            sync_directory(sets)
            beside = self._dir / f".{LINK}.new"
            with suppress(FileNotFoundError):
                beside.unlink()
            beside.symlink_to(fresh.relative_to(self._dir))
            beside.replace(self._dir / LINK)
            sync_directory(self._dir)
            (self._dir / NEXT_KEY).unlink()
            for other in sets.iterdir():
                if other != fresh:
                    shutil.rmtree(other, ignore_errors=True)
        except OSError as error:
            raise EdgeError("store", "save identity", f"{fresh} cannot be written: {error.strerror}") from None


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _public(holder: object) -> bytes:
    public = holder.public_key()  # type: ignore[attr-defined]
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    encoded: bytes = public.public_bytes(serialization.Encoding.DER, spki)
    return encoded
