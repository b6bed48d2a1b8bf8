"""A hub that thousands of branches may dial, and some of them alive.

The hub, its charon, its agent and the controller are real and know as many branches with two uplinks each as they are
told. `LIVE` of these are there: `TOGETHER` share a namespace and a charon, which dials for each of them with its own
certificate from its own addresses, over a wired and a cellular uplink (behind one carrier's NAT), as `dialler` decides
with the product's own core. What lies between them is the lab's internet.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

from cpe_controller import setup
from cpe_controller.publish import DOCUMENTS, Published
from tests.lab.container import Process, wait_until
from tests.lab.lab import Lab
from tests.lab.provision import (
    CONTROLLER_PORT,
    CONTROLLER_STATE,
    NETWORK_YAML,
    PROBE,
    controller_addresses,
    controller_urls,
    write_settings_of,
)
from tests.lab.topology import Nat, Network, Site, internet_host, lan, uplink

LIVE, TOGETHER = 50, 10
HUB = "centre"
HUB_LAN = "10.10.0.0/24"
SERVER = "10.10.0.7"  # what a second service is: one host
CROWD = Path("/run/crowd")  # a directory for each live branch: its document and its credentials

_OVERLAY = "10.254.0.0/16"
_FIRST_LAN = IPv4Address("10.128.0.0")
_GROUPS = LIVE // TOGETHER
_NAT = "cgnat"
_TABLES = {"wired": 101, "lte": 102}


def group_name(group: int) -> str:
    return f"crowd-{group}"


def _wired(group: int) -> IPv4Network:
    return IPv4Network(f"203.0.113.{16 * (group + 1)}/28")


def _cellular(group: int) -> IPv4Network:
    return IPv4Network(f"100.64.{group + 1}.0/24")


def network() -> Network:
    """The hub, and a site without LANs for each group of live branches."""
    hub = Site(
        HUB,
        "hub",
        uplinks=(uplink("wan", "wired", "198.51.100.10/29", "198.51.100.9"),),
        lans=(lan("lan0", HUB_LAN, "centre-server", serves=True),),
    )
    groups = tuple(
        Site(
            group_name(group),
            "branch",
            uplinks=(
                uplink("wired", "wired", f"{_wired(group)[2]}/28", str(_wired(group)[1])),
                uplink("lte", "cellular", f"{_cellular(group)[2]}/24", str(_cellular(group)[1]), nat=_NAT),
            ),
            lans=(),
        )
        for group in range(_GROUPS)
    )
    return Network(
        sites=(hub, *groups),
        nats=(Nat(_NAT, "carrier", IPv4Address("203.0.113.130")),),
        internet_hosts=(internet_host("controller", "198.51.100.202/30", "198.51.100.201"),),
        controller="controller",
    )


@dataclass(frozen=True)
class Branch:
    """Branch `number`; where it is if it is a live one."""

    number: int

    @property
    def name(self) -> str:
        return f"branch-{self.number}"

    @property
    def group(self) -> int:
        return self.number // TOGETHER

    @property
    def lan(self) -> IPv4Network:
        return IPv4Network(f"{_FIRST_LAN + 256 * self.number}/24")

    @property
    def addresses(self) -> dict[str, IPv4Interface]:
        """By uplink."""
        place = 2 + self.number % TOGETHER
        nets = {"wired": _wired(self.group), "lte": _cellular(self.group)}
        return {name: IPv4Interface(f"{net[place]}/{net.prefixlen}") for name, net in nets.items()}


def network_yaml(numbers: Iterable[int]) -> str:
    """The controller's description of a network with these branches."""
    uplinks = {"wired": {"kind": "wired"}, "lte": {"kind": "cellular"}}
    branches = {
        branch.name: {"uplinks": uplinks, "lans": {"lan0": {"subnet": str(branch.lan), "interface": "lan0"}}}
        for branch in map(Branch, numbers)
    }
    described: dict[str, Any] = {
        "network": "lab",
        "overlay": _OVERLAY,
        "controllers": controller_urls(network()),
        "probe": PROBE,
        "hubs": {
            HUB: {
                "uplinks": {"wan": {"kind": "wired", "interface": "wan"}},
                "lans": {"lan0": {"subnet": HUB_LAN, "interface": "lan0"}},
                "endpoints": {"wan": {"address": "198.51.100.10"}},
            }
        },
        "branches": branches,
        "services": {
            "pages": {"subnet": HUB_LAN, "protocol": "tcp", "ports": [80]},
            "server": {"subnet": f"{SERVER}/32"},
        },
        "permits": [{"from": "branches", "to": "pages"}, {"from": "branches", "to": "server"}],
    }
    # Thousands of times the same: aliases would need a reader that takes them.
    return json.dumps(described)


