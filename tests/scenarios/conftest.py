"""One lab for all scenarios. Each finds it whole, and must leave it so without anybody's help but a healed link."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import partial

import pytest

from cpe_agent.model.condition import Status
from tests.lab import watch
from tests.lab.lab import Lab
from tests.lab.provision import provision
from tests.lab.topology import SMALL
from tests.scenarios.looking import BEST, wait_at_rest

START_S = 30.0
# A dialler that was kept waiting asks again after at most some 15 s; then a path earns its failback.
RECOVERY_S = 40.0
# A controller that was away is asked again after at most 30 s; a document on trial may have to wait for it.
HEARD_S = 60.0

_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[_failed] = item.stash.get(_failed, False) or report.failed
    return report


@pytest.fixture(scope="session")
def whole_lab() -> Iterator[Lab]:
    with Lab(name="scenarios") as lab:
        provision(lab)
        lab.start()
        # Not only up: a bundle that started on the link that was faster to come up is still to move.
        wait_whole(lab, START_S)
        yield lab


@pytest.fixture
def lab(whole_lab: Lab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    leaked = whole_lab.leaked()
    yield whole_lab
    failed = request.node.stash.get(_failed, False)
    if failed:
        where = whole_lab.save_logs()
        request.node.add_report_section("teardown", "lab", f"the lab's logs are in {where}")
        _mend(whole_lab)
    wait_whole(whole_lab)
    assert whole_lab.leaked() == leaked, "private packets reached the internet"
    forget_failures(whole_lab)


@pytest.fixture(scope="module")
def small_lab() -> Iterator[Lab]:
    """One hub and one branch: for what is about a kernel and not about a network."""
    with Lab(SMALL, name="kernel") as running:
        provision(running)
        running.start()
        watch.wait_all_up(running, START_S)
        yield running


@pytest.fixture
def kernel_lab(small_lab: Lab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    leaked = small_lab.leaked()
    yield small_lab
    if request.node.stash.get(_failed, False):
        request.node.add_report_section("teardown", "lab", f"the lab's logs are in {small_lab.save_logs()}")
        _mend(small_lab)
    watch.wait_all_up(small_lab, RECOVERY_S)
    best = watch.carried("centre", uplink="wired")
    watch.wait_for(small_lab, "hospital-1", "is on its best path", best, RECOVERY_S)
    assert small_lab.leaked() == leaked, "private packets reached the internet"


def wait_whole(lab: Lab, timeout_s: float = RECOVERY_S) -> None:
    """Until every path is up and every bundle is on its best one, and on no other any more; and until no site has a
    document on trial, which another failure would have it give up, or still waits to ask a controller that was away."""
    watch.wait_all_up(lab, timeout_s)
    for site, best in BEST.items():
        watch.wait_for(lab, site, "every bundle is on its best path", partial(_all_on, best), timeout_s)
        wait_at_rest(lab, site)
    for site in lab.sites:
        watch.wait_for(lab, site, "it obeys for good, and hears the controller", _is_settled, HEARD_S)


def _is_settled(report: Status) -> bool:
    return report.document_confirmed and "ControllerUnreachable" not in {one.type for one in report.conditions}


def forget_failures(lab: Lab) -> None:
    """For a lab that is whole: an agent that has seen an outage is started anew. It would remember, and have the path
    that failed wait five times as long after its next failure (core.damping); a test waits for that which asks about
    something else."""
    reports = {name: watch.status(lab, name) for name in BEST}
    disturbed = [name for name, report in reports.items() if report.outages is not None and any(report.outages.counts)]
    for name in disturbed:
        # What ends twice under a document that is on trial has it given up.
        watch.wait_for(lab, name, "nothing is on trial", lambda report: report.document_confirmed, RECOVERY_S)
        lab.site(name).agent.restart()
    if disturbed:
        wait_whole(lab)


def _all_on(best: dict[str, str], report: Status) -> bool:
    return watch.all_up(report) and {bundle.name: bundle.active_path for bundle in report.bundles} == best


def _mend(lab: Lab) -> None:
    """After a test that failed in the middle: the next one is not to fail for it."""
    for site in lab.sites.values():
        for uplink in site.uplinks.values():
            uplink.heal()
            uplink.restore()
        if not site.charon.running:
            site.start_charon()
        site.agent.start()
    lab.controller.start()
