"""Does a box get in, however often it has to ask, and does a site renew its certificate in time?"""

from __future__ import annotations

import base64
import datetime as dt
import json
import time
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from cpe_agent.core.certificate import Life
from cpe_agent.core.enrolment import Kind, TokenError
from cpe_agent.loops.cells import Cells
from cpe_agent.loops.clock import FlooredClock
from cpe_agent.loops.enrol import Enroller
from cpe_agent.loops.renew import Renewer
from cpe_agent.model.document import SigningKey
from cpe_agent.model.enrolment import Enrolment, EnrolmentRequest, Granted, Lying
from cpe_agent.ports import EdgeError, EnrolmentError
from tests.fakes.controller import FakeController
from tests.fakes.credentials import FakeCredentials
from tests.fakes.store import FakeStore

NOW = dt.datetime(2031, 5, 1, tzinfo=dt.UTC)
KEYS = (SigningKey("a", "AA=="),)


def token(secret: str = "s" * 20, site: str = "van-1", urls: tuple[str, ...] = ("https://one", "https://two")) -> str:
    fields = {"n": "net", "s": site, "c": urls, "p": "ab" * 32, "k": secret}
    return "cpe1." + base64.urlsafe_b64encode(json.dumps(fields).encode()).decode().rstrip("=")


class FakeEnrolment:
    """Lets in whoever asks first with a secret; `fault` is raised instead, `lost` after it was granted."""

    def __init__(self) -> None:
        self.fault: EnrolmentError | None = None
        self.lost: EnrolmentError | None = None
        self.asked: list[tuple[float, str, EnrolmentRequest | None]] = []
        self.used: dict[str, str] = {}
        self.every_s = 0.0  # one question is answered in so many seconds
        self._free_at = 0.0

    def _admit(self) -> None:
        now = trio.current_time()
        if now < self._free_at:
            raise EnrolmentError("busy", "too many requests", self._free_at - now)
        self._free_at = now + self.every_s

    async def root(self, url: str, pin: str) -> str:
        await trio.lowlevel.checkpoint()
        if self.fault is not None:
            self.asked.append((trio.current_time(), url, None))
            raise self.fault
        self._admit()
        return "root"

    async def enroll(self, url: str, root_pem: str, request: EnrolmentRequest) -> Granted:
        await trio.lowlevel.checkpoint()
        self._admit()
        self.asked.append((trio.current_time(), url, request))
        if self.used.setdefault(request.secret, request.csr) != request.csr:
            raise EnrolmentError("token_used", f"{url}: this token was used by another box")
        if self.lost is not None:
            raise self.lost
        return Granted(request.site, "net", f"certificate for {request.csr}", ("root",), KEYS, ("https://api",), NOW)


class Bed:
    def __init__(self) -> None:
        self.port = FakeEnrolment()
        self.credentials = FakeCredentials()
        self.store = FakeStore()
        self.lying = ""
        self.where = ""
        self.enroller = self.restarted()

    def restarted(self) -> Enroller:
        clock = FlooredClock(self.store)
        self.enroller = Enroller(self.port, self.credentials, self.store, clock, "box-1", self.lies)
        return self.enroller

    def lies(self) -> Lying:
        return Lying(self.lying, self.where)

    def kind(self) -> Kind:
        return self.enroller.failure.kind


async def run(bed: Bed, script: Callable[[], object] | None = None, seconds: float = 30) -> Enrolment | None:
    with trio.move_on_after(seconds):
        return await bed.enroller.run()
    return None


async def test_a_token_that_lies_there_lets_the_box_in(autojump_clock: MockClock) -> None:
    bed = Bed()
    bed.lying = token()
    assert await run(bed) == Enrolment("van-1", "net", ("https://api",), KEYS)
    assert bed.credentials.key == 1 and bed.credentials.cas == "root"
    assert bed.store.enrolment is not None
    assert bed.store.clock_floor_s == NOW.timestamp(), "the controller's time has passed"
    [(_, url, request)] = bed.port.asked
    assert url == "https://one" and request is not None and request.instance == "box-1"


async def test_without_a_token_it_waits_for_one(autojump_clock: MockClock) -> None:
    bed = Bed()
    assert await run(bed) is None
    assert bed.kind() is Kind.NO_TOKEN and bed.port.asked == []
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def somebody_comes() -> None:
            await trio.sleep(10)
            with pytest.raises(TokenError):
                bed.enroller.offer("cpe1.nonsense")
            assert bed.enroller.offer(token()) == "van-1"

        began = trio.current_time()
        assert await run(bed) is not None
        assert trio.current_time() - began == pytest.approx(10, abs=0.1), "at once"


