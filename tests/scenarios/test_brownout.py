"""Does traffic leave a link that is up but bad, and stay on one that is only untidy?

Impairments are netem's where the kernel has it, as the guest's has; elsewhere the lab's own loss and delay stand in for
two of them. Limits of the class and sizes of the impairments grow with the slowness of the machine, since on a slow one
every round trip is slow.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import yaml

from cpe_agent.model.condition import Status
from tests.lab import watch
from tests.lab.faults import Impairment, RunningUplink, has_netem
from tests.lab.lab import Lab
from tests.lab.pace import patience
from tests.lab.provision import network_yaml, provision
from tests.lab.topology import SMALL

SITE, BUNDLE = "hospital-1", "centre"
LATENCY_MS, JITTER_MS, LOSS_PERCENT = patience(100), patience(40), 5
START_S = 40.0
MOVE_S = 20.0
# Good for five seconds, then the hold-down of what was bad once.
BACK_S = 60.0
STEADY_S = 6.0  # for the windows of all paths to fill
UNTIDY_S = 12.0

BAD = {
    "loss": Impairment(loss_percent=20),
    "delay": Impairment(delay_ms=patience(80)),
    "jitter": Impairment(delay_ms=patience(50), jitter_ms=patience(50)),
    # The flow alone, a hundred small packets a second, is more than twice that.
    "rate": Impairment(rate_kbit=48),
}
UNTIDY = {
    "reordering": Impairment(delay_ms=patience(5), reorder_percent=20),
    "duplication": Impairment(duplicate_percent=20),
    "a little loss": Impairment(loss_percent=0.5),
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    described = yaml.safe_load(network_yaml(SMALL))
    limits = {"latency_ms": round(LATENCY_MS), "jitter_ms": round(JITTER_MS), "loss_percent": LOSS_PERCENT}
    described["classes"] = {"default": limits}
    with Lab(SMALL, name="brownout") as running:
        provision(running, yaml.safe_dump(described, sort_keys=False))
        running.start()
        watch.wait_all_up(running, START_S)
        yield running


@pytest.fixture
def impairment(lab: Lab, what: str) -> Impairment:
    """The one that is asked for, if it can be made here."""
    found = (BAD | UNTIDY)[what]
    loss, delay = Impairment(loss_percent=found.loss_percent), Impairment(delay_ms=found.delay_ms)
    if found not in (loss, delay) and not has_netem(lab.container):
        pytest.skip("this kernel has no netem")
    return found


@pytest.fixture
def wired(lab: Lab, impairment: Impairment) -> Iterator[RunningUplink]:
    """The better uplink, at rest, of an agent that remembers no brownout: after several it holds traffic back."""
    del impairment  # without one there is nothing to wait for
    lab.site(SITE).agent.restart()
    watch.wait_all_up(lab, START_S, [SITE])
    watch.wait_for(lab, SITE, "is at home", watch.carried(BUNDLE, uplink="wired"), BACK_S)
    time.sleep(STEADY_S)
    uplink = lab.site(SITE).uplink("wired")
    yield uplink
    uplink.heal()
    watch.wait_for(lab, SITE, "is at home again", watch.carried(BUNDLE, uplink="wired"), BACK_S)
    assert lab.leaked() == {}, "private packets reached the internet"


@pytest.mark.parametrize("what", BAD)
def test_that_a_bad_link_is_left_while_it_is_bad(
    lab: Lab, wired: RunningUplink, impairment: Impairment, what: str
) -> None:
    with lab.flow("hospital-1-host", "centre-server") as flow:
        flow.wait_flowing(5)
        _impair(lab, wired, impairment)
        try:
            watch.wait_for(lab, SITE, f"leaves it ({what})", watch.carried(BUNDLE, uplink="lte"), MOVE_S)
        finally:
            wired.heal()
            wired.slow(0)
        watch.wait_for(lab, SITE, "is back", watch.carried(BUNDLE, uplink="wired"), BACK_S)


@pytest.mark.parametrize("what", UNTIDY)
def test_that_an_untidy_link_is_kept(lab: Lab, wired: RunningUplink, impairment: Impairment) -> None:
    before = _moves(watch.status(lab, SITE))
    with lab.flow("hospital-1-host", "centre-server") as flow:
        flow.wait_flowing(5)
        _impair(lab, wired, impairment)
        time.sleep(UNTIDY_S)
        report = watch.status(lab, SITE)
    assert _moves(report) == before and watch.carried(BUNDLE, uplink="wired")(report)


def _impair(lab: Lab, uplink: RunningUplink, impairment: Impairment) -> None:
    if has_netem(lab.container):
        uplink.impair(impairment)
    elif impairment.loss_percent:
        uplink.loss(impairment.loss_percent)
    else:
        uplink.slow(impairment.delay_ms)


def _moves(report: Status) -> int:
    return sum(sum(bundle.moves.values()) for bundle in report.bundles)
