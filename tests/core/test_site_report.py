"""What is told to the controller, and what is news?"""

from __future__ import annotations

import msgspec

from cpe_agent.core.site_report import REPORT_MAX_BYTES, Facts, news, site_report
from cpe_agent.model.condition import Condition, Severity
from cpe_agent.model.confirmation import Rejection
from cpe_agent.model.site_report import Box

BOX = Box("instance", "boot")
FACTS = Facts("1", (1, 7), 60.0, True, None, (), {}, True)


def test_the_wire_is_as_agreed() -> None:
    facts = msgspec.structs.replace(
        FACTS,
        conditions=(Condition("PathDown", "lte.centre.wan", "no", Severity.DEGRADED, 1.5),),
        refused=Rejection(1, 8, "cut off", reverted=True),
        paths={"lte.centre.wan": "down"},
    )
    assert msgspec.json.decode(msgspec.json.encode(site_report(facts, BOX))) == {
        "instance": "instance",
        "boot_id": "boot",
        "agent_version": "1",
        "schemas": [1],
        "applied": {"epoch": 1, "version": 7, "at": "1970-01-01T00:01:00Z"},
        "confirmed": True,
        "rejected": {"epoch": 1, "version": 8, "reason": "cut off", "reverted": True},
        "conditions": [
            {
                "type": "PathDown",
                "subject": "lte.centre.wan",
                "reason": "no",
                "severity": "degraded",
                "since": "1970-01-01T00:00:01Z",
            }
        ],
        "paths": [{"path": "lte.centre.wan", "state": "down"}],
        "serving": True,
    }


def test_a_site_without_a_document() -> None:
    assert site_report(msgspec.structs.replace(FACTS, order=None), BOX).applied is None


def test_the_worst_hundred_are_told() -> None:
    mild = [Condition("PathDown", f"path-{n}", "no") for n in range(500)]
    conditions = (*mild, Condition("ZLast", "", "all is lost", Severity.DOWN))
    report = site_report(msgspec.structs.replace(FACTS, conditions=conditions), BOX)
    assert len(report.conditions) == 100 and report.conditions[0].type == "ZLast"


def test_a_report_is_never_longer_than_is_read() -> None:
    words = "\N{SNOWMAN}" * 5000
    conditions = tuple(Condition(f"Type{n}", words[:2000], words) for n in range(300))
    facts = msgspec.structs.replace(FACTS, conditions=conditions, refused=Rejection(1, 8, words))
    report = site_report(facts, BOX)
    assert len(msgspec.json.encode(report)) <= REPORT_MAX_BYTES
    assert report.conditions


def test_times_and_words_that_count_are_no_news() -> None:
    def told(since: float, reason: str, severity: Severity = Severity.DEGRADED, version: int = 7) -> object:
        conditions = (Condition("ControllerUnreachable", "", reason, severity, since),)
        facts = msgspec.structs.replace(FACTS, conditions=conditions, order=(1, version), since=since)
        return news(site_report(facts, BOX))

    assert told(1, "3 times") == told(2, "4 times")
    assert told(1, "no", Severity.DOWN) != told(1, "no")
    assert told(1, "no", version=8) != told(1, "no")
