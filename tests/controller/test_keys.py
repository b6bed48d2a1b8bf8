"""Certificates and signatures: who can pass for whom, and who cannot."""

from __future__ import annotations

import datetime as dt
import ssl
from pathlib import Path

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
    assert pki.holder_of([("DNS", f"{name}.{name}.cpe")], name) == pki.Holder(name, 1)
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
    assert pki.half_spent(certificate, NOW + dt.timedelta(days=pki.ONLINE_DAYS / 2 + 1))


@pytest.mark.parametrize(
    ("names", "holder"),
    [
        ([("DNS", "van-1.blood.cpe")], pki.Holder("van-1", 1)),
        ([("DNS", "g2.van-1.blood.cpe")], pki.Holder("van-1", 2)),
        ([("DNS", "g2.blood.cpe")], pki.Holder("g2", 1)),
        ([("DNS", "g12.g2.blood.cpe")], pki.Holder("g2", 12)),
        ([("DNS", "g0.van-1.blood.cpe")], None),
        ([("DNS", "g1.van-1.blood.cpe")], None),
        ([("DNS", "g02.van-1.blood.cpe")], None),
        ([("DNS", "van-1.other.cpe")], None),
        ([("DNS", "x.van-1.blood.cpe")], None),
        ([("DNS", "van-1.blood.cpe"), ("DNS", "centre.blood.cpe")], None),
        ([("IP Address", "10.0.0.1")], None),
        ([], None),
    ],
)
def test_the_site_is_the_one_that_the_certificate_names(
    names: list[tuple[str, str]], holder: pki.Holder | None
) -> None:
    assert pki.holder_of(names, "blood") == holder


def test_who_has_the_sites_authority_is_no_controller(tmp_path: Path) -> None:
    """The key that faces the web can make sites, but no server that a site would believe; nor more authorities."""
    root = pki.new_authority("blood", NOW)
    sites = pki.new_sites_authority(root, "blood", NOW)
    sites.certificate.verify_directly_issued_by(root.certificate)
    key = pki.new_key()
    (tmp_path / "root.pem").write_bytes(root.pem() + sites.pem())
    (tmp_path / "key.pem").write_bytes(pki.key_pem(key))
    now = dt.datetime.now(dt.UTC)
    site = pki.issue_site(sites, "blood", "van-1", key.public_key(), now)
    good = pki.issue_server(root, "blood", ["127.0.0.1"], key.public_key(), now)
    forged = pki.issue_server(sites, "blood", ["127.0.0.1"], key.public_key(), now)
    for chain, server_side, believed in (
        ([good], True, True),
        ([forged, sites.certificate], True, False),
        ([site, sites.certificate], True, False),
        ([site, sites.certificate], False, True),
        ([good], False, False),
    ):
        (tmp_path / "chain.pem").write_bytes(b"".join(map(pki.certificate_pem, chain)))
        assert _believed(tmp_path, server_side) is believed, (chain, server_side)


def _believed(directory: Path, server_side: bool) -> bool:
    """Whether the other end of a handshake believes chain.pem, shown by a server or by a client."""
    shower = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    believer = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if server_side else ssl.PROTOCOL_TLS_SERVER)
    shower.load_cert_chain(directory / "chain.pem", directory / "key.pem")
    believer.load_verify_locations(cafile=directory / "root.pem")
    believer.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    believer.verify_mode = ssl.CERT_REQUIRED
    if not server_side:
        shower.check_hostname, shower.verify_mode = False, ssl.CERT_NONE
        believer.load_cert_chain(directory / "chain.pem", directory / "key.pem")
    one, other = ssl.MemoryBIO(), ssl.MemoryBIO()
    name = "127.0.0.1"
    ends = [
        shower.wrap_bio(one, other, server_side=server_side, server_hostname=None if server_side else name),
        believer.wrap_bio(other, one, server_side=not server_side, server_hostname=name if server_side else None),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
    return ends[1].getpeercert() not in (None, {})


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
