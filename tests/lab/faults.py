"""What can go wrong with an uplink? All of it happens in the provider's access router, where the CPE cannot see it.

`Faults` says what is wrong now and `ruleset` renders it; `RunningUplink` makes it so, within a few milliseconds.
Directions are the site's: `up` is from the CPE to the internet.
"""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Literal

from tests.lab.container import Container, Process, wait_until
from tests.lab.topology import Uplink, access_router
from tests.lab.wiring import CORE, TO_CPE, TO_INTERNET

Direction = Literal["up", "down", "both"]

_DETOUR = "slow0"
_DETOUR_TABLE = 100
_DETOUR_PACKETS = 20_000
_NETEM_PACKETS = 10_000  # what does not fit is lost: a second of 100 Mbit/s
_DELAY_SCRIPT = Path(__file__).with_name("delay.py")


@dataclass(frozen=True)
class Faults:
    """What is silently lost on an uplink, in each direction: a share from 0 (nothing) to 100 percent."""

    loss_up_percent: float = 0.0
    loss_down_percent: float = 0.0

    def with_loss(self, percent: float, direction: Direction) -> Faults:
        if not 0 <= percent <= 100:
            raise ValueError(f"a loss of {percent} percent")
        up = percent if direction in ("up", "both") else self.loss_up_percent
        down = percent if direction in ("down", "both") else self.loss_down_percent
        return replace(self, loss_up_percent=up, loss_down_percent=down)