async def test_where_a_token_is_that_cannot_be_read(autojump_clock: MockClock) -> None:
    bed = Bed()
    bed.lying, bed.where = token()[:-9], "/media/stick/cpe-token"
    assert await run(bed) is None
    assert bed.kind() is Kind.UNREADABLE
    assert bed.enroller.failure.words.startswith("/media/stick/cpe-token: the token is damaged")
    bed.lying, bed.where = "", "/nofile cannot be read: No such file or directory"
    assert await run(bed) is None
    assert bed.kind() is Kind.NO_TOKEN
    assert "/nofile cannot be read" in bed.enroller.conditions()[0].reason


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("token_used", Kind.USED),
        ("token_expired", Kind.EXPIRED),
        ("token_unknown", Kind.UNKNOWN),
        ("token_replaced", Kind.REPLACED),
        ("revoked", Kind.REVOKED),
        ("no_dns", Kind.NO_DNS),
        ("captive", Kind.CAPTIVE),
        ("clock", Kind.CLOCK),
        ("unreachable", Kind.UNREACHABLE),
        ("busy", Kind.UNREACHABLE),
        ("csr_bad", Kind.REFUSED),
        ("site_unknown", Kind.REFUSED),
    ],
)
async def test_each_failure_is_said_and_tried_again(autojump_clock: MockClock, code: str, kind: Kind) -> None:
    bed = Bed()
    bed.lying = token()
    bed.port.fault = EnrolmentError(code, "no")
    assert await run(bed, seconds=900) is None
    assert bed.kind() is kind
    assert [condition.type for condition in bed.enroller.conditions()] == [kind.value]
    times = sorted({at for at, _, _ in bed.port.asked})
    assert 3 <= len(times) <= 30, "neither never nor all the time"
    bed.port.fault = None
    assert await run(bed, seconds=310) is not None


async def test_a_better_token_is_tried_at_once(autojump_clock: MockClock) -> None:
    bed = Bed()
    bed.port.used["o" * 20] = "somebody else's"
    bed.lying = token("o" * 20)
    assert await run(bed, seconds=10) is None
    assert bed.kind() is Kind.USED
    bed.lying = token("n" * 20)
    began = trio.current_time()
    assert await run(bed) is not None
    assert trio.current_time() - began < 3


async def test_a_lost_answer_is_asked_for_again_with_the_same_key_also_after_a_restart(
    autojump_clock: MockClock,
) -> None:
    bed = Bed()
    bed.lying = token()
    bed.port.lost = EnrolmentError("unreachable", "the connection broke")
    assert await run(bed, seconds=20) is None
    bed.restarted()
    bed.port.lost = None
    assert await run(bed) is not None
    assert len({request.csr for _, _, request in bed.port.asked if request is not None}) == 1


async def test_what_cannot_be_kept_is_asked_for_again_with_the_same_key(autojump_clock: MockClock) -> None:
    bed = Bed()
    bed.lying = token()
    bed.store.refusal = "No space left on device"
    assert await run(bed, seconds=5) is None
    assert not bed.credentials.present, "a certificate without the rest would be no way back"
    bed.store.refusal = None
    bed.restarted()
    assert await run(bed, seconds=5) is not None
    assert {request.csr for _, _, request in bed.port.asked if request is not None} == {"csr of key 1"}


async def test_a_controller_that_lets_one_question_through_now_and_then_lets_the_box_in(
    autojump_clock: MockClock,
) -> None:
    """As one does that limits requests: a try that asked for the root again would spend what it was given on that."""
    bed = Bed()
    bed.lying = token(urls=("https://one",))
    bed.port.every_s = 6.0
    began = trio.current_time()
    assert await run(bed, seconds=60) is not None
    assert trio.current_time() - began < 3 * bed.port.every_s


async def test_the_second_address_is_asked_when_the_first_is_silent_but_a_refusal_is_final(
    autojump_clock: MockClock,
) -> None:
    bed = Bed()
    bed.lying = token()
    bed.port.fault = EnrolmentError("unreachable", "no")
    await run(bed, seconds=1)
    assert [url for _, url, _ in bed.port.asked] == ["https://one", "https://two"]
    bed.port.asked.clear()
    bed.port.fault = EnrolmentError("token_expired", "too late")
    bed.restarted()
    await run(bed, seconds=1)
    assert [url for _, url, _ in bed.port.asked] == ["https://one"]


