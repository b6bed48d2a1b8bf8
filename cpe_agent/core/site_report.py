"""What is worth telling the controller?

Pure. In: what holds on this site, and who this box is. Out: a `SiteReport` that is never longer than
the controller reads. What is worth a report before its time is a report that differs in more than its times.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

import msgspec

from cpe_agent.model.condition import Condition, Severity
from cpe_agent.model.confirmation import Rejection
from cpe_agent.model.document import SCHEMA
from cpe_agent.model.site_report import Applied, Box, Refused, ReportedCondition, ReportedPath, SiteReport

# The worst first: what does not fit says little that the first hundred do not.
CONDITIONS_MAX = 100
PATHS_MAX = 200
REASON_MAX_CHARS = 300
# The controller reads 64 KiB.
REPORT_MAX_BYTES = 60 * 1024

_WORST_FIRST = (Severity.DOWN, Severity.DEGRADED, Severity.OK)
NEVER = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class Facts(msgspec.Struct, frozen=True):
    """What holds now. `since`: the document was put in force (wall time). `refused`: what is not in force although it
    was offered. `paths`: path -> state."""

    agent_version: str
    order: tuple[int, int] | None
    since: float
    confirmed: bool
    refused: Rejection | None
    conditions: tuple[Condition, ...]
    paths: Mapping[str, str]
    serving: bool


def site_report(facts: Facts, box: Box) -> SiteReport:
    """The report as of now."""
    ranked = sorted(facts.conditions, key=lambda c: (_WORST_FIRST.index(c.severity), c.type, c.subject))
    conditions = tuple(
        ReportedCondition(c.type, c.subject, c.reason[:REASON_MAX_CHARS], c.severity.value, _moment(c.since))
        for c in ranked[:CONDITIONS_MAX]
    )
    report = SiteReport(
        instance=box.instance,
        boot_id=box.boot_id,
        agent_version=facts.agent_version,
        schemas=(SCHEMA,),
        applied=Applied(*facts.order, _moment(facts.since)) if facts.order is not None else None,
        confirmed=facts.confirmed,
        rejected=_refused(facts.refused),
        conditions=conditions,
        paths=tuple(ReportedPath(path, state) for path, state in sorted(facts.paths.items())[:PATHS_MAX]),
        serving=facts.serving,
    )
    while len(msgspec.json.encode(report)) > REPORT_MAX_BYTES:
        kept = report.conditions[: len(report.conditions) * 3 // 4]
        report = msgspec.structs.replace(report, conditions=kept, paths=report.paths[: len(report.paths) * 3 // 4])
    return report


def news(report: SiteReport) -> object:
    """What two reports must differ in for the second to be news: not in times, nor in words that count something."""
    conditions = frozenset((c.type, c.subject, c.severity) for c in report.conditions)
    applied = (report.applied.epoch, report.applied.version) if report.applied else None
    return msgspec.structs.replace(report, applied=None, conditions=()), applied, conditions


def _refused(refused: Rejection | None) -> Refused | None:
    if refused is None:
        return None
    return Refused(refused.epoch, refused.version, refused.reason[:REASON_MAX_CHARS], refused.reverted)


def _moment(wall_s: float) -> dt.datetime:
    # Whole seconds; a clock that nobody has set yet is no reason to fail.
    return NEVER + dt.timedelta(seconds=max(0, int(wall_s)))
