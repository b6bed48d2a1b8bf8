"""A new box, from the token to its document, and everybody who must not get as far."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import hashlib
import json
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from starlette.requests import Request
from starlette.types import Message

from cpe_agent.model.document_check import decode
from cpe_controller import answers, authorities, commands, pki, setup, standing, tokens
from cpe_controller.answers import Refused
from cpe_controller.commands import answering
from cpe_controller.limits import Limits, Rate, source
from cpe_controller.tokens import Record
from tests.controller.conftest import ANSWERED_S, Served, serving

NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
OPEN = Record("van-1", 1, NOW + dt.timedelta(hours=1))
USED = msgspec.structs.replace(OPEN, key="mine", chain="chain")


@pytest.mark.parametrize(
    ("record", "stands", "site", "key", "now", "told"),
    [
        (OPEN, standing.Standing(), "van-1", "mine", NOW, ""),
        (USED, standing.Standing(), "van-1", "mine", NOW, "chain"),
        (USED, standing.Standing(), "van-1", "mine", NOW + dt.timedelta(days=9), "chain"),
        (USED, standing.Standing(), "van-1", "other", NOW, "token_used"),
        (OPEN, standing.Standing(), "van-1", "mine", NOW + dt.timedelta(hours=1), "token_expired"),
        (OPEN, standing.Standing(), "centre", "mine", NOW, "token_unknown"),
        (None, standing.Standing(), "van-1", "mine", NOW, "token_unknown"),
        (OPEN, standing.Standing(generation=2), "van-1", "mine", NOW, "token_replaced"),
        (USED, standing.Standing(generation=2), "van-1", "mine", NOW, "token_replaced"),
        (msgspec.structs.replace(OPEN, replaced=True), standing.Standing(), "van-1", "mine", NOW, "token_replaced"),
        (OPEN, standing.Standing(revoked=True), "van-1", "mine", NOW, "revoked"),
    ],
)
def test_a_token_is_judged(
    record: Record | None, stands: standing.Standing, site: str, key: str, now: dt.datetime, told: str
) -> None:
    try:
        assert tokens.judge(record, stands, site, key, now) == told
    except Refused as refused:
        assert refused.code == told and refused.text


class Box:
    """A new box: a key, and what it can ask with it."""

    def __init__(self, url: str, verify: ssl.SSLContext | bool = True) -> None:
        self.key = pki.new_key()
        self.client = httpx.Client(base_url=url, verify=verify, trust_env=False, timeout=ANSWERED_S)

    def csr(self) -> str:
        asked = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "centre.blood.cpe")])
        request = x509.CertificateSigningRequestBuilder().subject_name(asked).sign(self.key, hashes.SHA256())
        return request.public_bytes(serialization.Encoding.PEM).decode()

    def enroll(self, said: dict[str, Any], **changed: Any) -> httpx.Response:
        asked = {
            "network": said["n"],
            "site": said["s"],
            "secret": said["k"],
            "csr": self.csr(),
            "agent_version": "1",
            "instance": "00000000-0000-0000-0000-000000000000",
        }
        return self.client.post("/v1/enroll", json=asked | changed)


def _said(token: str) -> dict[str, Any]:
    """The token's content, read as an agent reads it."""
    assert token.startswith("cpe1.")
    padded = token[5:] + "=" * (-len(token[5:]) % 4)
    said = json.loads(base64.urlsafe_b64decode(padded))
    assert isinstance(said, dict)
    return said


def _token(state: Path, site: str, hours: int = 24) -> dict[str, Any]:
    return _said(answering.run(state, commands.Token(site, hours), "tester").data["token"])


@contextmanager
def _box(served: Served) -> Iterator[Box]:
    context = ssl.create_default_context(cafile=str(served.state / "root.pem"))
    box = Box(served.enrolment_url, context)
    with box.client:
        yield box


