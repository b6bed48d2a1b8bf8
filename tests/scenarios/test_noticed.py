"""Is what somebody changes noticed by an event, long before anybody would have looked?

The backstop looks every ten seconds. What is mended within a fifth of that was told by somebody. Changes of the table,
of rules, routes and connections are timed in test_random_faults; here is what takes more than one command.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from cpe_agent.loops.reconcile import BACKSTOP_S
from cpe_agent.model.condition import Status
from tests.lab import watch
from tests.lab.container import wait_until
from tests.lab.lab import Lab
from tests.lab.site import RunningSite
from tests.scenarios import faults, oracle
from tests.scenarios.charon_mutations import charon_of

SITE, UPLINK = "hospital-1", "wired"
NOTICED_S = BACKSTOP_S / 5
ELSEWHERE, GATEWAY = "203.0.113.66/28", "203.0.113.65"
LENIENT = "net.netfilter.nf_conntrack_tcp_be_liberal"


@pytest.fixture
def site(lab: Lab) -> Iterator[RunningSite]:
    yield lab.site(SITE)


def test_that_a_new_charon_is_given_everything(site: RunningSite) -> None:
    before = faults.loaded(site)
    site.charon.kill()
    site.start_charon()
    _mended(site, "it has its connections and keys", lambda: faults.loaded(site) == before)


def test_that_another_address_is_followed(lab: Lab, site: RunningSite) -> None:
    uplink = site.uplink(UPLINK)
    old, gateway = str(uplink.address), str(uplink.gateway)
    try:
        for address, via in ((ELSEWHERE, GATEWAY), (old, gateway)):
            uplink.readdress(address, via)
            _mended(site, f"{address} is used", partial(_is_used, site, address.partition("/")[0], via))
    finally:
        if str(uplink.address) != old:
            uplink.readdress(old, gateway)
    watch.wait_for(lab, SITE, "all is well", watch.all_up, 45)


def test_that_another_name_is_noticed_and_the_old_one_again(lab: Lab, site: RunningSite) -> None:
    before = _routing(site)
    default = site.run("ip", "route", "show", "default", "dev", UPLINK).stdout.split()
    try:
        _rename(site, UPLINK, "renamed0")
        missing = watch.wait_for(lab, SITE, "it is missed", _is_missed, NOTICED_S)
        assert not next(uplink for uplink in missing.uplinks if uplink.name == UPLINK).up
    finally:
        _rename(site, "renamed0", UPLINK)
        # It went with the link, and comes back as from a DHCP client.
        site.run("ip", "route", "add", *default, "dev", UPLINK)
    _mended(site, "all routing is as before", lambda: _routing(site) == before)


def test_that_a_setting_of_which_nobody_tells_is_found_by_the_backstop(lab: Lab) -> None:
    hub = lab.site("centre")
    assert hub.run("sysctl", "-n", LENIENT).stdout.strip() == "1"
    hub.run("sysctl", "-qw", f"{LENIENT}=0")
    wait_until("it is as wanted", lambda: hub.run("sysctl", "-n", LENIENT).stdout.strip() == "1", BACKSTOP_S + 1)
    assert lab.site(SITE).run("sysctl", "-n", LENIENT).stdout.strip() == "0", "not a branch's matter"


def _mended(site: RunningSite, what: str, is_so: Callable[[], bool]) -> None:
    began_s = time.monotonic()
    wait_until(what, is_so, NOTICED_S)
    print(f"{site.name}: {what} after {(time.monotonic() - began_s) * 1000:.0f} ms")


def _is_used(site: RunningSite, address: str, gateway: str) -> bool:
    """By the uplink's rule and table, and by charon's connections."""
    rules = site.run("ip", "rule").stdout.splitlines()
    tables = [line.partition(" lookup ")[2].split()[0] for line in rules if f"from {address} " in line]
    with charon_of(site) as session:
        connections = {name: found for entry in session.list_conns() for name, found in entry.items()}
    mine = [found["local_addrs"] for name, found in connections.items() if name.startswith(f"cpe-{UPLINK}.")]
    return (
        len(tables) == 1
        and f"via {gateway} " in site.run("ip", "route", "show", "table", tables[0], check=False).stdout
        and len(mine) > 0
        and all(addresses == [address.encode()] for addresses in mine)
    )


def _routing(site: RunningSite) -> oracle.Facts:
    """Ours alone: the link's own routes come again when they come."""
    return Counter(
        {
            fact: count
            for fact, count in faults.routing(site).items()
            if '"protocol": "155"' in fact[1] or fact[0] != "route"
        }
    )


def _rename(site: RunningSite, old: str, new: str) -> None:
    for step in (("down",), ("name", new)):
        site.run("ip", "link", "set", old, *step)
    site.run("ip", "link", "set", new, "up")


def _is_missed(report: Status) -> bool:
    return ("UplinkMissing", UPLINK) in {(condition.type, condition.subject) for condition in report.conditions}
