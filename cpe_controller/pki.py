"""Who vouches that this is that site?

One P-256 root authority per network, which every site pins; under it an authority that issues sites' certificates. A
site's certificate serves TLS towards the controller and IKEv2 towards its peers; its name is ours to give, whatever a
request asks for. The server's own certificate can be nothing but a server's and is the root's own; a site's, and that
of the authority that issues it, can never be a server's: neither a site nor a thief of that authority's key can pass
for the controller.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cpe_controller.network import identity

SITE_DAYS = 200
# Of what needs the root's key, which is offline: once in a few years it is fetched (`cpe-controller renew`).
ONLINE_DAYS = 5 * 365
# The root outlives every router; replacing it is a rotation, not an expiry.
ROOT_DAYS = 20 * 365
# Routers without a clock battery wake up in the past.
BACKDATED = dt.timedelta(days=1)

_GENERATION = re.compile(r"g([1-9][0-9]{0,8})\.")

Key = ec.EllipticCurvePrivateKey
Request = x509.CertificateSigningRequest


@dataclass(frozen=True)
class Authority:
    """Who issues certificates: its key and its certificate."""

    key: Key
    certificate: x509.Certificate

    def pem(self) -> bytes:
        return certificate_pem(self.certificate)


def new_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def some_number() -> str:
    """Six digits, for a name that is like no other."""
    return f"{x509.random_serial_number() % 10**6:06}"


@dataclass(frozen=True)
class Holder:
    """Whose certificate it is: the `generation`th box of this site."""

    site: str
    generation: int


def new_authority(network: str, now: dt.datetime, called: str = "root") -> Authority:
    """A root. Two of one network must not have one name: an issuer is looked up by it."""
    key = new_key()
    name = _name(network, called)
    builder = _authority(name, key, path_length=1).issuer_name(name).not_valid_before(now - BACKDATED)
    return Authority(key, builder.not_valid_after(now + dt.timedelta(days=ROOT_DAYS)).sign(key, hashes.SHA256()))


def new_sites_authority(root: Authority, network: str, now: dt.datetime) -> Authority:
    """Issues sites' certificates and no others: its extended key usage holds for all that is below it."""
    key = new_key()
    name = _name(network, f"sites {now:%Y-%m-%d} {some_number()}")
    builder = (
        _authority(name, key, path_length=0)
        .issuer_name(root.certificate.subject)
        .not_valid_before(max(now - BACKDATED, root.certificate.not_valid_before_utc))
        .not_valid_after(min(now + dt.timedelta(days=ONLINE_DAYS), root.certificate.not_valid_after_utc))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(_issued_by(root), critical=False)
    )
    return Authority(key, builder.sign(root.key, hashes.SHA256()))


def issue_site(
    authority: Authority,
    network: str,
    site: str,
    key: ec.EllipticCurvePublicKey | x509.CertificateSigningRequest,
    now: dt.datetime,
    generation: int = 1,
    days: int = SITE_DAYS,
) -> x509.Certificate:
    """A site's certificate for its public key or its request. Raises ValueError if the key or its proof is wrong."""
    names = [x509.DNSName(identity(site, network, generation))]
    return _issue(authority, _name(network, site), names, ExtendedKeyUsageOID.CLIENT_AUTH, _public(key), now, days)


def issue_server(
    authority: Authority,
    network: str,
    addresses: Sequence[str],
    key: ec.EllipticCurvePublicKey,
    now: dt.datetime,
    days: int = ONLINE_DAYS,
) -> x509.Certificate:
    """The controller's own certificate, for the addresses (IP or DNS) at which agents reach it."""
    names = [_general_name(address) for address in addresses]
    usage = ExtendedKeyUsageOID.SERVER_AUTH
    return _issue(authority, _name(network, "controller"), names, usage, _public(key), now, days)


def holder_of(names: Sequence[tuple[str, str]], network: str) -> Holder | None:
    """Whose certificate has these alternative names, as Python's ssl gives them; None if it is no site's."""
    if len(names) != 1 or names[0][0] != "DNS":
        return None
    name = names[0][1]
    # A site may itself be called g2, so the plain form comes first.
    match = _GENERATION.match(name)
    possible = [Holder(name.partition(".")[0], 1)]
    if match:
        possible.append(Holder(name[match.end() :].partition(".")[0], int(match[1])))
    return next((one for one in possible if name == identity(one.site, network, one.generation)), None)


def request_of(pem: str) -> x509.CertificateSigningRequest:
    """Raises ValueError if it is no PKCS#10 in PEM form, for a P-256 key and signed with it."""
    try:
        request = x509.load_pem_x509_csr(pem.encode())
    except ValueError as error:
        raise ValueError(f"it is no PKCS#10 request in PEM form: {error}") from None
    _public(request)
    return request


def key_hash(request: x509.CertificateSigningRequest) -> str:
    """What stands for the request's key."""
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(request.public_key().public_bytes(encoding, form)).hexdigest()


def key_pem(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(pem: bytes) -> Key:
    """Raises ValueError if it is no unencrypted P-256 private key."""
    key = private_key(pem)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("is no P-256 key")
    return key


def private_key(pem: bytes) -> PrivateKeyTypes:
    """Raises ValueError, in our words, if it is no unencrypted private key."""
    try:
        return serialization.load_pem_private_key(pem, None)
    except TypeError:
        raise ValueError("is encrypted; store it without a password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("is no private key: it begins with -----BEGIN PRIVATE KEY-----") from None


def certificates(pem: bytes) -> list[x509.Certificate]:
    """At least one, or ValueError in our words."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise ValueError("is no certificate: it begins with -----BEGIN CERTIFICATE-----") from None


def certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def fingerprint(certificate: x509.Certificate) -> str:
    """The SHA-256 of its DER, in hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def half_spent(certificate: x509.Certificate, now: dt.datetime) -> bool:
    """Whether half of its life is over: time for the next."""
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return now > start + (end - start) / 2


def _issue(
    authority: Authority,
    subject: x509.Name,
    names: Sequence[x509.GeneralName],
    usage: x509.ObjectIdentifier,
    key: ec.EllipticCurvePublicKey,
    now: dt.datetime,
    days: int,
) -> x509.Certificate:
    issuer = authority.certificate
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(now - BACKDATED, issuer.not_valid_before_utc))
        .not_valid_after(min(now + dt.timedelta(days=days), issuer.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(_issued_by(authority), critical=False)
        .sign(authority.key, hashes.SHA256())
    )


def _authority(name: x509.Name, key: Key, path_length: int) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _issued_by(authority: Authority) -> x509.AuthorityKeyIdentifier:
    identifier = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _public(key: ec.EllipticCurvePublicKey | x509.CertificateSigningRequest) -> ec.EllipticCurvePublicKey:
    public: object = key
    if isinstance(key, x509.CertificateSigningRequest):
        if not key.is_signature_valid:
            raise ValueError("the request is not signed with its own key")
        public = key.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise ValueError("the key is not P-256")
    return public


def _name(network: str, what: str) -> x509.Name:
    attributes = [(NameOID.ORGANIZATION_NAME, f"{network}.cpe"), (NameOID.COMMON_NAME, what)]
    return x509.Name([x509.NameAttribute(oid, text) for oid, text in attributes])


def _general_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        return x509.DNSName(address)


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
