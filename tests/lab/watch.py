"""What do the agents of a running lab say of themselves, and when is it what somebody waits for?

Asks the agent's control socket from outside the lab, which costs a few milliseconds; `cpe-agent status` would have to
start Python first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import msgspec

from cpe_agent.edge.control import ask
from cpe_agent.model.condition import Status
from cpe_agent.ports import EdgeError
from tests.lab.container import LabError
from tests.lab.lab import Lab
from tests.lab.pace import patience

Predicate = Callable[[Status], bool]

_ASK_S = 3.0
# An answer takes the agent some milliseconds: on a slow machine, a good part of its processor.
_INTERVAL_S = patience(0.05)


def status(lab: Lab, site: str) -> Status:
    """The site's own report. Raises `EdgeError` if its agent does not answer."""
    return msgspec.json.decode(ask(lab.path(f"/run/{site}/run/control.sock"), "status", patience(_ASK_S)), type=Status)


def wait_for(lab: Lab, site: str, what: str, predicate: Predicate, timeout_s: float) -> Status:
    """The first report of which `predicate` holds. LabError that names `what` and the last report's troubles if none
    comes in time. An agent that does not answer is asked again."""
    deadline = time.monotonic() + patience(timeout_s)
    while True:
        # Before it is asked: on a machine that stands still the answer may be older than the time's end.
        over = time.monotonic() > deadline
        try:
            report = status(lab, site)
            if predicate(report):
                return report
            last = _troubles(report)
        except EdgeError as error:
            last = error.cause
        if over:
            raise LabError(f"{site}: {what}: not within {timeout_s:g} s; last: {last}")
        time.sleep(_INTERVAL_S)


def all_up(report: Status) -> bool:
    """A branch: every path is up and ready, every bundle is really carried. A hub: it has its document."""
    if report.document_version is None or not all(target.in_sync for target in report.targets):
        return False
    if report.role == "hub":
        return True
    return (
        bool(report.bundles)
        and all(bundle.installed and bundle.active_path for bundle in report.bundles)
        and all(path.state == "up" and path.ready for path in report.paths)
    )


def confirmed(report: Status) -> bool:
    """It has a document that is no longer on trial."""
    pending = any(condition.type == "DocumentPending" for condition in report.conditions)
    return report.document_version is not None and not pending


def wait_all_up(
    lab: Lab, timeout_s: float, sites: Iterable[str] | None = None, heard: Callable[[Status], None] | None = None
) -> None:
    """Returns once `all_up` holds of every site (or of these). `heard` is given every report until then."""
    waiting = dict.fromkeys(lab.sites if sites is None else sites, "it has not answered yet")
    deadline = time.monotonic() + patience(timeout_s)
    while True:
        over = time.monotonic() > deadline
        for site in list(waiting):
            try:
                report = status(lab, site)
            except EdgeError as error:
                waiting[site] = error.cause
                continue
            if heard is not None:
                heard(report)
            waiting[site] = _troubles(report)
            if all_up(report):
                del waiting[site]
        if not waiting:
            return
        if over:
            last = "; ".join(f"{site}: {words}" for site, words in waiting.items())
            raise LabError(f"not everything is up within {timeout_s:g} s; last: {last}")
        time.sleep(_INTERVAL_S)


def active_path(report: Status, bundle: str) -> str | None:
    """The path that carries the bundle now; None while its CHILD_SA is not there."""
    for found in report.bundles:
        if found.name == bundle:
            return found.active_path if found.installed else None
    return None


def carried(bundle: str, *, uplink: str | None = None, peer: str | None = None) -> Predicate:
    """`bundle` is carried over this uplink, or to this peer, or both."""

    def predicate(report: Status) -> bool:
        active = active_path(report, bundle)
        if active is None:
            return False
        # A path that has just gone may carry it for one report more.
        paths = (path for path in report.paths if path.path == active)
        return any(uplink in (None, path.uplink) and peer in (None, path.peer) for path in paths)

    return predicate


def has_document(version: int) -> Predicate:
    """The site obeys this version, and kernel and charon hold what it asks for."""
    return lambda report: (report.document_version or 0) >= version and all_up(report)


def _troubles(report: Status) -> str:
    words = [f"{path.path} is {path.state}" for path in report.paths if path.state != "up" or not path.ready]
    words += [f"{bundle.name} on {bundle.active_path}" for bundle in report.bundles]
    words += [f"{condition.type} {condition.subject}: {condition.reason}" for condition in report.conditions]
    return "; ".join(words) or "no trouble known"
