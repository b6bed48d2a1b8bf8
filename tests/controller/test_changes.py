"""The other ways to hear of a change: one line per request, and the document with its line."""

from __future__ import annotations

import json
import time

import pytest

from cpe_agent.model.document_check import decode
from cpe_controller import changes, setup
from cpe_controller.answers import Refused
from cpe_controller.changes import Poll
from cpe_controller.signing import verify
from tests.controller.conftest import Served


def test_a_poll_waits_for_what_is_after(served: Served, text: str) -> None:
    with served.client("van-1") as client:
        assert client.get("/v1/changes?wait=5").json() == {"epoch": 1, "version": 1}
        assert client.get("/v1/changes?after=1.0&wait=5").json() == {"epoch": 1, "version": 1}
        started = time.monotonic()
        assert client.get("/v1/changes?after=1.1&wait=0.5").json() == {"heartbeat": True}
        assert 0.5 <= time.monotonic() - started < 4
        setup.apply(served.state, text.replace("failback_s: 60", "failback_s: 61"))
        assert client.get("/v1/changes?after=1.1&wait=50").json() == {"epoch": 1, "version": 2}


def test_a_waiting_poll_is_woken(served: Served, text: str) -> None:
    with served.client("van-1") as client, client.stream("GET", "/v1/changes?documents=65536") as held:
        lines = held.iter_lines()
        first = json.loads(next(lines))
        assert decode(first["document"].encode()).order == (1, 1)
        setup.apply(served.state, text.replace("failback_s: 60", "failback_s: 61"))
        told = next(line for line in map(json.loads, lines) if "epoch" in line)
        [key] = setup.signing_keys(served.state)
        assert told["key_id"] == key.id
        raw = told["document"].encode()
        assert verify(key, raw, told["signature"]) and decode(raw).policy.failback_s == 61
        assert raw == client.get("/v1/document").content
    with served.client("centre") as client:  # what is longer is fetched
        assert client.get("/v1/changes?wait=1&documents=100").json() == {"epoch": 1, "version": 2}


def test_what_a_request_may_say() -> None:
    assert changes.read({}) == Poll(True, None, 0.0, 0)
    assert changes.read({"after": "1.7", "wait": "2.5"}) == Poll(False, (1, 7), 2.5, 0)
    assert changes.read({"after": "", "wait": "9999"}) == Poll(False, None, changes.WAIT_MAX_S, 0)
    assert changes.read({"documents": "99999999"}).inline == changes.INLINE_MAX_BYTES
    for query in (
        {"after": "1"},
        {"after": "x.y"},
        {"wait": "-1"},
        {"wait": "inf"},
        {"documents": "1e99"},
        {"wait": "٣"},
    ):
        with pytest.raises(Refused):
            changes.read(query)


def test_an_agent_that_speaks_other_schemas_is_told(served: Served) -> None:
    with served.client("van-1") as client:
        assert client.get("/v1/document", headers={"Cpe-Schemas": "2, 1"}).status_code == 200
        answer = client.get("/v1/document", headers={"Cpe-Schemas": "2"})
        assert answer.status_code == 400 and "schema 1" in answer.json()["error"]
