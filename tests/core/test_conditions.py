"""Are the conditions those that hold, and do they say what is wrong?"""

from __future__ import annotations

from typing import Any

import pytest

from cpe_agent.core.conditions import conditions
from cpe_agent.core.health import State, Track
from cpe_agent.model.condition import Condition, ServiceReport, Severity
from cpe_agent.model.dataplane import Bundle, Path
from tests.core.documents import EXPIRES, ISSUED, branch

PATH = Path("wired", "centre", "a")
BUNDLE = Bundle("centre", "traffic-centre", (PATH,), ("web",))
GOOD: dict[str, Any] = {
    "document": branch(),
    "bundles": [BUNDLE],
    "tracks": {PATH: Track(3, State.UP, ready=True, ike=1)},
    "active": {"centre": PATH},
    "now": ISSUED.timestamp(),
    "obstacles": (),
    "target_errors": {"rules": ""},
    "controller_error": "",
    "rejected": "",
}


def test_a_healthy_site_has_none() -> None:
    assert conditions(**GOOD) == ()


@pytest.mark.parametrize(
    ("changes", "type_", "subject", "severity", "words"),
    [
        ({"document": None}, "NoDocument", "", Severity.DOWN, "no document"),
        ({"now": EXPIRES.timestamp() + 1}, "DocumentExpired", "", Severity.DEGRADED, "2026-07-01"),
        ({"rejected": "site: is 'x'"}, "DocumentRejected", "", Severity.DEGRADED, "site: is 'x'"),
        ({"controller_error": "refused"}, "ControllerUnreachable", "", Severity.DEGRADED, "refused"),
        ({"target_errors": {"rules": "EPERM"}}, "TargetFailed", "rules", Severity.DEGRADED, "EPERM"),
        (
            {"tracks": {PATH: Track(3, State.UP, ike=1, unready_rounds=3)}},
            "PeerNotReady",
            str(PATH),
            Severity.DEGRADED,
            "not willing",
        ),
        (
            {"obstacles": [Condition("LanMissing", "wards", "no lan0")]},
            "LanMissing",
            "wards",
            Severity.DEGRADED,
            "lan0",
        ),
        ({"active": {"centre": None}}, "BundleDown", "centre", Severity.DOWN, str(PATH)),
        ({"active": {}, "bundles": [Bundle("b", "traffic-b", (), ())]}, "BundleDown", "b", Severity.DOWN, "no uplink"),
    ],
)
def test_one_thing_is_wrong(changes: dict[str, Any], type_: str, subject: str, severity: Severity, words: str) -> None:
    (found,) = conditions(**{**GOOD, **changes})
    assert (found.type, found.subject, found.severity) == (type_, subject, severity)
    assert words in found.reason


@pytest.mark.parametrize(
    ("track", "words", "bundle_down"),
    [
        (Track(3, State.DOWN, reason="probes", ike=1), "not answered", True),
        (Track(3, State.DOWN, reason="ike"), "IKE_SA is gone", True),
        (Track(3, State.DOWN, reason="link"), "uplink is down", True),
        (Track(3), "dialling centre", False),
        (Track(3, ike=1), "first probes", False),
    ],
)
def test_a_path_that_is_not_up(track: Track, words: str, bundle_down: bool) -> None:
    found = {c.type: c for c in conditions(**{**GOOD, "tracks": {PATH: track}})}
    assert words in found["PathDown"].reason
    assert ("BundleDown" in found) == bundle_down


def test_they_are_sorted() -> None:
    found = conditions(**{**GOOD, "document": None, "rejected": "x", "controller_error": "y", "active": {}})
    assert [c.type for c in found] == sorted(c.type for c in found)


WIRED_CLOUD, LTE_CENTRE, LTE_CLOUD = Path("wired", "cloud", "a"), Path("lte", "centre", "a"), Path("lte", "cloud", "a")


@pytest.mark.parametrize(
    ("down", "says"),
    [
        ({PATH, LTE_CENTRE}, {"PeerDown centre"}),  # a hub fault
        ({PATH, WIRED_CLOUD}, set()),  # an uplink fault
        ({PATH}, set()),
        ({PATH, LTE_CENTRE, WIRED_CLOUD, LTE_CLOUD}, set()),  # nobody knows
    ],
)
def test_that_a_hub_fault_is_told_from_an_uplink_fault(down: set[Path], says: set[str]) -> None:
    paths = (PATH, LTE_CENTRE, WIRED_CLOUD, LTE_CLOUD)
    tracks = {p: Track(3, State.DOWN if p in down else State.UP, ready=p not in down, ike=1) for p in paths}
    found = conditions(**{**GOOD, "tracks": tracks})
    assert {f"{c.type} {c.subject}" for c in found if c.type in ("PeerDown", "ServerSilent")} == says
    assert sum(c.type == "PathDown" for c in found) == len(down)


def test_that_a_dead_server_is_told_from_both() -> None:
    silent = ServiceReport("web", "centre", "10.10.0.10 (tcp 443)", "silent", "centre")
    answering = ServiceReport("shared", "shared", "10.50.0.10 (echo)", "answering", "centre")
    (found,) = conditions(**GOOD, services=(silent, answering))
    assert (found.type, found.subject, found.severity) == ("ServerSilent", "web", Severity.DEGRADED)
    assert "10.10.0.10 (tcp 443) does not answer behind centre, whose path is up: look at that server" in found.reason
