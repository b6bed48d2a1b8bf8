"""Does an apply spare the network, with real agents? Waves, a halt, what an operator may say meanwhile; sites shut out.

A lab of its own, in which every document is confirmed or given up within CONFIRM_S. The tests build on one another's
network only in that each ends with one document in force everywhere.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest
import yaml

from cpe_agent.model.condition import Status
from cpe_agent.ports import EdgeError
from tests.lab import watch
from tests.lab.console import apply_in_waves, control, fleet, rollout
from tests.lab.container import wait_until
from tests.lab.lab import Lab
from tests.lab.newcomer import make_new, new_token, token_to_ping_s
from tests.lab.pace import patience
from tests.lab.provision import apply, network_yaml, provision
from tests.lab.topology import NETWORK
from tests.scenarios.publishing import NOBODY, given_up

CANARY, LAST = "hospital-1", "van-1"
HUBS = ("centre", "cloud")
SITES = (CANARY, *HUBS, LAST)
CONFIRM_S = 8
START_S = 40.0
# A hub's wave ends with a report of its branches, for which they are asked.
WAVE_S = 15.0
# To confirm a good document, and for the report of it.
TAKE_S = 15.0
REVERT_S = CONFIRM_S + 5.0
MOVE_S = 15.0
# From `revoke` until the hubs' documents have landed, and their tunnels are gone.
CUT_OFF_S = 5.0
LONGEST_GAP_MS = 200.0


@pytest.fixture(scope="module")
def rolling() -> Iterator[Lab]:
    with Lab(name="rollout") as lab:
        provision(lab, described(3))
        lab.start()
        watch.wait_all_up(lab, START_S)
        wait_until("all have reported", lambda: _states(lab) == dict.fromkeys(SITES, "well"), START_S, 0.5)
        yield lab
        lab.save_logs()


@pytest.fixture
def lab(rolling: Lab) -> Iterator[Lab]:
    yield rolling
    watch.wait_all_up(rolling, START_S)
    assert rolling.leaked() == {}, "private packets reached the internet"


def described(failback_s: int, **changes: object) -> str:
    """The lab's network.yaml; `failback_s` is in every site's document."""
    network: dict[str, Any] = yaml.safe_load(network_yaml(NETWORK))
    return yaml.safe_dump({**network, "policy": {"failback_s": failback_s, "confirm_s": CONFIRM_S}, **changes})


def test_an_apply_goes_from_canary_to_hub_to_hub_to_the_rest_without_a_loss(lab: Lab) -> None:
    before = versions(lab)
    with (
        lab.flow("hospital-1-host", "centre-server") as one,
        lab.flow("van-1-host", "cloud-server", port=7001) as other,
    ):
        for flow in (one, other):
            flow.wait_flowing(5)
        began = time.monotonic()
        said = apply_in_waves(lab, described(4))
        assert f"canary ({CANARY}) -> hub (centre) -> hub (cloud) -> rest ({LAST})" in said
        story = followed(lab, before, SITES, len(SITES) * WAVE_S)
        assert [site for what, site in story if what == "took"] == [CANARY, *HUBS, LAST]
        # Nobody takes it before those of the wave before have confirmed.
        assert [f"{what} {site}" for what, site in story] == [
            f"{what} {site}" for site in (CANARY, *HUBS, LAST) for what in ("took", "confirmed")
        ]
        wait_until("the rollout is over", lambda: rollout(lab)["phase"] == "done", TAKE_S, 0.5)
        print(f"a rollout of {len(SITES)} sites took {time.monotonic() - began:.1f} s")
        assert one.stop().lost == 0 and other.stop().lost == 0
    wait_until("all are well", lambda: _states(lab) == dict.fromkeys(SITES, "well"), TAKE_S, 0.5)
    assert "the audit log is whole" in control(lab, "audit", "--check").stdout
    deeds = control(lab, "audit").stdout
    assert "waves: canary hospital-1; hub centre; hub cloud; rest van-1" in deeds


def test_the_first_bad_report_halts_it_and_a_rollback_takes_it_back(lab: Lab) -> None:
    """Of a document that its canary gives up by itself, no hub hears."""
    before = versions(lab)
    hubs = yaml.safe_load(network_yaml(NETWORK))["hubs"]
    hubs["centre"]["endpoints"]["wan"]["address"] = NOBODY
    with lab.flow("hospital-1-host", "centre-server") as flow:
        flow.wait_flowing(5)
        apply_in_waves(lab, described(4, hubs=hubs))
        watch.wait_for(lab, CANARY, "it tries it", _has(before[CANARY] + 1), TAKE_S)
        watch.wait_for(lab, CANARY, "it goes back", given_up(before[CANARY]), REVERT_S)
        wait_until("the rollout halts", lambda: rollout(lab)["phase"] == "halted", 5, 0.2)
        assert flow.stop().lost == 0
    state = rollout(lab)
    assert f"{CANARY} went back from version {before[CANARY] + 1}: centre did not come back" in state["reason"]
    assert _states(lab)[CANARY] == "rejected"
    shown = control(lab, "status", "--state-is", "rejected").stdout
    rows = [line.split()[0] for line in shown.splitlines()]
    assert CANARY in rows and LAST not in rows and "rollout: halted" in shown
    time.sleep(patience(3))
    assert versions(lab) == before, "nobody else heard of it"
    # Without waiting for waves: the canary alone has another content than it should have.
    assert "back to network number" in control(lab, "rollback", "--now").stdout
    watch.wait_for(lab, CANARY, "it has a newer version", _confirmed(before[CANARY] + 2), TAKE_S)
    assert {site: versions(lab)[site] for site in (*HUBS, LAST)} == {site: before[site] for site in (*HUBS, LAST)}
    wait_until("all are well", lambda: _states(lab) == dict.fromkeys(SITES, "well"), TAKE_S, 0.5)


def test_an_operator_pauses_it_goes_on_and_ends_it(lab: Lab) -> None:
    before = versions(lab)
    apply_in_waves(lab, described(5))
    watch.wait_for(lab, CANARY, "the first wave is out", _has(before[CANARY] + 1), TAKE_S)
    with unconfirmed(lab, CANARY):
        assert "rollout: paused" in control(lab, "rollout", "pause").stdout
    watch.wait_for(lab, CANARY, "it confirms all the same", _confirmed(before[CANARY] + 1), TAKE_S)
    time.sleep(patience(5))
    assert versions(lab) == {**before, CANARY: before[CANARY] + 1}, "nothing more goes out"
    control(lab, "rollout", "resume")
    watch.wait_for(lab, "centre", "the next wave goes out", _has(before["centre"] + 1), TAKE_S)
    with unconfirmed(lab, "centre"):
        assert "rollout: aborted" in control(lab, "rollout", "abort").stdout
    time.sleep(patience(5))
    now = versions(lab)
    assert (now["cloud"], now[LAST]) == (before["cloud"], before[LAST]), "sites keep what they have"
    refused = control(lab, "rollout", "resume", check=False)
    assert refused.status == 1 and "no rollout that is under way" in refused.stderr
    apply(lab, described(5))  # at once: the two that have it are left alone
    for site in ("cloud", LAST):
        watch.wait_for(lab, site, "the rest has it too", _confirmed(before[site] + 1), TAKE_S)
    assert versions(lab)[CANARY] == before[CANARY] + 1


def test_a_hub_is_emptied_and_filled_again_without_a_loss(lab: Lab) -> None:
    with (
        lab.flow("hospital-1-host", "cloud-server", rate=200, port=7001) as steady,
        lab.flow("hospital-1-host", "centre-shared", twin="cloud-shared", rate=200) as flow,
    ):
        steady.wait_flowing(5)
        flow.wait_flowing(5)
        assert "centre: its branches are to leave it" in control(lab, "drain", "centre").stdout
        for site in (CANARY, LAST):
            watch.wait_for(lab, site, "it left", watch.carried("centre+cloud", peer="cloud"), MOVE_S)
        wait_until("the operator sees it", lambda: fleet(lab)["centre"]["drained"], TAKE_S, 0.5)
        last = control(lab, "drain", "cloud", check=False)
        assert last.status == 1 and "the last hub that serves" in last.stderr
        control(lab, "undrain", "centre")
        for site in (CANARY, LAST):
            watch.wait_for(lab, site, "it is back", watch.carried("centre+cloud", peer="centre"), MOVE_S)
        time.sleep(patience(1))
    assert flow.result.up.lost == 0, flow.result.up
    # The server that was left goes on sending, to nobody: what counts is that the host hears one of the two. A machine
    # that stands still does so for the flow that nobody moves as well.
    stood_still_ms = steady.result.down.longest_gap_ms
    assert flow.result.down.longest_gap_ms < patience(LONGEST_GAP_MS) + stood_still_ms, (flow.result, steady.result)


def test_a_stolen_van_is_cut_off_everywhere_and_a_new_box_gets_its_place(lab: Lab) -> None:
    took = {hub: versions(lab)[hub] for hub in HUBS}
    with lab.flow("hospital-1-host", "centre-server") as flow:
        flow.wait_flowing(5)
        assert not any(_no_tunnels_of(lab, hub, LAST) for hub in HUBS)
        assert lab.fetch("van-1-host", "http://10.10.0.10/") is not None
        began = time.monotonic()
        assert f"{LAST}: revoked" in control(lab, "revoke", LAST).stdout
        for hub in HUBS:
            wait_until(f"{hub} has ended its tunnels", partial(_no_tunnels_of, lab, hub, LAST), CUT_OFF_S)
        print(f"cut off {time.monotonic() - began:.1f} s after the command")
        assert lab.fetch("van-1-host", "http://10.10.0.10/", timeout_s=1) is None
        for hub in HUBS:
            watch.wait_for(lab, hub, "it confirms that", _confirmed(took[hub] + 1), TAKE_S)
        # Its own agent goes on asking, with a certificate that is good for months: of whoever lets nobody in.
        refused = watch.wait_for(lab, LAST, "the controller refuses it", _refused, TAKE_S)
        assert "revoked" in _reason(refused, "ControllerUnreachable")
        time.sleep(patience(5))
        assert all(_no_tunnels_of(lab, hub, LAST) for hub in HUBS), "dialling again is in vain"
        assert _states(lab)[LAST] == "revoked"
        assert flow.stop().lost == 0, "nobody else felt it"
    make_new(lab, LAST)
    token = new_token(lab, LAST, replace=True)
    assert token_to_ping_s(lab, LAST, token, "van-1-host", "10.10.0.10") < patience(10)
    watch.wait_all_up(lab, START_S, [LAST])
    assert "g2.van-1.lab.cpe" in lab.site("centre").run("swanctl", "--list-sas", "--uri", _uri(lab, "centre")).stdout
    wait_until("all are well", lambda: _states(lab) == dict.fromkeys(SITES, "well"), TAKE_S, 0.5)


def versions(lab: Lab) -> dict[str, int]:
    found = {site: watch.status(lab, site).document_version for site in SITES}
    return {site: version for site, version in found.items() if version is not None}


@contextmanager
def unconfirmed(lab: Lab, site: str) -> Iterator[None]:
    """The site's agent stands still meanwhile, so that it confirms nothing while an operator types: it takes three
    seconds for that, and a command on a busy machine may take as long."""
    agent = lab.site(site).agent
    lab.container.signal(agent.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        lab.container.signal(agent.pid, signal.SIGCONT)


def followed(lab: Lab, before: dict[str, int], sites: Sequence[str], limit_s: float) -> list[tuple[str, str]]:
    """("took" or "confirmed", site) in the order in which it was seen, until all have confirmed. `sites` are in the
    order of their waves: who is asked after another one says no less than what the other followed upon, so each look
    asks the last one first."""
    story: list[tuple[str, str]] = []
    deadline = time.monotonic() + patience(limit_s)
    while len(story) < 2 * len(sites):
        assert time.monotonic() < deadline, story
        look: list[tuple[str, str]] = []
        with suppress(EdgeError):
            for site in reversed(sites):
                report = watch.status(lab, site)
                if report.document_version == before[site] + 1:
                    look = [("took", site), *([("confirmed", site)] if report.document_confirmed else []), *look]
            story += [event for event in look if event not in story]
        time.sleep(0.05)
    return story


def _has(version: int) -> watch.Predicate:
    return lambda report: report.document_version == version


def _confirmed(version: int) -> watch.Predicate:
    return lambda report: report.document_version == version and report.document_confirmed


def _refused(report: Status) -> bool:
    return "revoked" in _reason(report, "ControllerUnreachable")


def _reason(report: Status, kind: str) -> str:
    return next((condition.reason for condition in report.conditions if condition.type == kind), "")


def _states(lab: Lab) -> dict[str, str]:
    return {site: one["state"] for site, one in fleet(lab).items()}


def _no_tunnels_of(lab: Lab, hub: str, branch: str) -> bool:
    """Has the hub's charon no IKE_SA with this branch?"""
    listed = lab.site(hub).run("swanctl", "--list-sas", "--uri", _uri(lab, hub)).stdout
    return f"{branch}.lab.cpe" not in listed


def _uri(lab: Lab, site: str) -> str:
    return f"unix://{lab.site(site).vici_socket}"
