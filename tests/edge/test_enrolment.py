"""A box and a controller that lets it in, over real TLS: whom does the box believe, and what is on its disk then?"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import ipaddress
import json
import stat
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cpe_agent import newcomer
from cpe_agent.core.enrolment import RETRY_FIRST_S, Kind
from cpe_agent.edge.credentials import Credentials
from cpe_agent.edge.enrolment import HttpsEnrolment
from cpe_agent.edge.identity import load_identity
from cpe_agent.edge.names import Names
from cpe_agent.edge.store import FileStore
from cpe_agent.edge.tokens import find_token
from cpe_agent.loops.clock import FlooredClock
from cpe_agent.loops.enrol import Enroller
from cpe_agent.model.enrolment import Enrolment, EnrolmentRequest, Lying
from cpe_agent.ports import EdgeError, EnrolmentError
from cpe_agent.settings import parse_settings
from tests.edge.authority import NOW, Authority
from tests.edge.tls_server import Stream, TlsServer, response, serve
from tests.fakes.store import FakeStore

SECRET = "c2VjcmV0c2VjcmV0c2VjcmV0c2U"
KEY = "O2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2ik="
# Handshakes, questions and what is written to the disk; long before it would ask again for itself.
ASKED_S = 20.0
# In which a box that was not told to wait would long have asked again.
PEACE_S = 2 * RETRY_FIRST_S
HTML = b"<html>Welcome to the hotel</html>"


class Controller:
    """Follows the contract: one-time secrets, the same answer again for the same key."""

    def __init__(self, authority: Authority, directory: Path) -> None:
        self.authority = authority
        self.used: dict[str, bytes] = {}
        self.refusals: list[bytes] = []  # said instead, one after the other
        self.portal = False
        self._directory = directory

    async def answer(self, server: TlsServer, stream: Stream) -> None:
        request = server.requests[-1]
        if self.portal:
            await stream.send_all(response("200 OK", {"content-type": "text/html", "content-length": "33"}, HTML))
        elif request.path == "/v1/ca":
            pem = self.authority.ca_path.read_bytes()
            await stream.send_all(response("200 OK", {"content-length": str(len(pem))}, pem))
        elif self.refusals:
            await stream.send_all(self.refusals.pop(0))
        else:
            await stream.send_all(self._enroll(request.body))

    def _enroll(self, body: bytes) -> bytes:
        asked = msgspec.json.decode(body, type=EnrolmentRequest)
        csr = x509.load_pem_x509_csr(asked.csr.encode())
        key = csr.public_key()
        assert csr.is_signature_valid and isinstance(key, ec.EllipticCurvePublicKey)
        public = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        if asked.secret != SECRET:
            return refusal("403 Forbidden", "token_unknown", "no token has this secret")
        if self.used.setdefault(asked.secret, public) != public:
            return refusal("409 Conflict", "token_used", "this token was used by another box")
        certificate = self.authority.sign(asked.site, key)
        granted = {
            "site": asked.site,
            "network": asked.network,
            "certificate": certificate,
            "cas": [self.authority.ca_path.read_text()],
            "signing_keys": [{"id": "a", "key": KEY}],
            "controllers": ["https://127.0.0.1:8443"],
            "now": NOW.isoformat(),
        }
        raw = json.dumps(granted).encode()
        return response("200 OK", {"content-type": "application/json", "content-length": str(len(raw))}, raw)


def refusal(status: str, code: str, words: str, **headers: str) -> bytes:
    raw = json.dumps({"error": words, "code": code}).encode()
    return response(status, {"content-type": "application/json", "content-length": str(len(raw)), **headers}, raw)


class Bed:
    def __init__(self, directory: Path, nursery: trio.Nursery) -> None:
        self.directory = directory
        self.nursery = nursery
        self.authority = Authority(directory, "root")
        self.controller = Controller(self.authority, directory)
        self.state = directory / "state"
        self.token = ""
        self.now: float | None = None

    async def serve(
        self, authority: Authority | None = None, name: str = "127.0.0.1", not_after: dt.datetime | None = None
    ) -> TlsServer:
        address = x509.IPAddress(ipaddress.ip_address(name))
        certificate = (authority or self.authority).issue("server", address, not_after=not_after)

        async def answer(stream: Stream) -> None:
            await self.controller.answer(server, stream)

        server = await serve(self.nursery, self.authority.ca_path, *certificate, answer, anybody=True)
        self.token = self.token_for(server.url)
        return server

    def token_for(self, *urls: str, secret: str = SECRET) -> str:
        root = x509.load_pem_x509_certificate(self.authority.ca_path.read_bytes())
        pin = hashlib.sha256(root.public_bytes(serialization.Encoding.DER)).hexdigest()
        fields = {"n": "net", "s": "van-1", "c": urls, "p": pin, "k": secret}
        return "cpe1." + base64.urlsafe_b64encode(json.dumps(fields).encode()).decode().rstrip("=")

    def enroller(self, names: Names | None = None) -> Enroller:
        store = FileStore(self.state)
        clock = FlooredClock(store)
        clock.load()
        now = self.now
        port = HttpsEnrolment(names or Names(store), clock.now_s if now is None else lambda: now)
        return Enroller(port, Credentials(self.state), store, clock, "box-1", lambda: Lying(self.token))

    async def enrol(self, names: Names | None = None) -> Enrolment:
        with trio.fail_after(ASKED_S):
            return await self.enroller(names).run()

    async def refused(self, names: Names | None = None, then_s: float = 0.0) -> Enroller:
        """It has asked once, and is not let in; nor for so long after that."""
        enroller = self.enroller(names)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(enroller.run)
            with trio.fail_after(ASKED_S):
                while enroller.failure.kind is Kind.NO_TOKEN:  # noqa: ASYNC110 - no event is rung for tests
                    await trio.sleep(0.01)
            await trio.sleep(then_s)
            nursery.cancel_scope.cancel()
        return enroller


@pytest.fixture
async def bed(tmp_path: Path) -> AsyncIterator[Bed]:
    async with trio.open_nursery() as nursery:
        yield Bed(tmp_path, nursery)
        nursery.cancel_scope.cancel()


async def test_a_new_box_gets_a_key_a_certificate_and_a_site(bed: Bed) -> None:
    server = await bed.serve()
    enrolment = await bed.enrol()
    assert enrolment.controllers == ("https://127.0.0.1:8443",)
    assert FileStore(bed.state).load_enrolment() == enrolment
    identity = load_identity(bed.state / "identity/certificate.pem", bed.state / "identity/key.pem")
    assert identity.name == "van-1"
    assert (bed.state / "identity/ca.pem").read_text() == bed.authority.ca_path.read_text()
    assert stat.S_IMODE((bed.state / "identity/key.pem").stat().st_mode) == 0o600
    assert FileStore(bed.state).load_clock_floor() == NOW.timestamp()
    # The key has left the box for nobody.
    key = (bed.state / "identity/key.pem").read_text()
    assert all("PRIVATE" not in request.body.decode() for request in server.requests)
    assert key.startswith("-----BEGIN PRIVATE KEY-----")


async def test_a_retry_with_the_same_key_is_given_the_same_again(bed: Bed) -> None:
    server = await bed.serve()
    bed.controller.refusals = [b"", b""]  # the connection breaks instead of an answer
    enroller = await bed.refused()
    assert enroller.failure.kind is Kind.UNREACHABLE
    await bed.enrol()  # after a restart of the agent
    bodies = [msgspec.json.decode(r.body, type=EnrolmentRequest) for r in server.requests if r.body]
    assert len(bodies) >= 2 and len({_public(body.csr) for body in bodies}) == 1


def _public(csr: str) -> bytes:
    return (
        x509.load_pem_x509_csr(csr.encode())
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        ("403 Forbidden", "token_unknown", Kind.UNKNOWN),
        ("409 Conflict", "token_used", Kind.USED),
        ("410 Gone", "token_expired", Kind.EXPIRED),
        ("410 Gone", "token_replaced", Kind.REPLACED),
        ("403 Forbidden", "revoked", Kind.REVOKED),
        ("400 Bad Request", "csr_bad", Kind.REFUSED),
    ],
)
async def test_a_refusal_in_the_controllers_own_words(bed: Bed, status: str, code: str, kind: Kind) -> None:
    await bed.serve()
    bed.controller.refusals = [refusal(status, code, "for such and such a reason")]
    enroller = await bed.refused()
    assert enroller.failure.kind is kind
    assert "such and such" in enroller.conditions()[0].reason


async def test_a_busy_controller_is_left_in_peace(bed: Bed) -> None:
    server = await bed.serve()
    busy = refusal("503 Service Unavailable", "busy", "come again", **{"retry-after": "40"})
    bed.controller.refusals = [busy] * 9
    enroller = await bed.refused(then_s=PEACE_S)
    assert enroller.failure.kind is Kind.UNREACHABLE
    assert enroller.failure.retry_after_s == 40.0
    assert len([r for r in server.requests if r.body]) == 1


async def test_somebody_elses_secret(bed: Bed) -> None:
    server = await bed.serve()
    bed.token = bed.token_for(server.url, secret="x" * 27)
    enroller = await bed.refused()
    assert enroller.failure.kind is Kind.UNKNOWN


async def test_a_captive_portal_is_told_nothing(bed: Bed) -> None:
    server = await bed.serve()
    bed.controller.portal = True
    enroller = await bed.refused()
    assert enroller.failure.kind is Kind.CAPTIVE
    assert all(request.body == b"" for request in server.requests), "the secret was shown to a portal"


async def test_a_server_with_a_root_of_its_own_is_told_nothing(bed: Bed) -> None:
    server = await bed.serve()
    other = bed.directory / "other"
    other.mkdir()
    bed.controller.authority = Authority(other, "root")
    enroller = await bed.refused()
    assert enroller.failure.kind is Kind.CAPTIVE
    assert all(request.body == b"" for request in server.requests)


async def test_a_server_that_only_shows_our_root_is_told_nothing(bed: Bed) -> None:
    """Anybody can hand out a public certificate; the server's own must come from it."""
    other = bed.directory / "other"
    other.mkdir()
    server = await bed.serve(Authority(other, "root"))
    enroller = await bed.refused()
    assert enroller.failure.kind is Kind.CAPTIVE
    assert all(request.body == b"" for request in server.requests)


