"""Does the metric say at any moment what `cpe-agent verify` says, of a living site?"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial

import pytest

from tests.lab.container import wait_until
from tests.lab.lab import Lab
from tests.lab.site import RunningSite
from tests.scenarios.charon_mutations import charon_of
from tests.scenarios.conftest import wait_whole

SITE = "hospital-1"
SEEN_S, MENDED_S = 5.0, 2.5
AWAY_S = 40.0

Act = Callable[[RunningSite], object]


def _ip(command: str) -> Act:
    return lambda site: site.run("ip", *command.split())


# What nobody repairs until it ends: it is somebody else's, or the provider's.
LASTING: dict[str, tuple[Act, Act]] = {
    "a rule before ours": (_ip("rule add priority 50 table main"), _ip("rule del priority 50")),
    "a route in our table": (
        _ip("route add 10.99.0.0/24 dev lan0 table 15500"),
        _ip("route del 10.99.0.0/24 table 15500"),
    ),
    "an uplink is gone": (lambda site: site.uplink("lte").cut(), lambda site: site.uplink("lte").restore()),
    "charon is away": (lambda site: site.charon.kill(), lambda site: site.start_charon()),
}


@pytest.mark.parametrize("name", LASTING)
def test_what_lasts_shows_until_it_ends(lab: Lab, name: str) -> None:
    site = lab.site(SITE)
    begin, end = LASTING[name]
    # A lab that is whole may still find out what its paths carry, or by which uplink its own traffic is to leave.
    wait_until("both find nothing", lambda: _in_sync(site) and _verified(site), AWAY_S)
    begin(site)
    try:
        wait_until("it shows", lambda: not _in_sync(site), SEEN_S)
        assert not _verified(site)
    finally:
        end(site)
    wait_until("it is over", partial(_in_sync, site), AWAY_S)
    wait_whole(lab)
    # Paths that were mute for seconds count as lossy for some more: a bundle that moves meanwhile is a difference.
    wait_until("verify finds nothing", partial(_verified, site), AWAY_S, interval_s=1)


@pytest.mark.parametrize("what", ["unload-conn", "clear-creds", "load-conn"])
def test_what_charon_tells_nobody_is_mended_and_counted(lab: Lab, what: str) -> None:
    site = lab.site(SITE)
    wait_until("all is in sync", partial(_in_sync, site), AWAY_S)
    before, drift = _held(site), _metric(site, 'drift_total{target="tunnels"}')
    with charon_of(site) as session:
        if what == "unload-conn":
            session.unload_conn({"name": min(before[0])})
        elif what == "clear-creds":
            session.clear_creds()
        else:
            anything = {"local_ts": ["0.0.0.0/0"], "remote_ts": ["0.0.0.0/0"]}
            session.load_conn({"cpe-stray": {"local_addrs": ["%any"], "children": {"all": anything}}})
    # That it is counted says that it was so: by the time that somebody else looks it may be mended.
    wait_until("it is counted", lambda: _metric(site, 'drift_total{target="tunnels"}') == drift + 1, MENDED_S)
    wait_until("it is as before", lambda: _held(site) == before, MENDED_S)
    wait_until("all is in sync", partial(_in_sync, site), MENDED_S)


def _held(site: RunningSite) -> tuple[frozenset[str], frozenset[str]]:
    """Connections and keys, by name."""
    with charon_of(site) as session:
        names = (session.get_conns()["conns"], session.get_keys()["keys"])
        connections, keys = (frozenset(name.decode() for name in found) for found in names)
    return connections, keys


def _in_sync(site: RunningSite) -> bool:
    return _metric(site, "dataplane_in_sync") == 1


def _metric(site: RunningSite, name: str) -> float:
    page = site.run("curl", "-sf", "--max-time", "3", "http://127.0.0.1:9273/metrics").stdout
    (found,) = re.findall(rf"^cpe_agent_{re.escape(name)} (\S+)$", page, re.MULTILINE)
    return float(found)


def _verified(site: RunningSite) -> bool:
    argv = [sys.executable, "-m", "cpe_agent", "verify", "--config", str(site.inside / "agent.yaml")]
    return site.run(*argv, check=False).status == 0
