"""What sites say of themselves, what the controller makes of it, and what it tells people and Prometheus."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from cpe_controller import audit, commands, setup
from cpe_controller.cli import main
from cpe_controller.commands import answering
from cpe_controller.fleet import NEAR_EXPIRY_S, SILENT_S, State, fleet
from cpe_controller.reports import Contact, Rejected, Report, Said, Taken
from cpe_controller.standing import Standing
from tests.controller.conftest import ANSWERED_S, Served, serving

NOW = 1_000_000.0
OFFERED = (1, 3)


def _report(**said: Any) -> Report:
    return msgspec.structs.replace(Report(applied=Taken(1, 3), confirmed=True), **said)


@pytest.mark.parametrize(
    ("stands", "contact", "state"),
    [
        (Standing(), None, State.NEVER),
        (Standing(revoked=True), Contact(NOW, _report()), State.REVOKED),
        (Standing(), Contact(NOW - SILENT_S, _report()), State.SILENT),
        (Standing(), Contact(NOW), State.BEHIND),
        (Standing(), Contact(NOW, _report(applied=Taken(1, 2))), State.BEHIND),
        (Standing(), Contact(NOW, _report(confirmed=False)), State.BEHIND),
        (Standing(), Contact(NOW, _report(applied=Taken(1, 2), rejected=Rejected(1, 3, "no"))), State.REJECTED),
        (Standing(), Contact(NOW, _report(rejected=Rejected(1, 2, "long ago"))), State.WELL),
        (Standing(), Contact(NOW, _report(conditions=(Said("PathDown"),))), State.DEGRADED),
        (Standing(), Contact(NOW, _report(conditions=(Said("A"), Said("B", severity="down")))), State.DOWN),
        (Standing(), Contact(NOW, _report(conditions=(Said("A", severity="ok"),))), State.WELL),
    ],
)
def test_a_site_has_one_state(stands: Standing, contact: Contact | None, state: State) -> None:
    contacts = {} if contact is None else {"van-1": contact}
    [status] = fleet({"van-1": OFFERED}, {"van-1": stands}, contacts, NOW)
    assert status.state is state
    assert (status.rejected == "rejected 1.3: no") is (state is State.REJECTED)


def test_certificates_that_end_are_seen() -> None:
    for left, ends in ((NEAR_EXPIRY_S - 1, True), (NEAR_EXPIRY_S + 1, False)):
        [status] = fleet({"van-1": OFFERED}, {}, {"van-1": Contact(NOW, certificate_until=NOW + left)}, NOW)
        assert status.certificate_ends(NOW) is ends


SAID = {
    "instance": "6e2c0f2e-0000-0000-0000-000000000000",
    "boot_id": "b",
    "agent_version": "0.2.0",
    "schemas": [1],
    "applied": {"epoch": 1, "version": 1, "at": 1.5},
    "confirmed": True,
    "rejected": None,
    "conditions": [{"type": "PathDown", "subject": "lte.cloud.wan", "reason": "3 misses", "severity": "degraded",
                    "since": "2026-03-01T12:00:00Z"}],
    "paths": [{"path": "lte.centre.wan", "state": "up"}, {"path": "lte.cloud.wan", "state": "down"}],
    "serving": True,
    "something_newer": 1,
}  # fmt: skip


def _until(seen: Callable[[], bool]) -> None:
    """The server writes once a second."""
    deadline = time.monotonic() + ANSWERED_S
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_from_the_report_to_the_operator(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    with served.client("van-1") as client:
        assert client.post("/v1/status", json=SAID).status_code == 204
    where = ["--state", str(served.state)]

    def shown(*more: str) -> Any:
        assert main([*where, "status", "--json", *more]) == 0
        return json.loads(capsys.readouterr().out)

    _until(lambda: shown("van-1")[0]["state"] == "degraded")
    [van] = shown("van-1")
    assert (van["offered"], van["applied"], van["agent_version"]) == ("1.1", "1.1", "0.2.0")
    assert van["conditions"][0]["type"] == "PathDown" and van["serving"] is True
    assert 190 * 86400 < van["certificate_until"] - time.time() < 201 * 86400
    assert {site["site"] for site in shown("--state-is", "never")} == {"centre", "cloud", "hospital-1"}
    assert main([*where, "status"]) == 0
    told = capsys.readouterr().out
    assert "1/2" in told and "PathDown lte.cloud.wan: 3 misses" in told and "4 sites: 3 never, 1 degraded" in told
    assert main([*where, "status", "nobody"]) == 1

    metrics = httpx.get(served.metrics_url, trust_env=False).text
    assert 'cpe_controller_sites{state="degraded"} 1.0' in metrics
    assert 'cpe_controller_sites{state="never"} 3.0' in metrics
    assert "cpe_controller_silent_sites 3.0" in metrics
    assert "cpe_controller_certificates_near_expiry 0.0" in metrics
    assert 'cpe_controller_rollout{phase="halted"} 0.0' in metrics
    assert "van-1" not in metrics

    # Which site took what is in the audit log, once.
    with served.client("van-1") as client:
        assert client.post("/v1/status", json=SAID).status_code == 204
    with setup.opened(served.state) as (store, _):
        taken = [deed.about for deed in audit.deeds(store) if deed.what == "taken"]
    assert taken == [{"van-1": "1.1"}]


def test_what_a_site_has_refused_is_offered_to_it_no_longer(served: Served, text: str) -> None:
    refused = {"epoch": 1, "version": 1, "reason": "lost both hubs", "reverted": True}
    with served.client("van-1") as client:
        etag = client.get("/v1/document").headers["etag"]
        assert client.get("/v1/changes?wait=0").json() == {"epoch": 1, "version": 1}
        client.post("/v1/status", json=SAID | {"applied": None, "rejected": refused}).raise_for_status()
        assert client.get("/v1/changes?wait=0").json() == {"heartbeat": True}
        assert client.get("/v1/document", headers={"If-None-Match": '"of the one before"'}).status_code == 304
        setup.apply(served.state, text.replace("failback_s: 60", "failback_s: 61"))
        assert client.get("/v1/changes?wait=10").json() == {"epoch": 1, "version": 2}
        answer = client.get("/v1/document", headers={"If-None-Match": etag})
        assert answer.status_code == 200
    # Another site is none the wiser.
    with served.client("hospital-1") as client:
        assert client.get("/v1/changes?wait=0").json() == {"epoch": 1, "version": 2}


def test_nonsense_is_no_report(served: Served) -> None:
    with served.client("van-1") as client:
        for body, status in (
            (b"", 400),
            (b"\xff", 400),
            (b"[" * 50_000, 400),
            (json.dumps(SAID | {"applied": {"epoch": -1, "version": 1}}).encode(), 400),
            (json.dumps(SAID | {"applied": {"epoch": 10**30, "version": 1}}).encode(), 400),
            (json.dumps(SAID | {"confirmed": 7}).encode(), 400),
            (json.dumps(SAID | {"conditions": [{"subject": "x"}]}).encode(), 400),
            (b" " * 70_000, 413),
        ):
            answer = client.post("/v1/status", content=body)
            assert answer.status_code == status and answer.json()["error"], body[:60]
        # One that reports all the time is slowed down, and told for how long.
        while (answer := client.post("/v1/status", json=SAID)).status_code == 204:
            pass
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1


def test_what_was_said_outlives_a_restart(state: Path, text: str) -> None:
    setup.apply(state, text)
    with serving(state) as served, served.client("van-1") as client:
        assert client.post("/v1/status", json=SAID).status_code == 204
    # Ended within the second: written all the same.
    [van] = answering.run(state, commands.Status(("van-1",)), "tester").data
    assert van.state is State.DEGRADED


def test_a_new_controller_says_what_is_next(state: Path, text: str) -> None:
    said = answering.run(state, commands.Status(), "tester").lines
    assert said == ("0 sites", "no network was applied here yet; next: cpe-controller apply network.yaml")
    applied = answering.run(state, commands.Apply(text, "x"), "tester").lines[-1]
    assert applied == ("without a box yet: centre, cloud, hospital-1, van-1; next, for each: cpe-controller token SITE")
    assert answering.run(state, commands.Status(), "tester").lines[-1] == "4 sites: 4 never"
    # Said once: later it is for status to tell who never called.
    later = answering.run(state, commands.Apply(text.replace("failback_s: 60", "failback_s: 61"), "x"), "tester")
    assert later.lines[-1] == "4 changed, 0 unchanged, 0 withdrawn"
