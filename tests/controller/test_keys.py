"""Certificates and signatures: who can pass for whom, and who cannot."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cpe_controller import pki
from cpe_controller.signing import Signer, verify

NOW = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)


def _alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def _usages(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_a_sites_certificate() -> None:
    root = pki.new_authority("blood", NOW)
    key = pki.new_key()
    certificate = pki.issue_site(root, "blood", "van-1", key.public_key(), NOW)
    certificate.verify_directly_issued_by(root.certificate)
    assert certificate.public_key() == key.public_key()
    assert _alternative_names(certificate).get_values_for_type(x509.DNSName) == ["van-1.blood.cpe"]
    assert _usages(certificate) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature and not usage.key_cert_sign
    assert certificate.not_valid_after_utc == NOW + dt.timedelta(days=200)
    assert certificate.not_valid_before_utc < NOW
    with pytest.raises(InvalidSignature):
        certificate.verify_directly_issued_by(pki.new_authority("blood", NOW).certificate)


def test_longest_names_fit() -> None:
    name = "a" * 40
    root = pki.new_authority(name, NOW)
    certificate = pki.issue_site(root, name, name, pki.new_key().public_key(), NOW)
    assert pki.site_of([("DNS", f"{name}.{name}.cpe")], name) == name
    certificate.verify_directly_issued_by(root.certificate)


def test_the_controller_sets_the_names_of_a_request() -> None:
    root, key = pki.new_authority("blood", NOW), pki.new_key()
    asked = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "centre.blood.cpe")])
    request = x509.CertificateSigningRequestBuilder().subject_name(asked).sign(key, hashes.SHA256())
    certificate = pki.issue_site(root, "blood", "van-1", request, NOW)
    assert "centre" not in certificate.subject.rfc4514_string()
    assert _alternative_names(certificate).get_values_for_type(x509.DNSName) == ["van-1.blood.cpe"]

    wrong = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(ValueError, match="P-256"):
        pki.issue_site(root, "blood", "van-1", wrong.public_key(), NOW)


def test_the_servers_certificate_is_no_clients() -> None:
    root = pki.new_authority("blood", NOW)
    names = ["203.0.113.5", "2001:db8::5", "controller.example"]
    certificate = pki.issue_server(root, "blood", names, pki.new_key().public_key(), NOW)
    assert _usages(certificate) == [ExtendedKeyUsageOID.SERVER_AUTH]
    alternative = _alternative_names(certificate)
    assert [str(ip) for ip in alternative.get_values_for_type(x509.IPAddress)] == names[:2]
    assert alternative.get_values_for_type(x509.DNSName) == names[2:]
    assert not pki.half_spent(certificate, NOW)
    assert pki.half_spent(certificate, NOW + dt.timedelta(days=101))


@pytest.mark.parametrize(
    ("names", "site"),
    [
        ([("DNS", "van-1.blood.cpe")], "van-1"),
        ([("DNS", "van-1.other.cpe")], None),
        ([("DNS", "x.van-1.blood.cpe")], None),
        ([("DNS", "van-1.blood.cpe"), ("DNS", "centre.blood.cpe")], None),
        ([("IP Address", "10.0.0.1")], None),
        ([], None),
    ],
)
def test_the_site_is_the_one_that_the_certificate_names(names: list[tuple[str, str]], site: str | None) -> None:
    assert pki.site_of(names, "blood") == site


def test_keys_survive_their_files() -> None:
    key = pki.new_key()
    assert pki.load_key(pki.key_pem(key)).private_numbers() == key.private_numbers()
    signer = Signer.new()
    assert Signer.from_pem(signer.pem()).public == signer.public
    with pytest.raises(ValueError, match="no Ed25519 key"):
        Signer.from_pem(pki.key_pem(key))
    with pytest.raises(ValueError, match="no P-256 key"):
        pki.load_key(signer.pem())


def test_a_signature_holds_for_its_bytes_and_key_only() -> None:
    signer, other = Signer.new(), Signer.new()
    signature = signer.sign(b'{"schema":1}')
    assert verify(signer.public, b'{"schema":1}', signature)
    assert not verify(signer.public, b'{"schema": 1}', signature)
    assert not verify(other.public, b'{"schema":1}', signature)
    assert not verify(signer.public, b'{"schema":1}', "no base64!")
    assert len(signer.public.id) == 16 and signer.public.id != other.public.id
