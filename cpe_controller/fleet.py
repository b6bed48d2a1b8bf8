"""How does each site fare, as far as the controller knows?

Pure. In: what is published, what operators said, what sites said, and the time. Out: a `SiteStatus` for each, whose
`state` is the first of these that holds:

    revoked    it is shut out
    never      nothing was ever heard of it
    silent     nothing was heard of it for SILENT_S
    rejected   it refuses, or took back, the newest document that it is offered
    behind     it has an older document than it is offered, or has not confirmed it yet
    down, degraded   it says so itself
    well       none of these
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum

import msgspec

from cpe_controller.reports import Contact, Path, Said
from cpe_controller.standing import Standing

# Three reports.
SILENT_S = 180.0
# Agents renew from half of 200 days: one that has not by now has a problem.
NEAR_EXPIRY_S = 50 * 86400.0


class State(Enum):
    REVOKED = "revoked"
    NEVER = "never"
    SILENT = "silent"
    REJECTED = "rejected"
    BEHIND = "behind"
    DOWN = "down"
    DEGRADED = "degraded"
    WELL = "well"


class SiteStatus(msgspec.Struct, frozen=True):
    """`offered`, `applied`: "EPOCH.VERSION" or None. Times are wall time in seconds."""

    site: str
    state: State
    offered: str | None
    applied: str | None
    confirmed: bool
    rejected: str
    last_contact: float | None
    certificate_until: float | None
    agent_version: str
    instance: str
    generation: int
    drained: bool
    serving: bool | None
    conditions: tuple[Said, ...]
    paths: tuple[Path, ...]

    def paths_up(self) -> int:
        return sum(path.state == "up" for path in self.paths)

    def certificate_ends(self, now: float) -> bool:
        return self.certificate_until is not None and self.certificate_until - now < NEAR_EXPIRY_S


Order = tuple[int, int]


def fleet(
    offered: Mapping[str, Order], standings: Mapping[str, Standing], contacts: Mapping[str, Contact], now: float
) -> list[SiteStatus]:
    """Every site that has a document, is revoked, or has called, by name. One that left the network and is silent is
    forgotten."""
    names = set(offered) | {site for site, stands in standings.items() if stands.revoked}
    names |= {site for site, contact in contacts.items() if now - contact.at < SILENT_S}
    return [
        _status(site, offered.get(site), standings.get(site, Standing()), contacts.get(site), now)
        for site in sorted(names)
    ]


def counts(statuses: Iterable[SiteStatus]) -> dict[State, int]:
    found = dict.fromkeys(State, 0)
    for status in statuses:
        found[status.state] += 1
    return found


def _status(site: str, offered: Order | None, stands: Standing, contact: Contact | None, now: float) -> SiteStatus:
    report = contact.report if contact else None
    applied = report.applied.order if report and report.applied else None
    refused = report.rejected if report else None
    rejected = ""
    if refused is not None and refused.order == offered:
        rejected = f"{'reverted' if refused.reverted else 'rejected'} {_told(refused.order)}: {refused.reason}"
    return SiteStatus(
        site=site,
        state=_state(stands, contact, offered, bool(rejected), now),
        offered=_told(offered),
        applied=_told(applied),
        confirmed=bool(report and report.confirmed),
        rejected=rejected,
        last_contact=contact.at if contact else None,
        certificate_until=contact.certificate_until if contact else None,
        agent_version=report.agent_version if report else "",
        instance=report.instance if report else "",
        generation=stands.generation,
        drained=stands.drained,
        serving=report.serving if report else None,
        conditions=report.conditions if report else (),
        paths=report.paths if report else (),
    )


def _state(stands: Standing, contact: Contact | None, offered: Order | None, rejected: bool, now: float) -> State:
    if stands.revoked:
        return State.REVOKED
    if contact is None:
        return State.NEVER
    if now - contact.at >= SILENT_S:
        return State.SILENT
    report = contact.report
    if report is None:
        return State.BEHIND
    if rejected:
        return State.REJECTED
    if offered is not None and (report.applied is None or report.applied.order != offered or not report.confirmed):
        return State.BEHIND
    severities = {condition.severity for condition in report.conditions}
    return State.DOWN if "down" in severities else State.DEGRADED if "degraded" in severities else State.WELL


def _told(order: Order | None) -> str | None:
    return None if order is None else f"{order[0]}.{order[1]}"
