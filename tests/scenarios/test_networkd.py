"""Does the agent live beside a daemon that configures uplinks by itself?

systemd's networkd, as Debian ships it and with its own defaults, runs a DHCP client on one uplink of a branch, against
a server at the provider's router. It takes what it finds there for its own to keep or drop, at each start and with each
lease; what is the agent's must be there again at once, and what networkd has configured must stay.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from functools import partial

import pytest

from cpe_agent.model.condition import Status
from tests.lab import watch
from tests.lab.container import Process, wait_until
from tests.lab.init import LOGS
from tests.lab.lab import Lab
from tests.lab.provision import provision
from tests.lab.topology import SMALL
from tests.lab.wiring import TO_CPE
from tests.scenarios.looking import CENTRE_PAGE, verified

NETWORKD = "/lib/systemd/systemd-networkd"
pytestmark = pytest.mark.skipif(
    not os.path.exists(NETWORKD) or shutil.which("busybox") is None, reason="needs systemd-networkd and busybox"
)

SITE, HOST, UPLINK = "hospital-1", "hospital-1-host", "wired"
START_S, FOLLOWED_S, AGAIN_S = 40.0, 20.0, 45.0
# What networkd is to give up it may keep until the lease ends (20 s), and then asks ever more rarely. That is between
# it and the provider, and not judged.
LEASED_S = 60.0
UNIT = f"""
[Match]
Name={UPLINK}
[Network]
DHCP=ipv4
LinkLocalAddressing=no
IPv6AcceptRA=no
[DHCPv4]
RouteMetric=100
"""
UDHCPD = """
start {address}
end {address}
interface {interface}
max_leases 1
lease_file /run/udhcpd.leases
pidfile /run/udhcpd.pid
opt router {gateway}
opt subnet 255.255.255.240
opt lease 20
"""
# A /sys that is read-only tells networkd that there is no udev to wait for.
START = f"mount -o remount,bind,ro /sys && exec {NETWORKD}"


class Provider:
    """A DHCP server at the access router that has one address to give, and the networkd that asks for it."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._router = lab.site(SITE).uplink(UPLINK).router
        self._server: Process | None = None
        self._client: Process | None = None
        directory = lab.path("/run/systemd/network")
        directory.mkdir(parents=True)
        (directory / "10-uplink.network").write_text(UNIT)

    def serve(self, address: str) -> None:
        """Give this address from now on, and refuse whoever asks for another one."""
        self._end("_server")
        gateway = self._lab.site(SITE).uplink(UPLINK).gateway
        leases = self._lab.path("/run/udhcpd.leases")
        leases.write_bytes(b"")
        config = UDHCPD.format(address=address, interface=TO_CPE, gateway=gateway)
        self._lab.path("/run/udhcpd.conf").write_text(config)
        self._server = self._spawn(["busybox", "udhcpd", "-f", "/run/udhcpd.conf"], self._router, "udhcpd")

    def start(self) -> None:
        self._client = self._spawn(["sh", "-c", START], SITE, "networkd")

    def stop(self) -> None:
        """As systemd stops it: it gives its lease back, and takes its address away."""
        self._end("_client")

    def close(self) -> None:
        self._end("_client")
        self._end("_server")

    def _spawn(self, argv: list[str], namespace: str, name: str) -> Process:
        with open(self._lab.path(f"{LOGS}/{name}.log"), "ab") as log:
            return self._lab.container.spawn(argv, namespace=namespace, stdout=log)

    def _end(self, which: str) -> None:
        process: Process | None = getattr(self, which)
        if process is not None:
            process.signal(signal.SIGTERM)
            assert process.wait(10) is not None
            process.close()
            setattr(self, which, None)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(SMALL, name="networkd") as running:
        provision(running)
        running.start()
        watch.wait_all_up(running, START_S)
        yield running
        assert running.leaked() == {}, "private packets reached the internet"


@pytest.fixture(scope="module")
def provider(lab: Lab) -> Iterator[Provider]:
    """The uplink's address was set by hand until now: networkd takes it over."""
    address = lab.site(SITE).uplink(UPLINK).address
    found = Provider(lab)
    found.serve(str(address.ip))
    lab.site(SITE).run("ip", "addr", "del", str(address), "dev", UPLINK)
    try:
        found.start()
        yield found
    finally:
        found.close()


def _is_home(lab: Lab, address: str) -> None:
    """All is well, over the uplink with this address, as the document and networkd ask."""
    wait_until(f"networkd has {address}", lambda: f" {address}/" in _addresses(lab), LEASED_S, 0.2)
    watch.wait_for(lab, SITE, f"{UPLINK} has {address}", partial(_has, address), FOLLOWED_S)
    watch.wait_all_up(lab, AGAIN_S)
    watch.wait_for(lab, SITE, f"is on {UPLINK}", watch.carried("centre", uplink=UPLINK), AGAIN_S)
    assert lab.fetch(HOST, CENTRE_PAGE) is not None
    wait_until("verify finds nothing", lambda: verified(lab.site(SITE))[0] == 0, AGAIN_S, interval_s=0.5)
    default = lab.run(SITE, "ip", "route", "show", "default", "dev", UPLINK).stdout
    assert "proto dhcp" in default and f"src {address}" in default, "networkd's own route is none of ours"


def _addresses(lab: Lab) -> str:
    return lab.run(SITE, "ip", "-4", "-o", "addr", "show", "dev", UPLINK).stdout


def _has(address: str, report: Status) -> bool:
    return any(uplink.name == UPLINK and uplink.address == address for uplink in report.uplinks)


def test_that_a_lease_is_followed(lab: Lab, provider: Provider) -> None:
    _is_home(lab, "203.0.113.18")


def test_that_a_restart_of_networkd_costs_a_failover_and_nothing_else(lab: Lab, provider: Provider) -> None:
    _is_home(lab, "203.0.113.18")
    provider.stop()
    watch.wait_for(lab, SITE, "is carried by lte", watch.carried("centre", uplink="lte"), AGAIN_S)
    assert lab.fetch(HOST, CENTRE_PAGE) is not None
    provider.start()
    _is_home(lab, "203.0.113.18")
    # One that remembers no failure: the next one would keep traffic on lte five times as long.
    lab.site(SITE).agent.restart()


def test_that_another_lease_makes_another_path(lab: Lab, provider: Provider) -> None:
    _is_home(lab, "203.0.113.18")
    provider.serve("203.0.113.19")
    _is_home(lab, "203.0.113.19")