def provision(lab: Lab, text: str) -> None:
    """The controller's state, the hub's settings and credentials, and those of the live branches."""
    lab.path(NETWORK_YAML).write_text(text)
    argv = [sys.executable, "-m", "tests.lab.crowd", ",".join(controller_addresses(lab.network))]
    lab.run(lab.network.controller, *argv, timeout_s=120)
    keys = setup.signing_keys(lab.path(CONTROLLER_STATE))
    write_settings_of(lab, [lab.site(HUB)], {key.id: key.key for key in keys})


def join(lab: Lab, group: int) -> Process:
    """Start a group's charon and what dials for it. Its `progress` tells how far it is."""
    site = lab.site(group_name(group))
    members = [Branch(group * TOGETHER + index) for index in range(TOGETHER)]
    lines = ["link set lo up"]
    for name, table in _TABLES.items():
        link = site.topology.uplink(name)
        lines += [
            f"rule add from {link.address.network} lookup {table} priority {table}",
            f"route add default via {link.gateway} dev {name} table {table}",
        ]
    for branch in members:
        lines += [f"addr replace {address} dev {name}" for name, address in branch.addresses.items()]
        document = json.loads(lab.path(CROWD / branch.name / "document.json").read_text())
        # charon in user space needs an address of its own inside every local selector.
        own = [uplink["path_address"] for uplink in document["uplinks"].values()]
        lines += [f"addr add {address}/32 dev lo" for address in (*own, document["site_address"], branch.lan[1])]
    site.run("ip", "-batch", "/dev/stdin", input="\n".join(lines) + "\n")
    site.start_charon()
    argv = [sys.executable, "-m", "tests.lab.dialler", str(site.vici_socket), *(branch.name for branch in members)]
    with open(lab.path(f"/run/lab/logs/{site.name}-dialler.log"), "ab") as log:
        return lab.container.spawn(argv, namespace=site.name, stdout=log)


def progress(lab: Lab, group: int) -> dict[str, int]:
    """What the group's dialler saw last: `paths`, how many of these are `up`, `initiated` since it began, and the
    `most_under_way` set-ups that one path ever had at once. Empty until it has looked."""
    file = lab.path(f"/run/{group_name(group)}/dialler.json")
    found: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
    return found


def wait_joined(lab: Lab, timeout_s: float) -> None:
    """Until every live branch has every path, with its probe and its traffic child."""

    def joined() -> bool:
        told = [progress(lab, group) for group in range(_GROUPS)]
        return all(one and one["up"] == one["paths"] for one in told)

    wait_until("every live branch is up", joined, timeout_s, interval_s=0.05)


def _inside(addresses: str) -> None:
    """What `provision` does inside the lab."""
    setup.init_state(Path(CONTROLLER_STATE), "lab", addresses.split(","), CONTROLLER_PORT)
    setup.apply(Path(CONTROLLER_STATE), Path(NETWORK_YAML))
    with setup.opened(Path(CONTROLLER_STATE)) as (store, _):
        for branch in map(Branch, range(LIVE)):
            directory = CROWD / branch.name
            directory.mkdir(parents=True)
            entry = store.get(DOCUMENTS + branch.name)
            assert entry is not None
            (directory / "document.json").write_bytes(Published.read(entry.value or b"").raw)
    homes = {branch.name: CROWD / branch.name for branch in map(Branch, range(LIVE))}
    for site, home in {**homes, HUB: Path("/run") / HUB}.items():
        pems = setup.issue_site(Path(CONTROLLER_STATE), site)
        for name, content in zip(("key.pem", "certificate.pem", "ca.pem"), pems, strict=True):
            (home / name).write_bytes(content)


if __name__ == "__main__":
    _inside(*sys.argv[1:])
