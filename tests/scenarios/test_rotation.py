"""Do keys rotate without an outage, with real agents and charons, and does a restart find its way back at each step?

The policy key, the authority of sites' certificates, and the root. Traffic flows all the time; after each step every
agent is killed and started, so that what it has on the disk is verified anew; and IKE_SAs are replaced under the new
certificates.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from cpe_agent.edge.identity import load_identity, vouched_by
from cpe_agent.model.condition import Status
from cpe_controller import authorities
from tests.lab import watch
from tests.lab.console import control, fleet
from tests.lab.container import wait_until
from tests.lab.lab import CONTROLLER_STATE, Lab
from tests.lab.newcomer import command, make_new, new_token, token_to_ping_s
from tests.lab.pace import patience
from tests.lab.provision import provision
from tests.scenarios.test_rollout import CANARY, HUBS, LAST, SITES, described, versions

HOST, SERVER = "van-1-host", "10.10.0.10"
START_S = 40.0
TAKE_S = 20.0
# A stream that a restarted controller cut is begun anew within its first waits.
BACK_S = 40.0
RENEWED_S = 30.0
DIALLED_S = 40.0

# A root is rotated in some thirty steps, and each agent is started anew four times.
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """All branches have enrolled: who got his files by hand renews none."""
    with Lab(name="rotation") as lab:
        provision(lab, described(3))
        lab.start()
        watch.wait_all_up(lab, START_S)
        for site in SITES:
            make_new(lab, site)
            if site in HUBS:
                _enrol(lab, site)
            else:
                token_to_ping_s(lab, site, new_token(lab, site), f"{site}-host", SERVER)
        watch.wait_all_up(lab, START_S)
        yield lab
        lab.save_logs()


def _enrol(lab: Lab, site: str) -> None:
    done = command(lab, site, "enroll", new_token(lab, site), timeout_s=30)
    assert done.status == 0, done.stderr


def test_the_policy_key(lab: Lab) -> None:
    with flowing(lab):
        before = versions(lab)
        said = control(lab, "rotate", "start").stdout
        assert "sites learn of key" in said
        early = control(lab, "rotate", "finish", check=False)
        assert early.status == 1 and "have not confirmed" in early.stderr
        _confirmed(lab, before)
        restart_all(lab)
        before = versions(lab)
        control(lab, "rotate", "finish")
        _confirmed(lab, before)
        restart_all(lab)
        before = versions(lab)
        control(lab, "apply", "--now", "/run/network.yaml")
        assert versions(lab) == before, "nothing is left to say"
    wait_well(lab)


def test_an_authority_of_sites_and_the_servers_certificate(lab: Lab) -> None:
    with flowing(lab):
        before = versions(lab)
        control(lab, "renew")
        control(lab, "apply", "--now", "/run/network.yaml")
        _confirmed(lab, before)
        lab.controller.restart()
        _heard_again(lab)
        restart_all(lab)
    redial(lab)


def test_the_root(lab: Lab) -> None:
    state = lab.path(CONTROLLER_STATE)
    old = authorities.root_pem(state)
    with flowing(lab):
        before = versions(lab)
        control(lab, "rotate-root", "start")
        _confirmed(lab, before)
        restart_all(lab)
        before = versions(lab)
        assert "restart the controller now" in control(lab, "rotate-root", "finish").stdout
        assert authorities.root_pem(state) != old
        _confirmed(lab, before)
        lab.controller.restart()
        _heard_again(lab)
        # Whoever starts looks at its certificate at once; others within the hour.
        restart_all(lab)
        for site in SITES:
            wait_until(f"{site} has a certificate of the new root", partial(_renewed, lab, site), RENEWED_S)
    redial(lab)
    with flowing(lab):
        before = versions(lab)
        wait_until("the controller has seen them", lambda: _retired(lab), RENEWED_S, 1.0)
        _confirmed(lab, before)
        lab.controller.restart()
        _heard_again(lab)
        restart_all(lab)
    redial(lab)
    assert old not in authorities.trusted(state)
    wait_well(lab)
    # A new box pins the new one, and meets peers that know no other.
    make_new(lab, LAST)
    assert token_to_ping_s(lab, LAST, new_token(lab, LAST, replace=True), HOST, SERVER) < patience(10)


@contextmanager
def flowing(lab: Lab) -> Iterator[None]:
    """Nothing is lost meanwhile, between a branch and each hub."""
    with (
        lab.flow("hospital-1-host", "centre-server") as one,
        lab.flow("van-1-host", "cloud-server", port=7001) as other,
    ):
        for flow in (one, other):
            flow.wait_flowing(5)
        yield
        watch.wait_all_up(lab, START_S)
        lost = [flow.stop().lost for flow in (one, other)]
        assert lost == [0, 0]


def wait_well(lab: Lab) -> None:
    """Until no site has anything to complain of."""
    for site in SITES:
        watch.wait_for(lab, site, "nothing is wrong", lambda report: not report.conditions, BACK_S)


def restart_all(lab: Lab) -> None:
    """kill -9 of every agent: each loads the document that it has stored, if that verifies."""
    before = versions(lab)
    for site in SITES:
        lab.site(site).agent.kill()
        lab.site(site).agent.start()
    for site in SITES:
        watch.wait_for(lab, site, "it has its document still", _has(before[site]), START_S)
    watch.wait_all_up(lab, START_S)
    for site in SITES:
        # Who has just started may be renewing its certificate, which charon is then given.
        wait_until(f"verify finds nothing at {site}", partial(_is_verified, lab, site), START_S, 0.5)


def redial(lab: Lab) -> None:
    """Each path of the branches is replaced, make before break, by an IKE_SA that checks certificates anew. No flow
    is measured meanwhile: in user space a hub may send a packet over the new one before the branch has it."""
    for site in (CANARY, LAST):
        old = _ike_sas(lab, site)
        for number in sorted(old):
            _swanctl(lab, site, "--rekey", "--ike-id", number, "--reauth")
        wait_until(f"{site} has none of the old ones", partial(_none_of, lab, site, old), DIALLED_S, 0.5)
    watch.wait_all_up(lab, START_S)
    time.sleep(patience(1))


def _ike_sas(lab: Lab, site: str) -> set[str]:
    lines = _swanctl(lab, site, "--list-sas").splitlines()
    return {line.partition("#")[2].partition(",")[0] for line in lines if line.startswith("cpe-")}


def _is_verified(lab: Lab, site: str) -> bool:
    return command(lab, site, "verify").status == 0


def _none_of(lab: Lab, site: str, old: set[str]) -> bool:
    return not _ike_sas(lab, site) & old


def _swanctl(lab: Lab, site: str, *words: str) -> str:
    return lab.site(site).run("swanctl", *words, "--uri", f"unix://{lab.site(site).vici_socket}").stdout


def _confirmed(lab: Lab, before: dict[str, int]) -> None:
    """Every site has confirmed a newer document than that, and the controller knows."""
    for site in SITES:
        watch.wait_for(lab, site, "it has confirmed a newer one", _newer(before[site]), TAKE_S)
    wait_until("the controller knows", lambda: {one["state"] for one in fleet(lab).values()} == {"well"}, TAKE_S, 0.5)


def _heard_again(lab: Lab) -> None:
    for site in SITES:
        watch.wait_for(lab, site, "the controller is heard again", _heard, BACK_S)


def _heard(report: Status) -> bool:
    return "ControllerUnreachable" not in _types(report)


def _renewed(lab: Lab, site: str) -> bool:
    state = lab.site(site).outside / "state"
    identity = load_identity(state / "identity/certificate.pem", state / "identity/key.pem")
    return vouched_by(identity, authorities.trusted(lab.path(CONTROLLER_STATE)))


def _retired(lab: Lab) -> bool:
    return control(lab, "rotate-root", "retire", check=False).status == 0


def _newer(version: int) -> watch.Predicate:
    return lambda report: (report.document_version or 0) > version and report.document_confirmed


def _has(version: int) -> watch.Predicate:
    return lambda report: report.document_version == version and report.document_confirmed


def _types(report: Status) -> set[str]:
    return {condition.type for condition in report.conditions}
