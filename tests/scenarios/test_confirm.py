"""Does a site go back by itself from a document that cuts it off? Also when it is killed or loses power in between."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cpe_agent.core.confirm import DOUBT_S
from cpe_agent.model.condition import Status
from tests.lab import watch
from tests.lab.lab import Lab
from tests.scenarios.looking import at_rest, data_plane
from tests.scenarios.publishing import cut_off, given_up, publish, served

SITE = "hospital-1"
CONFIRM_S = 8
# From the deadline until the document before is in force again.
REVERT_S = 3.0
# For a hub to come up again, a heartbeat, and the trial.
BACK_S = 90.0

Fields = dict[str, Any]


@pytest.fixture
def good(lab: Lab) -> Iterator[Fields]:
    """What is in force; at the end a newer version of it is, so that nothing that was given up is left standing."""
    document = served(lab, SITE)
    watch.wait_for(lab, SITE, "what is served is confirmed", _confirmed(document["version"]), 20)
    yield document
    version = max(document["version"], served(lab, SITE)["version"]) + 1
    publish(lab, SITE, document | {"version": version}, version)
    watch.wait_for(lab, SITE, "the good document is confirmed", _confirmed(version), 40)


def _confirmed(version: int) -> watch.Predicate:
    return lambda report: report.document_version == version and report.document_confirmed


def _cut_off(good: Fields) -> Fields:
    return cut_off(good, "centre", CONFIRM_S)


def _serve(lab: Lab, document: Fields) -> None:
    publish(lab, SITE, document, document["version"])
    watch.wait_for(lab, SITE, "it is on trial", _on_trial(document["version"]), 5)


def _on_trial(version: int) -> watch.Predicate:
    return lambda report: report.document_version == version and not report.document_confirmed


def _reason(report: Status) -> str:
    return next(c.reason for c in report.conditions if c.type == "DocumentReverted")


def test_that_a_document_that_cuts_off_a_hub_is_given_up_without_a_loss(lab: Lab, good: Fields) -> None:
    before = at_rest(lab, SITE)
    agent = lab.site(SITE).agent.pid
    with lab.flow("hospital-1-host", "centre-server") as flow:
        flow.wait_flowing(5)
        began = time.monotonic()
        _serve(lab, _cut_off(good))
        report = watch.wait_for(lab, SITE, "it is given up", given_up(good["version"]), CONFIRM_S + REVERT_S)
        took_s = time.monotonic() - began
        assert flow.stop().lost == 0, "the tunnels that ran were left running"
    assert took_s >= CONFIRM_S
    assert "centre did not come back" in _reason(report)
    assert lab.site(SITE).agent.pid == agent and lab.site(SITE).agent.running
    after = data_plane(lab, SITE)
    assert (after.table, after.rules, after.routes) == (before.table, before.rules, before.routes)


def test_that_it_is_given_up_although_the_agent_is_killed_meanwhile(lab: Lab, good: Fields) -> None:
    _serve(lab, _cut_off(good))
    lab.site(SITE).agent.kill()
    lab.site(SITE).agent.start()
    watch.wait_for(lab, SITE, "it is tried again", _on_trial(good["version"] + 1), 10)
    report = watch.wait_for(lab, SITE, "it is given up", given_up(good["version"]), CONFIRM_S + REVERT_S + 5)
    assert "centre did not come back" in _reason(report)


def test_that_a_document_under_which_the_agent_ends_twice_is_given_up_for_good(lab: Lab, good: Fields) -> None:
    _serve(lab, _cut_off(good))
    for _ in range(2):
        lab.site(SITE).agent.kill()
        lab.site(SITE).agent.start()
        watch.wait_for(lab, SITE, "it is there", lambda report: report.document_version is not None, 10)
    report = watch.wait_for(lab, SITE, "it is given up", given_up(good["version"]), 2)
    assert "the agent ended 2 times" in _reason(report)


def test_that_it_is_given_up_although_the_power_fails_meanwhile(lab: Lab, good: Fields) -> None:
    """What is on the disk while the document is on trial is all that a box has after a power cut: its charon, and what
    the kernel held, are gone with it."""
    site = lab.site(SITE)
    _serve(lab, _cut_off(good))
    state, saved = site.outside / "state", site.outside / "state.saved"
    # What is being written now is beside its place, and gone from there in a moment.
    shutil.copytree(state, saved, ignore=shutil.ignore_patterns(".*.new"))
    site.kill()
    shutil.rmtree(state)
    saved.rename(state)
    site.run("nft", "delete", "table", "inet", "cpe_agent")
    site.start()
    watch.wait_for(lab, SITE, "it is tried again", _on_trial(good["version"] + 1), 10)
    report = watch.wait_for(lab, SITE, "it is given up", given_up(good["version"]), CONFIRM_S + REVERT_S + 5)
    assert "centre did not come back" in _reason(report)
    watch.wait_all_up(lab, 40, [SITE])


def test_that_a_hub_that_fails_by_chance_meanwhile_is_not_held_against_a_good_document(lab: Lab, good: Fields) -> None:
    version = good["version"] + 1
    policy = good["policy"] | {"confirm_s": CONFIRM_S, "failback_s": good["policy"]["failback_s"] + 1}
    centre = lab.site("centre")
    _serve(lab, good | {"version": version, "policy": policy})
    try:
        centre.vanish()
        report = watch.wait_for(lab, SITE, "it is given up", given_up(good["version"]), CONFIRM_S + REVERT_S)
        assert "centre did not come back" in _reason(report)
        watch.wait_for(lab, SITE, "it was not its fault", _acquitted, DOUBT_S + 5)
    finally:
        centre.reappear()
    watch.wait_for(lab, SITE, "it is tried again and confirmed", _confirmed(version), BACK_S)
    assert {c.type for c in watch.status(lab, SITE).conditions} & {"DocumentReverted", "DocumentRejected"} == set()


def _acquitted(report: Status) -> bool:
    return any("without it that is no better" in c.reason for c in report.conditions if c.type == "DocumentReverted")