class TestClock:
    async def test_a_clock_that_is_decades_behind_lets_the_box_in_and_is_put_right(self, bed: Bed) -> None:
        await bed.serve()
        bed.now = 86_400.0
        await bed.enrol()
        assert FileStore(bed.state).load_clock_floor() == NOW.timestamp()

    async def test_a_clock_that_is_years_ahead_is_said(self, bed: Bed) -> None:
        await bed.serve()
        bed.now = dt.datetime(2050, 1, 1, tzinfo=dt.UTC).timestamp()
        enroller = await bed.refused()
        assert enroller.failure.kind is Kind.CLOCK
        assert "2050-01-01" in enroller.conditions()[0].reason
        bed.now = None
        await bed.enrol()  # once it is right


async def test_no_dns(bed: Bed) -> None:
    async def dead(host: str) -> Sequence[str]:
        raise OSError(-3, "Temporary failure in name resolution")

    server = await bed.serve()
    bed.token = bed.token_for(server.url.replace("127.0.0.1", "controller.example"))
    enroller = await bed.refused(Names(FakeStore(), dead))
    assert enroller.failure.kind is Kind.NO_DNS
    assert "controller.example" in enroller.conditions()[0].reason
    # With an address beside the name it needs no DNS.
    bed.token = bed.token_for(server.url.replace("127.0.0.1", "controller.example"), server.url)
    await bed.enrol(Names(FakeStore(), dead))


