"""Is no secret left, in whatever form it turns up, and is what is public left alone?"""

from __future__ import annotations

import base64
import itertools
import json

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from cpe_agent.core.redact import REMOVED, Secrets

KEY = ec.generate_private_key(ec.SECP256R1())
PEM = KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()
SEC1 = KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
).decode()
PUBLIC = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
BODY = "".join(PEM.splitlines()[1:-1])
RAW = base64.b64decode(BODY)
TOKEN = "cpe1." + base64.urlsafe_b64encode(b'{"secret":"0123456789abcdefghij"}').decode().rstrip("=")


@pytest.mark.parametrize(
    "form",
    [
        PEM,
        json.dumps(PEM),
        BODY,
        PEM.splitlines()[1],
        RAW.hex(),
        RAW.hex().upper(),
        RAW.hex(":"),
        RAW.hex(" "),
        PEM[: len(PEM) // 2],
    ],
    ids=itertools.count(),  # keys differ from process to process
)
def test_a_known_key_goes_in_every_form(form: str) -> None:
    secrets = Secrets([PEM])
    said = secrets.redact(f"before {form} after")
    assert said.startswith("before ") and REMOVED in said
    assert not secrets.within(said.encode())
    pieces = [BODY[at : at + 24] for at in range(len(BODY) - 24)]
    assert not [piece for piece in pieces if piece in said]


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"log: {PEM}", BODY[:40]),
        (f"log: {SEC1}", SEC1.splitlines()[1]),
        (PEM.splitlines()[1], BODY[:40]),
        (f'token "{TOKEN}" used', TOKEN[5:]),
        ("\tauth-trunc hmac(sha256) 0x0011223344556677 128\n\tenc cbc(aes) 0xdeadbeefdeadbeef", "deadbeef"),
        ("aead rfc4106(gcm(aes)) 0x00112233445566778899 128", "00112233"),
        ("SK_ei secret => 20 bytes @ 0x7f\n   0: 0A 1B 2C 3D 4E 5F\n  16: 77 88\nnext", "0A 1B 2C"),
        ("eap { secret = hunter2222 }", "hunter2222"),
        ('{"psk": "correct horse battery"}', "correct horse"),
        ("PASSWORD='a b c d'", "a b c d"),
        ("wpa_passphrase: longandsecret", "longandsecret"),
        ("https://user:hunter2222@controller.example/", "hunter2222"),
        ("Authorization: Bearer abcdef012345", "abcdef"),
        ("--api-key=0123456789", "0123456789"),
    ],
    ids=itertools.count(),  # keys differ from process to process
)
def test_what_looks_like_a_secret_goes(text: str, secret: str) -> None:
    said = Secrets([]).redact(text)
    assert secret not in said and REMOVED in said


@pytest.mark.parametrize(
    "text",
    [
        PUBLIC.decode(),
        '"signing_keys": [{"id": "2026-a", "key": "O2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2ik="}]',
        "certificate valid until 2027-01-01, 40 packets, SPI c0ffee01, 10.10.0.0/24",
        '{"event": "path_up", "path": "wired.centre.a", "rtt_ms": 1.5}',
        "https://controller.example:8443",
        "sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    ],
    ids=itertools.count(),  # keys differ from process to process
)
def test_what_is_public_stays(text: str) -> None:
    assert Secrets([PEM, TOKEN]).redact(text) == text


@pytest.mark.parametrize(
    "fields",
    [
        {"credentials_loaded": True, "token": None, "x": 1},
        {"psk": "correct horse battery", "more": ["a"]},
        {"key": PEM},
    ],
)
def test_json_stays_json(fields: dict[str, object]) -> None:
    said = json.loads(Secrets([PEM]).redact(json.dumps(fields)))
    assert said.keys() == fields.keys()
    assert {name for name in fields if said[name] != fields[name]} == {"psk", "key"} & fields.keys()


@given(st.text(max_size=80), st.text(max_size=80), st.integers(0, 1000))
def test_whatever_stands_round_it(before: str, after: str, at: int) -> None:
    secrets = Secrets([PEM, TOKEN])
    form = (PEM, BODY, TOKEN, RAW.hex())[at % 4]
    assert not secrets.within(secrets.redact(before + form + after).encode())
