"""Does a new box get in by a token and nothing else, in seconds, and is what else may happen said in words?"""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cpe_agent.core.enrolment import parse_token
from cpe_agent.edge.control import ask
from cpe_agent.edge.identity import load_identity
from cpe_agent.model.enrolment import TOKEN_PREFIX, Token
from tests.lab import watch
from tests.lab.console import no_controller
from tests.lab.lab import Lab
from tests.lab.newcomer import command, enrol, make_new, new_token, token_to_ping_s
from tests.lab.provision import CONTROLLER_PORT, provision
from tests.scenarios.test_controller_faults import answering

SITE, HOST, SERVER = "van-1", "van-1-host", "10.10.0.10"
START_S = 30.0
TOKEN_TO_PING_S = 5.0
TOLD_S = 20.0
YEAR_S = 365 * 86_400.0


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


def test_an_expired_token_says_so(lab: Lab) -> None:
    make_new(lab, SITE)
    token = new_token(lab, SITE, replace=True)
    argv = [sys.executable, "-m", "tests.scenarios.expiring", parse_token(token).secret]
    lab.run(lab.network.controller, *argv)
    refused = enrol(lab, SITE, token)
    assert refused.status == 1 and "this token ended" in refused.stderr and "cpe-controller token" in refused.stderr
    assert conditions(lab) == {"TokenExpired"}
    let_in(lab)


def test_a_foreign_token_says_so(lab: Lab) -> None:
    """One that this controller never gave out; and one of another network, whose controller is not the one there."""
    make_new(lab, SITE)
    token = parse_token(new_token(lab, SITE, replace=True))
    refused = enrol(lab, SITE, text_of(token, secret="x" * 27))
    assert refused.status == 1 and "never gave out this token" in refused.stderr
    assert conditions(lab) == {"TokenUnknown"}
    offer(lab, text_of(token, pin="0" * 64))
    watch.wait_for(lab, SITE, "it is not his controller", has("CaptivePortal"), TOLD_S)
    let_in(lab)


def test_a_captive_portal_says_so_and_is_told_no_secret(lab: Lab) -> None:
    make_new(lab, SITE)
    token = new_token(lab, SITE, replace=True)
    port = CONTROLLER_PORT + 1
    with no_controller(lab), answering(lab, "html", port=port):
        offer(lab, token)
        report = watch.wait_for(lab, SITE, "it is a portal", has("CaptivePortal"), TOLD_S)
        assert "log in to the network's own page" in report.conditions[0].reason
    # The same token is tried again by itself: nobody has to type it twice.
    watch.wait_all_up(lab, START_S + 30, [SITE])


def test_without_dns_it_says_so(lab: Lab) -> None:
    make_new(lab, SITE)
    token = parse_token(new_token(lab, SITE, replace=True))
    port = CONTROLLER_PORT + 1
    offer(lab, text_of(token, urls=(f"https://controller.example:{port}",)))
    report = watch.wait_for(lab, SITE, "there is no DNS", has("NameUnknown"), TOLD_S)
    assert "controller.example" in report.conditions[0].reason and "DNS server" in report.conditions[0].reason
    # With an address beside the name it gets in without.
    assert enrol(lab, SITE, text_of(token, urls=(f"https://controller.example:{port}", *token.urls))).status == 0
    watch.wait_all_up(lab, START_S, [SITE])


def test_a_clock_that_is_years_ahead_says_so_and_one_that_is_behind_lets_it_in(lab: Lab) -> None:
    box = lab.site(SITE)
    try:
        box.clock_ahead_s = 30 * YEAR_S
        make_new(lab, SITE)
        token = new_token(lab, SITE, replace=True)
        offer(lab, token)
        report = watch.wait_for(lab, SITE, "its clock is wrong", has("ClockWrong"), TOLD_S)
        assert "set the clock" in report.conditions[0].reason
        # The same box, with the same key: that it was let in already, and did not believe the server, is no harm.
        box.clock_ahead_s = -50 * YEAR_S
        box.agent.restart()
        watch.wait_for(lab, SITE, "it belongs to no site", lambda now: not now.site, TOLD_S)
        assert token_to_ping_s(lab, SITE, token, HOST, SERVER) > 0
        report = watch.wait_for(lab, SITE, "it knows", lambda now: not now.clock_trusted, TOLD_S)
        assert "has passed" in next(c.reason for c in report.conditions if c.type == "ClockUntrusted")
    finally:
        box.clock_ahead_s = 0.0
        box.agent.restart()
    watch.wait_all_up(lab, START_S, [SITE])
    assert watch.status(lab, SITE).clock_trusted


def offer(lab: Lab, token: str) -> None:
    """To the running agent, as `enroll` does, without waiting for what comes of it."""
    ask(lab.site(SITE).outside / "run/control.sock", f"enroll {token}")


def text_of(token: Token, **changed: object) -> str:
    raw = msgspec.json.encode(msgspec.structs.replace(token, **changed))
    return TOKEN_PREFIX + base64.urlsafe_b64encode(raw).decode().rstrip("=")


def conditions(lab: Lab) -> set[str]:
    return {condition.type for condition in watch.status(lab, SITE).conditions}


def has(condition: str) -> watch.Predicate:
    return lambda report: condition in {one.type for one in report.conditions}


def let_in(lab: Lab) -> None:
    token_to_ping_s(lab, SITE, new_token(lab, SITE, replace=True), HOST, SERVER)
    watch.wait_all_up(lab, START_S, [SITE])


def test_a_mistyped_token_says_so(lab: Lab) -> None:
    make_new(lab, SITE)
    refused = enrol(lab, SITE, new_token(lab, SITE, replace=True)[:-9])
    assert refused.status == 65 and "damaged" in refused.stderr
    token_to_ping_s(lab, SITE, new_token(lab, SITE, replace=True), HOST, SERVER)