def test_from_token_to_document(served: Served, tmp_path: Path) -> None:
    said = _token(served.state, "van-1")
    assert (said["n"], said["s"], len(base64.urlsafe_b64decode(said["k"] + "="))) == ("blood", "van-1", 20)
    assert said["c"] == ["https://127.0.0.1:8444", "https://localhost:8444"]

    # The root comes unverified, and is known by the token's pin.
    with httpx.Client(base_url=served.enrolment_url, verify=False, trust_env=False) as stranger:
        root = stranger.get("/v1/ca").content
    der = x509.load_pem_x509_certificate(root).public_bytes(serialization.Encoding.DER)
    assert hashlib.sha256(der).hexdigest() == said["p"]
    (tmp_path / "root.pem").write_bytes(root)

    box = Box(served.enrolment_url, ssl.create_default_context(cafile=str(tmp_path / "root.pem")))
    with box.client:
        answer = box.enroll(said)
        assert answer.status_code == 200, answer.text
        given = answer.json()
        assert box.enroll(said).json()["certificate"] == given["certificate"]  # its answer was lost: the same again
        assert box.enroll(said, secret=f" {said['k']}\n").status_code == 200
    leaf, issuer = x509.load_pem_x509_certificates(given["certificate"].encode())
    leaf.verify_directly_issued_by(issuer)
    assert leaf.public_key() == box.key.public_key()
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["van-1.blood.cpe"]  # whatever the request says
    assert leaf.not_valid_after_utc - dt.datetime.now(dt.UTC) > dt.timedelta(days=199)
    assert given["cas"] == list(authorities.trusted(served.state)) and given["cas"][0].encode() == root
    assert given["signing_keys"] == [msgspec.to_builtins(key) for key in setup.signing_keys(served.state)]
    assert given["controllers"] == ["https://198.51.100.202:8443"]  # as its document says
    assert abs(dt.datetime.fromisoformat(given["now"]) - dt.datetime.now(dt.UTC)) < dt.timedelta(seconds=30)

    (tmp_path / "key.pem").write_bytes(pki.key_pem(box.key))
    (tmp_path / "chain.pem").write_text(given["certificate"])
    context = ssl.create_default_context(cafile=str(tmp_path / "root.pem"))
    context.load_cert_chain(tmp_path / "chain.pem", tmp_path / "key.pem")
    with httpx.Client(base_url=served.url, verify=context, trust_env=False) as client:
        assert decode(client.get("/v1/document").content).site == "van-1"
        # Half of the certificate's life later.
        renewed = client.post("/v1/certificate", json={"csr": box.csr()}).json()
        new, _ = x509.load_pem_x509_certificates(renewed["certificate"].encode())
        assert new.subject == leaf.subject and new.serial_number != leaf.serial_number
        assert renewed["cas"] == given["cas"]
        bad = client.post("/v1/certificate", json={"csr": "x"})
        assert (bad.status_code, bad.json()["code"]) == (400, "csr_bad")


def test_who_does_not_get_in(served: Served) -> None:
    said = _token(served.state, "van-1")
    with _box(served) as box:
        for changed, status, code in (
            ({"secret": "x" * 27}, 403, "token_unknown"),
            ({"network": "other"}, 403, "token_unknown"),
            ({"site": "centre"}, 403, "token_unknown"),
            ({"csr": "no request"}, 400, "csr_bad"),
            ({"site": "../x"}, 400, "bad_request"),
            ({"csr": 7}, 400, "bad_request"),
            ({"csr": "x" * 20000}, 413, "too_large"),
        ):
            answer = box.enroll(said, **changed)
            assert (answer.status_code, answer.json()["code"]) == (status, code)
            assert len(answer.json()["error"]) > 10
        assert box.client.post("/v1/enroll", content=b"\xff{").status_code == 400
        assert box.client.get("/v1/document").status_code == 404
        assert box.enroll(said).status_code == 200
        # Each guess costs as much as six seconds: then it has to wait.
        answers = [box.enroll(said, secret="x" * 27) for _ in range(10)]
        assert answers[-1].status_code == 429 and answers[-1].json()["code"] == "busy"
        assert int(answers[-1].headers["Retry-After"]) >= 1


def test_of_two_boxes_with_one_token_one_is_first(served: Served) -> None:
    said = _token(served.state, "van-1")
    with _box(served) as box, _box(served) as other:
        assert box.enroll(said).status_code == 200
        late = other.enroll(said)
    assert (late.status_code, late.json()["code"]) == (409, "token_used")
    with pytest.raises(setup.SetupError, match="replace van-1"):
        _token(served.state, "van-1")


def test_the_newest_token_of_a_site_is_the_only_one(served: Served) -> None:
    first = _token(served.state, "van-1")
    second = _token(served.state, "van-1")
    with _box(served) as box:
        assert box.enroll(first).json()["code"] == "token_replaced"
        assert box.enroll(second).status_code == 200
    with pytest.raises(setup.SetupError, match="no network"):
        _token(served.state, "stranger")
    with pytest.raises(setup.SetupError, match="hours"):
        _token(served.state, "hospital-1", hours=0)


def test_the_store_holds_no_secret(state: Path, text: str) -> None:
    setup.apply(state, text)
    secret = _token(state, "van-1")["k"]
    with setup.opened(state) as (store, _):
        assert len(store.list(tokens.TOKENS).entries) == 1
        assert all(secret.encode() not in (entry.value or b"") for entry in store.list("").entries)
        assert all(secret not in entry.key for entry in store.list("").entries)