async def test_nobody_there(bed: Bed) -> None:
    bed.token = bed.token_for("https://127.0.0.1:9")
    enroller = await bed.refused()
    assert enroller.failure.kind is Kind.UNREACHABLE
    assert enroller.failure.words == "https://127.0.0.1:9: cannot connect: Connection refused"


class TestAtAShell:
    """`cpe-agent enroll` without a daemon."""

    async def enroll(self, bed: Bed, told: list[str]) -> newcomer.LetIn:
        text = f"state_dir: {bed.state}\nrun_dir: {bed.directory}/run\n"
        settings = parse_settings(bed.directory / "agent.yaml", text.encode())
        return await trio.to_thread.run_sync(newcomer.enroll, settings, bed.token, told.append)

    async def test_people_are_told_in_words_and_not_in_a_log(self, bed: Bed, capfd: pytest.CaptureFixture[str]) -> None:
        await bed.serve()
        bed.controller.refusals = [refusal("429 Too Many Requests", "busy", "come again", **{"retry-after": "1"})]
        told: list[str] = []
        assert await self.enroll(bed, told) == ("van-1", False)
        assert told[0].endswith("come again; it is tried again by itself")
        assert capfd.readouterr() == ("", "")

    async def test_a_revoked_site_is_not_asked_about_for_ever(self, bed: Bed) -> None:
        await bed.serve()
        bed.controller.refusals = [refusal("403 Forbidden", "revoked", "van-1 is revoked")] * 9
        with pytest.raises(newcomer.NotLetIn, match="cpe-controller replace van-1"), trio.fail_after(10):
            await self.enroll(bed, [])