class TestRenewal:
    DAY = 86_400.0

    def bed(self, age_days: float) -> tuple[Cells, FakeController, FakeCredentials, Renewer, list[Life]]:
        cells, port, credentials = Cells(), FakeController(), FakeCredentials()
        credentials.key = 1
        now = time.time()
        cells.certificate.set(Life(now - age_days * self.DAY, now + (200 - age_days) * self.DAY))
        loaded: list[Life] = []

        def load() -> Life:
            loaded.append(Life(now, now + 200 * self.DAY))
            return loaded[-1]

        renewer = Renewer(cells, port, credentials, FlooredClock(FakeStore()), load, lambda: [""])
        return cells, port, credentials, renewer, loaded

    async def test_a_young_one_is_left_alone(self, autojump_clock: MockClock) -> None:
        _, port, _, renewer, loaded = self.bed(age_days=99)
        with trio.move_on_after(5 * 3600):
            await renewer.run()
        assert port.renewals == [] and loaded == []

    async def test_one_of_a_root_that_is_on_its_way_out_is_replaced_once(self, autojump_clock: MockClock) -> None:
        cells, port, credentials, renewer, loaded = self.bed(age_days=1)
        renewer = Renewer(cells, port, credentials, renewer._clock, renewer._load, lambda: [""], lambda: bool(loaded))
        with trio.move_on_after(5 * 3600):
            await renewer.run()
        assert port.renewals == ["csr of key 2"] and len(loaded) == 1

    async def test_a_controller_that_gives_what_is_on_its_way_out_is_not_asked_in_a_loop(
        self, autojump_clock: MockClock
    ) -> None:
        cells, port, credentials, renewer, _ = self.bed(age_days=1)
        renewer = Renewer(cells, port, credentials, renewer._clock, renewer._load, lambda: [""], lambda: False)
        with trio.move_on_after(24 * 3600):
            await renewer.run()
        assert 2 <= len(port.renewals) <= 20

    async def test_files_that_cannot_be_read_for_a_while_end_nothing(self, autojump_clock: MockClock) -> None:
        cells, port, credentials, renewer, loaded = self.bed(age_days=1)
        readable_at = trio.current_time() + 2 * 3600

        def vouched() -> bool:
            if trio.current_time() < readable_at:
                raise EdgeError("identity", "load", "key.pem: Input/output error")
            return bool(loaded)

        renewer = Renewer(cells, port, credentials, renewer._clock, renewer._load, lambda: [""], vouched)
        with trio.move_on_after(5 * 3600):
            await renewer.run()
        assert port.renewals == ["csr of key 2"]

    async def test_an_old_one_is_replaced_once_with_a_new_key(self, autojump_clock: MockClock) -> None:
        cells, port, credentials, renewer, loaded = self.bed(age_days=101)
        with trio.move_on_after(5 * 3600):
            await renewer.run()
        assert port.renewals == ["csr of key 2"] and credentials.key == 2
        assert len(loaded) == 1 and cells.certificate.value == loaded[0]

    async def test_a_refusal_is_tried_again_with_the_same_key(self, autojump_clock: MockClock) -> None:
        cells, port, credentials, renewer, _ = self.bed(age_days=120)
        before = cells.certificate.value
        port.fault = "timed out"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(renewer.run)
            await trio.sleep(24 * 3600)
            assert credentials.key == 1 and cells.certificate.value == before
            port.fault = None
            await trio.sleep(7 * 3600)
            assert credentials.key == 2 and port.renewals == ["csr of key 2"]
            nursery.cancel_scope.cancel()

    async def test_what_came_for_another_key_changes_nothing(self, autojump_clock: MockClock) -> None:
        _, port, credentials, renewer, loaded = self.bed(age_days=120)
        credentials.replace = _refuse  # type: ignore[method-assign]
        with trio.move_on_after(3600):
            await renewer.run()
        assert loaded == [] and credentials.key == 1 and 2 <= len(port.renewals) <= 10


def _refuse(chain_pem: str, cas_pem: str) -> None:
    raise EdgeError("controller", "certificate", "the certificate that came is for another key")
