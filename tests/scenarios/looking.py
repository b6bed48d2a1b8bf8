"""What does the kernel and charon of a site hold, apart from what its agent says?"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from tests.lab.container import Completed, wait_until
from tests.lab.lab import Lab
from tests.lab.site import RunningSite

BEST = {
    "hospital-1": {"centre": "wired.centre.wan", "cloud": "wired.cloud.wan", "centre+cloud": "wired.centre.wan"},
    "van-1": {"centre": "lte.centre.wan", "cloud": "lte.cloud.wan", "centre+cloud": "lte.centre.wan"},
}
# What was left by a move to another hub goes after some two seconds, when nothing is in the way; by then a path is
# measured too, and the router's own packets follow the paths.
REST_S = 45.0
_TO_TUNNELS, _OWN_WAY = "15500", "15502"  # tables of the agent's
CENTRE_PAGE, CLOUD_PAGE, SHARED_PAGE = "http://10.10.0.10/", "http://10.20.0.10/", "http://10.50.0.10/"


@dataclass(frozen=True)
class DataPlane:
    """As text, so that a difference can be read. `sas`: charon's unique ids, of IKE_SAs and CHILD_SAs."""

    table: str
    rules: str
    routes: str
    addresses: str
    sas: frozenset[str]


def data_plane(lab: Lab, site: str) -> DataPlane:
    run = lab.site(site).run
    return DataPlane(
        table=_without_what_rules_fill_in(run("nft", "--stateless", "list", "table", "inet", "cpe_agent").stdout),
        rules=run("ip", "rule").stdout,
        routes=run("ip", "route", "show", "table", "all").stdout,
        addresses=run("ip", "-o", "-4", "addr").stdout,
        sas=frozenset(_that_live(_sas(lab, site))),
    )


def at_rest(lab: Lab, site: str) -> DataPlane:
    wait_at_rest(lab, site)
    return data_plane(lab, site)


def wait_at_rest(lab: Lab, site: str) -> None:
    """Until a branch that is on its best paths has done all that follows: for a moment after a move to another hub each
    of its bundles may be carried twice; what its paths carry is measured when they are up, and the way of its own
    packets chosen. Of a hub nothing is asked: it holds what its branches do."""
    if site in BEST:
        wait_until(f"{site} is at rest", lambda: _rests(lab, site), REST_S, 0.2)


def _rests(lab: Lab, site: str) -> bool:
    uplink = BEST[site]["centre"].partition(".")[0]
    own_way = _routes(lab, site, _OWN_WAY)
    if not own_way or any(f" dev {uplink} " not in route for route in own_way):
        return False
    measured = {route.split()[0] for route in _routes(lab, site, _TO_TUNNELS) if " mtu " in route}
    behind_hubs = {str(lan.subnet) for hub in lab.network.sites if hub.role == "hub" for lan in hub.lans}
    return behind_hubs <= measured and _carried_once(_sas(lab, site))


def _routes(lab: Lab, site: str, table: str) -> list[str]:
    # There is no such table while it is empty.
    told = lab.site(site).run("ip", "-o", "-4", "route", "show", "table", table, check=False).stdout
    return [f"{line} " for line in told.splitlines()]


def _sas(lab: Lab, site: str) -> str:
    return lab.site(site).run("swanctl", "--list-sas", "--uri", f"unix://{lab.site(site).vici_socket}").stdout


def _carried_once(sas: str) -> bool:
    names = [sa.partition(":")[0] for sa in _that_live(sas) if sa.startswith("traffic-")]
    return len(names) == len(set(names))


def _that_live(sas: str) -> Iterator[str]:
    """IKE_SAs and their CHILD_SAs, without what has been ended already and only waits for its peer's answer, and
    without set-ups at a hub that does not know yet whose they are, or whose dialler has given them up."""
    ended = False
    for indent, name, state in re.findall(r"^( *)(\S+: #\d+), (?:reqid \d+, )?([A-Z]+)", sas, re.MULTILINE):
        # "cpe-wired...: #3, ESTABLISHED", and under it "  probe: #7, reqid 2, INSTALLED".
        if not indent:
            ended = state == "DELETING" or name.startswith("(unnamed)")
        if not ended:
            yield name


def _without_what_rules_fill_in(table: str) -> str:
    """Sources of IKE_SA_INIT come and go with time; nobody has put them there."""
    kept = []
    for part in table.split("\n\n"):
        if "flags dynamic,timeout" in part:
            part = re.sub(r"\n\t\telements = \{.*?\}", "", part, flags=re.DOTALL)
        kept.append(part)
    return "\n\n".join(kept)


def ask_status(lab: Lab, site: str, *options: str) -> Completed:
    """`cpe-agent status` as somebody at the site's shell would run it."""
    config = str(lab.site(site).inside / "agent.yaml")
    argv = [sys.executable, "-m", "cpe_agent", "status", "--config", config, *options]
    return lab.site(site).run(*argv, check=False)


def verified(site: RunningSite) -> tuple[int, str]:
    """`cpe-agent verify` there: its status, and what it says."""
    config = str(site.inside / "agent.yaml")
    done = site.run(sys.executable, "-m", "cpe_agent", "verify", "--config", config, check=False)
    return done.status, done.stdout + done.stderr


def is_pruned(site: RunningSite) -> bool:
    """Does charon know every SA that the site's kernel has?"""
    kernel = {spi for names in site.kernel_sas() for spi in names[-1:]}
    told = site.run("swanctl", "--list-sas", "--uri", f"unix://{site.vici_socket}").stdout
    return all(spi.removeprefix("0x") in told for spi in kernel)