class TestCredentials:
    @pytest.fixture
    def issued(self, tmp_path: Path) -> tuple[Credentials, Authority]:
        return Credentials(tmp_path / "state"), Authority(tmp_path, "root")

    def grant(self, credentials: Credentials, authority: Authority) -> str:
        key = x509.load_pem_x509_csr(credentials.next_csr().encode()).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return authority.sign("van-1", key)

    def test_the_key_is_the_same_until_it_is_certified(
        self, issued: tuple[Credentials, Authority], tmp_path: Path
    ) -> None:
        credentials, authority = issued
        assert not Credentials(tmp_path / "state").present
        first = _public(credentials.next_csr())
        assert _public(Credentials(tmp_path / "state").next_csr()) == first
        credentials.replace(self.grant(credentials, authority), authority.ca_path.read_text())
        assert credentials.present
        assert _public(credentials.next_csr()) != first, "a renewal has a key of its own"

    def test_at_every_moment_of_a_renewal_key_and_certificate_belong_together(
        self, issued: tuple[Credentials, Authority], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        credentials, authority = issued
        state = tmp_path / "state"
        cas = authority.ca_path.read_text()
        credentials.replace(self.grant(credentials, authority), cas)
        chain = self.grant(credentials, authority)
        real = Path.replace

        def watched(self: Path, target: Path) -> Path:
            load_identity(state / "identity/certificate.pem", state / "identity/key.pem")
            done = real(self, target)
            load_identity(state / "identity/certificate.pem", state / "identity/key.pem")
            return done

        monkeypatch.setattr(Path, "replace", watched)
        before = (state / "identity/key.pem").read_bytes()
        credentials.replace(chain, cas)
        assert (state / "identity/key.pem").read_bytes() != before
        assert len(list((state / "identities").iterdir())) == 1, "old keys do not pile up"

    @pytest.mark.parametrize("chain", ["", "nonsense", "another key's"])
    def test_what_is_no_certificate_for_this_key_changes_nothing(
        self, issued: tuple[Credentials, Authority], tmp_path: Path, chain: str
    ) -> None:
        credentials, authority = issued
        self.grant(credentials, authority)
        if chain == "another key's":
            chain = authority.sign("van-1", ec.generate_private_key(ec.SECP256R1()).public_key())
        with pytest.raises(EdgeError):
            credentials.replace(chain, authority.ca_path.read_text())
        assert not credentials.present


class TestTokens:
    def test_where_it_is_looked_for(self, tmp_path: Path) -> None:
        sticks = [f"{tmp_path}/media/*", f"{tmp_path}/run/*/*"]
        file = tmp_path / "token"
        missing = f"{file} cannot be read: No such file or directory"
        assert find_token(None, file, sticks) == Lying("", missing)
        assert find_token(None, None, sticks) == Lying()
        stick = tmp_path / "run/user/STICK"
        stick.mkdir(parents=True)
        (stick / "cpe-token").write_text("cpe1.stick\r\n")
        assert find_token(None, file, sticks) == Lying("cpe1.stick", str(stick / "cpe-token"))
        file.write_text("cpe1.file\n")
        assert find_token(None, file, sticks) == Lying("cpe1.file", str(file))
        assert find_token("cpe1.settings", file, sticks) == Lying("cpe1.settings")
        file.write_text(" ")
        assert find_token(None, file, []) == Lying("", f"{file} is empty")

    def test_what_lies_there_may_be_anything(self, tmp_path: Path) -> None:
        stick = tmp_path / "media/STICK"
        (stick / "cpe-token").mkdir(parents=True)
        assert find_token(None, None, [f"{tmp_path}/media/*"]).text == ""
        file = tmp_path / "token"
        file.write_bytes(b"\xff" * 100_000)
        assert len(find_token(None, file, []).text) <= 8192


def test_an_error_says_who_said_it() -> None:
    assert EnrolmentError("clock", "https://x: no").target == "controller"
