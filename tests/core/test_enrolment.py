"""Which text is a token, and what is done when it lets nobody in?"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpe_agent.core.enrolment import BY_CODE, BY_HAND, Failure, Kind, TokenError, condition, parse_token, wait_s
from cpe_agent.model.condition import Severity

FIELDS: dict[str, Any] = {
    "n": "net",
    "s": "van-1",
    "c": ["https://controller.example:8444", "https://192.0.2.1:8444"],
    "p": "ab" * 32,
    "k": base64.urlsafe_b64encode(bytes(range(20))).decode().rstrip("="),
}


def token(**changes: Any) -> str:
    fields = {**FIELDS, **changes}
    return "cpe1." + base64.urlsafe_b64encode(json.dumps(fields).encode()).decode().rstrip("=")


def test_what_a_token_says() -> None:
    found = parse_token(token())
    assert (found.network, found.site, found.pin) == ("net", "van-1", "ab" * 32)
    assert found.urls == ("https://controller.example:8444", "https://192.0.2.1:8444")
    assert found.secret == FIELDS["k"] and found.secret not in repr(found)


@pytest.mark.parametrize("around", ["{}\n", "  {}  ", "\ufeff{}", "{}\r\n"])
def test_white_space_round_it_and_in_it_is_nothing(around: str) -> None:
    text = around.format(token())
    if text.startswith("\ufeff"):
        text = text.removeprefix("\ufeff")
    assert parse_token(text).site == "van-1"
    assert parse_token(f"{text[:40]}\n{text[40:]}").site == "van-1", "a terminal has wrapped it"


BROKEN = {
    "empty": "",
    "another kind": token().replace("cpe1.", "cpe2."),
    "cut": token()[:-30],
    "not base64": "cpe1.!!!!",
    "not JSON": "cpe1." + base64.urlsafe_b64encode(b"hello").decode(),
    "no secret": token(k=""),
    "a short secret": token(k="abc"),
    "no pin": token(p="ab"),
    "http": token(c=["http://controller.example"]),
    "no address": token(c=[]),
    "a site that is none": token(s="../etc"),
    "endless": "cpe1." + "A" * 10_000,
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_what_is_no_token(text: str) -> None:
    with pytest.raises(TokenError) as caught:
        parse_token(text)
    assert FIELDS["k"] not in str(caught.value), "a secret is not quoted"
    assert "copy the whole of it" in str(caught.value) or "a token begins with" in str(caught.value)


@given(st.one_of(st.text(), st.binary().map(lambda b: "cpe1." + base64.urlsafe_b64encode(b).decode())))
def test_any_text_is_a_token_or_none(text: str) -> None:
    try:
        parse_token(text)
    except TokenError:
        return


def test_each_way_of_failing_has_a_condition_of_its_own_that_says_what_to_do() -> None:
    found = [condition(Failure(kind, "It failed.")) for kind in Kind]
    assert len({c.type for c in found}) == len(Kind)
    assert len({c.reason for c in found}) == len(Kind)
    assert all(c.reason.startswith("It failed; ") and c.severity is Severity.DOWN for c in found)


def test_what_to_type_names_the_site_and_nothing_is_said_twice() -> None:
    words = "another box has used this token: look which, then replace van-9"
    reason = condition(Failure(Kind.USED, words, site="van-9")).reason
    assert reason == f"{words}; `cpe-controller replace van-9` makes one for this box and shuts the other out"
    assert "`cpe-controller token van-9`" in condition(Failure(Kind.EXPIRED, "ended", site="van-9")).reason


def test_one_who_answers_is_not_asked_whether_he_runs() -> None:
    reason = condition(Failure(Kind.UNREACHABLE, "too many requests: come again in 4 s", 4.0)).reason
    assert reason == "too many requests: come again in 4 s; it is tried again by itself"
    assert "controller running?" in condition(Failure(Kind.UNREACHABLE, "no connection in time")).reason


@pytest.mark.parametrize("kind", Kind)
def test_what_mends_itself_is_tried_often_and_what_a_person_mends_rarely(kind: Kind) -> None:
    waits = [wait_s(Failure(kind, ""), attempt) for attempt in range(1, 20)]
    assert waits == sorted(waits)
    if kind in BY_HAND:
        assert set(waits) == {300.0}
    else:
        assert waits[-1] == 60.0
    assert wait_s(Failure(kind, "", retry_after_s=400.0), 1) == 400.0
    assert wait_s(Failure(kind, "", retry_after_s=1e9), 1) <= 600.0


def test_the_controllers_codes_are_known() -> None:
    assert {"token_used", "token_expired", "token_unknown", "token_replaced", "revoked", "busy"} == set(BY_CODE)
