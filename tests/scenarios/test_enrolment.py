"""Does a new box get in by a token and nothing else, in seconds, and is what else may happen said in words?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cpe_agent.edge.identity import load_identity
from tests.lab import watch
from tests.lab.lab import Lab
from tests.lab.newcomer import command, enrol, make_new, new_token, token_to_ping_s
from tests.lab.provision import provision

SITE, HOST, SERVER = "van-1", "van-1-host", "10.10.0.10"
START_S = 30.0
TOKEN_TO_PING_S = 5.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(name="enrolment") as lab:
        provision(lab)
        lab.start()
        watch.wait_all_up(lab, START_S)
        yield lab


def test_from_a_token_to_the_first_ping(lab: Lab) -> None:
    make_new(lab, SITE)
    assert lab.fetch(HOST, f"http://{SERVER}/", timeout_s=1) is None, "a new box lets nothing through"
    [condition] = watch.status(lab, SITE).conditions
    assert condition.type == "NotEnrolled" and "cpe-agent enroll TOKEN" in condition.reason
    took_s = token_to_ping_s(lab, SITE, new_token(lab, SITE), HOST, SERVER)
    print(f"token_to_ping_s {took_s:.2f}")
    assert took_s <= TOKEN_TO_PING_S
    watch.wait_all_up(lab, START_S, [SITE])
    report = watch.status(lab, SITE)
    assert report.site == SITE and report.certificate_expires is not None
    state = lab.site(SITE).outside / "state"
    identity = load_identity(state / "identity/certificate.pem", state / "identity/key.pem")
    assert identity.not_after.timestamp() == report.certificate_expires
    assert command(lab, SITE, "verify").status == 0
    again = enrol(lab, SITE, new_token(lab, SITE, replace=True))
    assert again.status != 0 and f"this box is {SITE} already" in again.stderr


def test_a_restart_finds_all_that_it_needs(lab: Lab) -> None:
    lab.site(SITE).kill()
    make_it_run(lab)
    make_new(lab, SITE)
    token_to_ping_s(lab, SITE, new_token(lab, SITE, replace=True), HOST, SERVER)
    lab.site(SITE).kill()
    make_it_run(lab)
    watch.wait_all_up(lab, START_S, [SITE])


def make_it_run(lab: Lab) -> None:
    lab.site(SITE).start()
    watch.wait_for(lab, SITE, "it answers", lambda report: report.document_version is not None, START_S)


def test_a_token_on_a_stick_is_enough(lab: Lab) -> None:
    token = new_token(lab, SITE, replace=True)
    place = lab.site(SITE).outside / "token"
    place.write_text(token + "\r\n")
    make_new(lab, SITE, token_file=str(Path(lab.site(SITE).inside) / "token"))
    watch.wait_all_up(lab, START_S, [SITE])


def test_a_used_token_says_so(lab: Lab) -> None:
    token = new_token(lab, SITE, replace=True)
    make_new(lab, SITE)
    token_to_ping_s(lab, SITE, token, HOST, SERVER)
    make_new(lab, SITE)  # with another key, as another box would have
    refused = enrol(lab, SITE, token)
    assert refused.status == 1 and "another box" in refused.stderr
    assert {c.type for c in watch.status(lab, SITE).conditions} == {"TokenUsed"}
    assert token_to_ping_s(lab, SITE, new_token(lab, SITE, replace=True), HOST, SERVER) > 0
    watch.wait_all_up(lab, START_S, [SITE])


def test_a_mistyped_token_says_so(lab: Lab) -> None:
    make_new(lab, SITE)
    refused = enrol(lab, SITE, new_token(lab, SITE, replace=True)[:-9])
    assert refused.status == 65 and "damaged" in refused.stderr
    token_to_ping_s(lab, SITE, new_token(lab, SITE, replace=True), HOST, SERVER)
