"""Does a router serve its LAN with the file that configs/ has for it, both locks in force?"""

from __future__ import annotations

import ipaddress
import json
import sys
from pathlib import Path

from cpe_agent.model.condition import Status
from tests.lab import dhcp, watch
from tests.lab.container import wait_until
from tests.lab.lab import Lab
from tests.lab.networkd import Networkd, addresses

CONFIGS = Path(__file__).parents[2] / "configs/networkd"
SITE, HOST = "hospital-1", "hospital-1-host"
ADDRESS = "10.101.0.1/24"
SETTLED_S = 20.0


def offered(lab: Lab) -> dict[str, str]:
    found: dict[str, str] = json.loads(lab.run(HOST, sys.executable, "-S", str(Path(dhcp.__file__))).stdout)
    return found


def drift(lab: Lab) -> int:
    """How often the agent has found its routes and rules altered."""
    [found] = [target.drift_total for target in watch.status(lab, SITE).targets if target.name == "routes"]
    return found


def test_hosts_get_their_address_from_the_router(lab: Lab) -> None:
    assert offered(lab) == {}, "nobody else serves this LAN"
    files = {"50-lan.network": (CONFIGS / "50-lan.network").read_text()}
    conf = {file.name: file.read_text() for file in (CONFIGS / "networkd.conf.d").iterdir()}
    serving = Networkd(lab.container, SITE, files, conf)
    # Set by hand until now, as no router has it.
    lab.site(SITE).run("ip", "addr", "del", ADDRESS, "dev", "lan0")
    try:
        for start in ("the first", "again"):
            before = drift(lab)
            serving.start()
            wait_until("the router has its address", lambda: addresses(lab.container, SITE, "lan0"), SETTLED_S)
            offer = offered(lab)
            assert offer, serving.said()
            assert ipaddress.ip_address(offer.pop("address")) in ipaddress.ip_network("10.101.0.0/24")
            assert offer == {"router": "10.101.0.1", "dns": "10.50.0.10"}
            watch.wait_for(lab, SITE, "is whole", _is_well, SETTLED_S)
            # Traffic goes on, and networkd has taken nothing of the agent's.
            assert lab.fetch(HOST, "http://10.10.0.10/") is not None
            assert start == "the first" or drift(lab) == before
            serving.stop()
    finally:
        serving.stop()
        lab.site(SITE).run("ip", "addr", "replace", ADDRESS, "dev", "lan0")


def _is_well(report: Status) -> bool:
    return watch.all_up(report) and not report.conditions


def test_a_lan_that_loses_its_address_is_told(lab: Lab) -> None:
    site = lab.site(SITE)
    site.run("ip", "addr", "del", ADDRESS, "dev", "lan0")
    try:
        report = watch.wait_for(
            lab, SITE, "LanUnaddressed", lambda r: any(c.type == "LanUnaddressed" for c in r.conditions), SETTLED_S
        )
        [told] = [c for c in report.conditions if c.type == "LanUnaddressed"]
        assert "lan0 has no address in 10.101.0.0/24" in told.reason
    finally:
        site.run("ip", "addr", "add", ADDRESS, "dev", "lan0")
    watch.wait_for(lab, SITE, "nothing is wrong", lambda r: not r.conditions, SETTLED_S)
