"""Does what a crash leaves in the kernel, in the middle of a move, come right without anybody's help?

Kernel backend only: there a daemon that is killed leaves SAs, policies and marks behind, and its successor knows of
none of them. What still serves is adopted, what nobody knows goes, and `verify` finds nothing in the end.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from cpe_agent.edge.ipsec import resolve
from cpe_agent.model.dataplane import Backend
from tests.lab import watch
from tests.lab.container import wait_until
from tests.lab.lab import Lab
from tests.lab.pace import BACKEND
from tests.lab.site import RunningSite
from tests.scenarios.looking import CENTRE_PAGE, is_pruned, verified

pytestmark = pytest.mark.skipif(resolve(BACKEND) is not Backend.KERNEL, reason="this kernel has no ESP")

MOVE_S = 15.0
AGAIN_S = 40.0
PRUNED_S = 45.0  # what is left over has half a minute


@pytest.fixture
def lab(kernel_lab: Lab) -> Lab:
    return kernel_lab


def _kill_agent(site: RunningSite) -> None:
    site.agent.kill()
    site.agent.start()


def _kill_charon(site: RunningSite) -> None:
    site.charon.kill()
    site.start_charon()


def _kill_both(site: RunningSite) -> None:
    site.kill()
    site.start()


@pytest.mark.parametrize("crash", [_kill_agent, _kill_charon, _kill_both], ids=["agent", "charon", "both"])
@pytest.mark.parametrize("name", ["hospital-1", "centre"])
def test_a_crash_in_the_middle_of_a_move(lab: Lab, name: str, crash: Callable[[RunningSite], None]) -> None:
    uplink = lab.site("hospital-1").uplink("wired")
    uplink.blackhole()
    try:
        watch.wait_for(lab, "hospital-1", "it is carried by lte", watch.carried("centre", uplink="lte"), MOVE_S)
    finally:
        moved = _moves(lab)
        uplink.heal()
    wait_until("it moves back", lambda: _moves(lab) > moved, MOVE_S, interval_s=0.002)
    crash(lab.site(name))
    wait_until("pages come", lambda: lab.fetch("hospital-1-host", CENTRE_PAGE, 1), AGAIN_S)
    watch.wait_all_up(lab, AGAIN_S)
    for site in lab.sites.values():
        wait_until(f"nothing is left over at {site.name}", partial(is_pruned, site), PRUNED_S, interval_s=0.5)
    wait_until("verify finds nothing anywhere", partial(_are_in_sync, lab), AGAIN_S, interval_s=0.5)


def test_that_a_failover_does_not_stall_on_what_a_killed_charon_has_lost(lab: Lab) -> None:
    """The hub's kernel still answers probes for IKE_SAs of which the hub's new charon knows nothing."""
    centre, uplink = lab.site("centre"), lab.site("hospital-1").uplink("wired")
    centre.charon.kill()
    centre.start_charon()
    uplink.blackhole()
    try:
        watch.wait_for(lab, "hospital-1", "it is carried by lte", watch.carried("centre", uplink="lte"), MOVE_S)
        wait_until("pages come", lambda: lab.fetch("hospital-1-host", CENTRE_PAGE, 1), MOVE_S)
    finally:
        uplink.heal()
    wait_until("what was left over is gone", partial(is_pruned, centre), PRUNED_S, interval_s=0.5)


def _are_in_sync(lab: Lab) -> bool:
    with ThreadPoolExecutor() as threads:
        return all(status == 0 for status, _ in threads.map(verified, lab.sites.values()))


def _moves(lab: Lab) -> int:
    return lab.site("hospital-1").agent.log.read_text().count('"event": "bundle_moved"')