def test_the_root_may_be_away_while_sites_enrol(state: Path, text: str) -> None:
    """Nor is the signing key needed by what faces the web."""
    setup.apply(state, text)
    (state / "root.key").unlink()
    (state / "signing.key").unlink()
    with serving(state) as served, _box(served) as box:
        assert box.enroll(_token(state, "van-1")).status_code == 200


def test_a_head_that_does_not_end_is_cut_off(served: Served) -> None:
    """A body, on the other hand, may come in one piece with its head."""
    host, port = served.enrolment_url.removeprefix("https://").split(":")
    context = ssl.create_default_context(cafile=str(served.state / "root.pem"))
    with (
        socket.create_connection((host, int(port)), timeout=ANSWERED_S) as plain,
        context.wrap_socket(plain, server_hostname=host) as stream,
    ):
        stream.sendall(b"POST /v1/enroll HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n" + b" " * 90000)
        assert stream.recv(99).startswith(b"HTTP/1.1 413")
    with (
        socket.create_connection((host, int(port)), timeout=ANSWERED_S) as plain,
        context.wrap_socket(plain, server_hostname=host) as stream,
    ):
        sent = 0
        with pytest.raises(OSError):
            stream.sendall(b"GET /v1/ca HTTP/1.1\r\n")
            while sent < 50_000_000:
                stream.sendall(b"x: y\r\n" * 1000)
                sent += 6000
        assert sent < 50_000_000


def test_limits_are_for_each_and_for_all() -> None:
    limits = Limits(Rate(2, 10.0), Rate(3, 1.0))
    assert [limits.admit("a", 0.0) for _ in range(3)] == [0, 0, 10]
    assert limits.admit("b", 0.0) == 0
    assert limits.admit("c", 0.0) == 1  # all together have had three
    assert limits.admit("c", 1.0) == 0
    assert limits.admit("a", 5.0) == 5
    assert limits.admit("a", 10.0) == 0


def test_who_is_welcome_costs_nothing_and_who_guesses_more() -> None:
    limits = Limits(Rate(4, 10.0), Rate(1000, 0.001))
    for _ in range(50):  # one after the other, of one address
        assert limits.admit("a", 0.0) == 0 and limits.admit("a", 0.0) == 0
        limits.give_back("a", 2)
    assert limits.admit("a", 0.0) == 0
    limits.charge("a", 3)
    assert limits.admit("a", 0.0) == 10
    for _ in range(9):
        limits.charge("a", 3)
    assert limits.admit("a", 0.0) == 50, "there is an end to it"
    assert limits.admit("b", 0.0) == 0
    limits.give_back("b", 100)
    assert [limits.admit("b", 0.0) for _ in range(5)] == [0, 0, 0, 0, 10], "nobody saves up"


def test_a_hall_full_of_new_boxes_behind_one_address_is_let_in_at_once(state: Path, text: str) -> None:
    """Fifty, all powered on in the same second, behind one carrier's NAT."""
    boxes = 50
    more = "".join(
        f"  clinic-{n}: {{template: hospital, lans: {{ward: {{subnet: 10.104.{n}.0/24}}}}}}\n" for n in range(boxes)
    )
    setup.apply(state, text.replace("branches:\n", f"branches:\n{more}", 1))
    said = [_token(state, f"clinic-{n}") for n in range(boxes)]
    with serving(state) as served, ThreadPoolExecutor(boxes) as pool:

        def arrive(mine: dict[str, Any]) -> list[int]:
            with httpx.Client(base_url=served.enrolment_url, verify=False, trust_env=False, timeout=30) as first:
                fetched = first.get("/v1/ca").status_code
            with _box(served) as box:
                return [fetched, box.enroll(mine).status_code]

        assert list(pool.map(arrive, said)) == [[200, 200]] * boxes
        # Who tries tokens that nobody made is slowed down soon, and is told for how long.
        with _box(served) as guesser:
            answers = [guesser.enroll(said[0], secret=f"{n:027}") for n in range(30)]
            codes = [answer.status_code for answer in answers]
            assert 5 <= codes.count(403) <= 12 and codes[-1] == 429 and int(answers[-1].headers["Retry-After"]) > 0


def test_a_source_is_who_pays_for_the_line() -> None:
    assert source("198.51.100.7") == source("::ffff:198.51.100.7") == "198.51.100.7"
    assert source("::ffff:198.51.100.8") != source("198.51.100.7")
    assert source("2001:db8:0:1::7") == source("2001:db8:0:1:ffff::9") != source("2001:db8:0:2::7")


def test_who_drips_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "BODY_S", 0.05)

    async def never() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def read() -> None:
        with pytest.raises(Refused, match="not there after"):
            await answers.body_of(Request({"type": "http", "method": "POST"}, never), 100)

    asyncio.run(asyncio.wait_for(read(), 5))
