"""What an identity is made of, and what is said about each way in which it is not one."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from cpe_agent.edge.identity import Identity, load_identity, vouched_by
from cpe_agent.ports import EdgeError
from cpe_controller import pki
from tests.edge.authority import NOW, Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_name_and_expiry_come_from_the_certificate(authority: Authority) -> None:
    until = NOW - dt.timedelta(days=30)
    certificate, key = authority.issue("van-1", x509.DNSName("van-1.net.example"), not_after=until)
    identity = load_identity(certificate, key)
    assert identity.name == "van-1.net.example"
    assert identity.not_after == until
    assert identity.certificate_pem == certificate.read_bytes()
    assert identity.key_pem == key.read_bytes()
    assert "PRIVATE" not in repr(identity)


def test_the_first_certificate_of_a_chain_is_ours_and_other_key_forms_become_pkcs8(authority: Authority) -> None:
    certificate, key = authority.issue("van-1", x509.DNSName("van-1"))
    own, pkcs8 = certificate.read_bytes(), key.read_bytes()
    certificate.write_bytes(own + authority.ca_path.read_bytes())
    loaded = serialization.load_pem_private_key(pkcs8, None)
    key.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )
    identity = load_identity(certificate, key)
    assert (identity.certificate_pem, identity.key_pem) == (own, pkcs8)


def test_which_root_it_is_of() -> None:
    now = dt.datetime.now(dt.UTC)
    old, new = (pki.new_authority("net", now, called=name) for name in ("root", "root 2"))
    sites, key = pki.new_sites_authority(old, "net", now), pki.new_key()
    leaf = pki.certificate_pem(pki.issue_site(sites, "net", "van-1", key.public_key(), now))
    whole = Identity("van-1", leaf, b"", now, now, leaf + sites.pem())
    assert vouched_by(whole, [old.pem().decode(), new.pem().decode()])
    assert not vouched_by(whole, [new.pem().decode(), old.pem().decode()]), "another is to stay"
    assert not vouched_by(whole, ["damaged"])
    assert vouched_by(whole, [])
    alone = Identity("van-1", leaf, b"", now, now, leaf)
    assert vouched_by(alone, [new.pem().decode()]), "it does not show who issued it"


@pytest.mark.parametrize(
    ("alternatives", "words"),
    [
        ((), "no subjectAltName"),
        ((x509.RFC822Name("van-1@net.example"),), r"exactly one DNS name in its subjectAltName \(it has none\)"),
        ((x509.DNSName("van-1"), x509.DNSName("van-2")), r"exactly one .* \(it has van-1, van-2\)"),
    ],
)
def test_it_must_name_one(authority: Authority, alternatives: tuple[x509.GeneralName, ...], words: str) -> None:
    certificate, key = authority.issue("van-1", *alternatives)
    with pytest.raises(EdgeError, match=words) as caught:
        load_identity(certificate, key)
    assert str(certificate) in caught.value.cause


def test_the_key_of_another(authority: Authority) -> None:
    certificate, _ = authority.issue("van-1", x509.DNSName("van-1"))
    _, key = authority.issue("van-2", x509.DNSName("van-2"))
    with pytest.raises(EdgeError, match=rf"{key} is not the key of {certificate}"):
        load_identity(certificate, key)


def test_an_encrypted_key(authority: Authority) -> None:
    certificate, key = authority.issue("van-1", x509.DNSName("van-1"))
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"secret")
    key.write_bytes(loaded.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    with pytest.raises(EdgeError, match=rf"{key} is encrypted"):
        load_identity(certificate, key)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff\x00", b"-----BEGIN CERTIFICATE-----\nAA==\n"])
def test_files_that_hold_something_else(authority: Authority, content: bytes) -> None:
    certificate, key = authority.issue("van-1", x509.DNSName("van-1"))
    good = certificate.read_bytes()
    certificate.write_bytes(content)
    with pytest.raises(EdgeError, match=rf"{certificate} holds no certificate"):
        load_identity(certificate, key)
    certificate.write_bytes(good)
    key.write_bytes(content)
    with pytest.raises(EdgeError, match=rf"{key} holds no private key"):
        load_identity(certificate, key)


def test_files_that_cannot_be_read(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("van-1", x509.DNSName("van-1"))
    with pytest.raises(EdgeError, match=r"absent\.key is not there"):
        load_identity(certificate, tmp_path / "absent.key")
    with pytest.raises(EdgeError, match="cannot be read: Is a directory"):
        load_identity(tmp_path, key)