@dataclass(frozen=True)
class Impairment:
    """What a bad link does to packets, in one direction: netem's words. Zero: nothing of the kind."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0  # of the delay, both ways
    loss_percent: float = 0.0
    reorder_percent: float = 0.0  # these overtake those that wait: needs a delay
    duplicate_percent: float = 0.0
    rate_kbit: float = 0.0

    def netem(self) -> list[str]:
        """Arguments of `tc qdisc ... netem`."""
        if self.reorder_percent and not self.delay_ms:
            raise ValueError("nothing can be overtaken that does not wait: reorder_percent needs delay_ms")
        words = ["limit", str(_NETEM_PACKETS)]
        if self.delay_ms:
            words += ["delay", f"{self.delay_ms:g}ms"] + ([f"{self.jitter_ms:g}ms"] if self.jitter_ms else [])
        for name, percent in (
            ("loss", self.loss_percent),
            ("reorder", self.reorder_percent),
            ("duplicate", self.duplicate_percent),
        ):
            words += [name, f"{percent:g}%"] if percent else []
        return words + (["rate", f"{self.rate_kbit:g}kbit"] if self.rate_kbit else [])


def ruleset(faults: Faults) -> str:
    """nft text that replaces all earlier faults in one transaction.

    Packets are judged by where they came in, so that the detour of a slow uplink cannot lose one twice. The router's
    own address goes on answering: only what lies behind it is lost.
    """
    rules = [
        _drop(percent, interface)
        for percent, interface in ((faults.loss_up_percent, TO_CPE), (faults.loss_down_percent, TO_INTERNET))
        if percent > 0
    ]
    chain = "chain forward { type filter hook forward priority -200;\n" + "\n".join(rules) + "\n}"
    return f"table ip faults {{}}\ndelete table ip faults\ntable ip faults {{\n{chain}\n}}\n"


def _drop(percent: float, interface: str) -> str:
    chance = "" if percent >= 100 else f"numgen random mod 10000 < {round(percent * 100)} "
    return f'iifname "{interface}" {chance}counter drop'


def has_netem(container: Container) -> bool:
    """Can this kernel impair links?"""
    argv = ["tc", "qdisc", "replace", "dev", "lo", "root", "netem", "delay", "0ms"]
    can = container.run(argv, check=False).status == 0
    container.run(["tc", "qdisc", "del", "dev", "lo", "root"], check=False)
    return can


class RunningUplink:
    """One uplink of a running lab. Faults add up, and stay until `heal`, `restore` or `slow(0)`."""

    def __init__(self, container: Container, site: str, uplink: Uplink) -> None:
        self.name = uplink.name
        self.site = site
        self.router = access_router(site, uplink.name)
        self.address: IPv4Interface = uplink.address
        self.gateway: IPv4Address = uplink.gateway
        self._upper = uplink.nat or CORE
        self._container = container
        self._faults = Faults()
        self._relay: Process | None = None
        self._impaired: set[str] = set()

    def cut(self) -> None:
        """Pull the cable: the CPE sees its carrier go."""
        self._ip(self.router, "link", "set", TO_CPE, "down")

    def restore(self) -> None:
        """Plug the cable in again."""
        self._ip(self.router, "link", "set", TO_CPE, "up")
        if self._relay is not None:
            self._detour()  # routes went with the link

    def blackhole(self, direction: Direction = "both") -> None:
        """Lose everything, silently: the link stays up and the gateway answers."""
        self.loss(100, direction)

    def loss(self, percent: float, direction: Direction = "both") -> None:
        """Lose this share of packets, at random."""
        self._set(self._faults.with_loss(percent, direction))

    def impair(self, impairment: Impairment, direction: Direction = "both") -> None:
        """Make it a bad link, until `heal`. LabError on a kernel without netem (`has_netem`)."""
        for way, interface in (("up", TO_INTERNET), ("down", TO_CPE)):
            if direction in (way, "both"):
                argv = ["tc", "qdisc", "replace", "dev", interface, "root", "netem", *impairment.netem()]
                self._container.run(argv, namespace=self.router)
                self._impaired.add(interface)

    def heal(self) -> None:
        """End any loss and impairment. A cut link stays cut and a slow one slow."""
        self._set(Faults())
        for interface in sorted(self._impaired):
            self._container.run(["tc", "qdisc", "del", "dev", interface, "root"], namespace=self.router, check=False)
        self._impaired.clear()

    def slow(self, delay_ms: float) -> None:
        """Delay every packet by this much each way; 0 ends it. Packets under way when it changes are lost."""
        if self._relay is not None:
            relay, self._relay = self._relay, None
            relay.signal(signal.SIGTERM)
            relay.wait(5)  # the device, and with it the routes into it, goes with the process
            for interface in (TO_CPE, TO_INTERNET):
                self._ip(self.router, "rule", "del", "iif", interface, "lookup", str(_DETOUR_TABLE))
        if delay_ms > 0:
            argv = [sys.executable, str(_DELAY_SCRIPT), "--device", _DETOUR, "--delay-ms", str(delay_ms)]
            log = self._container.path("/run/lab/logs") / f"{self.router}-delay.log"
            with open(log, "wb") as stdout:
                self._relay = self._container.spawn(argv, namespace=self.router, stdout=stdout)
            wait_until(f"{self.router} is slow", lambda: log.read_bytes().startswith(b"ready"), timeout_s=10)
            # As much as the relay keeps: what it has no time to fetch for a moment is not lost.
            self._ip(self.router, "link", "set", _DETOUR, "txqueuelen", str(_DETOUR_PACKETS), "up")
            self._detour()
            for interface in (TO_CPE, TO_INTERNET):
                self._ip(self.router, "rule", "add", "iif", interface, "lookup", str(_DETOUR_TABLE))

    def readdress(self, address: str, gateway: str) -> None:
        """Give the CPE another address and gateway, as a DHCP lease of another network would. `address` as 1.2.3.4/28.

        The address changes at both ends and in the internet's routes; the old one is gone from everywhere.
        """
        new, old = IPv4Interface(address), self.address
        new_gateway = IPv4Address(gateway)
        metric = self._metric()  # goes with the last address
        router_new, router_old = (
            f"{gate}/{interface.network.prefixlen}" for gate, interface in ((new_gateway, new), (self.gateway, old))
        )
        # The old goes first: the second address of a network would go with the first.
        if router_new != router_old:
            self._batch(self.router, f"addr del {router_old} dev {TO_CPE}", f"addr add {router_new} dev {TO_CPE}")
        if new.network != old.network:
            via = self._transfer_address()
            self._batch(self._upper, f"route add {new.network} via {via}", f"route del {old.network}")
        self._batch(
            self.site,
            f"addr del {old} dev {self.name}",
            f"addr add {new} dev {self.name}",
            f"route replace default via {new_gateway} dev {self.name} metric {metric}",
        )
        self.address, self.gateway = new, new_gateway

    def _set(self, faults: Faults) -> None:
        self._container.run(["nft", "-f", "-"], namespace=self.router, input=ruleset(faults))
        self._faults = faults

    def _detour(self) -> None:
        self._ip(self.router, "route", "replace", "default", "dev", _DETOUR, "table", str(_DETOUR_TABLE))

    def _metric(self) -> str:
        words = self._ip(self.site, "route", "show", "default", "dev", self.name).split()
        return words[words.index("metric") + 1]

    def _transfer_address(self) -> str:
        words = self._ip(self.router, "-o", "addr", "show", "dev", TO_INTERNET).split()
        return words[words.index("inet") + 1].split("/")[0]

    def _batch(self, namespace: str, *lines: str) -> None:
        self._container.run(["ip", "-4", "-n", namespace, "-batch", "-"], input="\n".join(lines) + "\n")

    def _ip(self, namespace: str, *arguments: str) -> str:
        return self._container.run(["ip", "-4", "-n", namespace, *arguments]).stdout
