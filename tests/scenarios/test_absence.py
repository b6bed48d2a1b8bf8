"""What is lost when an agent is restarted, and is what happened meanwhile made good?

A lab of its own: what a dialler has left over at a hub, in some test before, would go while SAs are compared.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import yaml

from tests.lab import watch
from tests.lab.container import wait_until
from tests.lab.lab import Lab
from tests.lab.provision import apply, network_yaml, provision
from tests.scenarios.conftest import START_S, forget_failures, wait_whole
from tests.scenarios.looking import CENTRE_PAGE, CLOUD_PAGE, at_rest, data_plane
from tests.scenarios.publishing import served


@pytest.fixture(scope="module")
def own_lab() -> Iterator[Lab]:
    with Lab(name="absence") as running:
        provision(running)
        running.start()
        wait_whole(running, START_S)
        yield running
        running.save_logs()


@pytest.fixture
def lab(own_lab: Lab) -> Iterator[Lab]:
    yield own_lab
    wait_whole(own_lab)
    assert own_lab.leaked() == {}, "private packets reached the internet"
    forget_failures(own_lab)


@pytest.mark.parametrize("site", ["hospital-1", "centre"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_that_a_restart_of_the_agent_loses_nothing(lab: Lab, site: str, number: signal.Signals) -> None:
    before = at_rest(lab, site)
    with lab.flow("hospital-1-host", "centre-server") as flow:
        flow.wait_flowing(5)
        started = watch.status(lab, site).started
        lab.site(site).agent.restart(number)
        watch.wait_for(lab, site, "the new agent has taken over", lambda r: r.started > started and watch.all_up(r), 20)
        result = flow.stop()
    assert result.lost == 0, f"up lost {result.up.lost_ranges}, down lost {result.down.lost_ranges}"
    assert data_plane(lab, site) == before


def test_a_blackhole_while_the_agent_is_away(lab: Lab) -> None:
    uplink = lab.site("hospital-1").uplink("wired")
    agent = lab.site("hospital-1").agent
    agent.stop()
    try:
        uplink.blackhole()
        assert lab.fetch("hospital-1-host", CENTRE_PAGE, 1) is None, "nobody is there to fail over"
        agent.start()
        watch.wait_for(lab, "hospital-1", "the bundle is carried over lte", watch.carried("centre", uplink="lte"), 20)
        assert lab.fetch("hospital-1-host", CENTRE_PAGE) is not None
    finally:
        uplink.heal()
        agent.start()


@pytest.fixture
def network(lab: Lab) -> Iterator[str]:
    """The network's description, which is in force again at the end."""
    text = network_yaml(lab.network)
    yield text
    apply(lab, text)
    for site in lab.sites:
        version = served(lab, site)["version"]
        watch.wait_for(lab, site, "the network is as it was", watch.has_document(version), 20)


def test_a_change_of_the_document_while_the_agent_is_away(lab: Lab, network: str) -> None:
    described = yaml.safe_load(network)
    removed = "service-10-20-0-0"
    described["permits"] = [permit for permit in described["permits"] if permit["to"] != removed]
    agent = lab.site("hospital-1").agent
    with lab.flow("hospital-1-host", "centre-server") as flow:
        flow.wait_flowing(5)
        agent.stop()
        apply(lab, yaml.safe_dump(described, sort_keys=False))
        version = served(lab, "hospital-1")["version"]
        agent.start()
        watch.wait_for(lab, "hospital-1", "it obeys the new document", watch.has_document(version), 20)
        wait_until("a removed pair is closed", lambda: lab.fetch("hospital-1-host", CLOUD_PAGE, 0.5) is None, 5)

        agent.stop()
        apply(lab, network)
        version = served(lab, "hospital-1")["version"]
        agent.start()
        watch.wait_for(lab, "hospital-1", "it obeys the next document", watch.has_document(version), 20)
        wait_until("an added pair is open", lambda: lab.fetch("hospital-1-host", CLOUD_PAGE, 0.5), 10)
        result = flow.stop()
    assert result.lost == 0, f"what was listed all the time lost {result.up.lost_ranges} {result.down.lost_ranges}"
