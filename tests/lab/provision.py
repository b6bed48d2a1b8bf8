"""What do the controller and the agents of a lab need on disk before they start?

In: a running lab. Out: /run/controller (keys, network, documents) and, for each site, /run/SITE/agent.yaml with the
certificate, key and CA that it names.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import yaml

from cpe_controller import setup
from tests.lab.lab import Lab
from tests.lab.pace import PROBE_MS
from tests.lab.site import RunningSite
from tests.lab.topology import Network, Site

CONTROLLER_PORT = 8443
CONTROLLER_STATE = "/run/controller"
NETWORK_YAML = "/run/network.yaml"
SERVER = 10  # the last byte of a server's address
METRICS = "127.0.0.1:9273"
POLICY = {"failback_s": 3}  # so that a demo can show it
OVERLAY = "10.255.0.0/24"  # inner addresses of paths, endpoints and sites
PROBE = {"active_interval_ms": PROBE_MS, "standby_interval_ms": PROBE_MS, "misses": 3}


def provision(lab: Lab, text: str | None = None) -> None:
    """Set up the controller's state, apply the network (`text`, or what `network_yaml` says of it), and give every site
    its identity and settings."""
    lab.path(NETWORK_YAML).write_text(network_yaml(lab.network) if text is None else text)
    # Inside the lab: SQLite resolves the path of its file, and from outside that path leads through /proc.
    argv = [sys.executable, "-m", "tests.lab.provision", ",".join(controller_addresses(lab.network)), *lab.sites]
    lab.run(lab.network.controller, *argv, timeout_s=30)
    keys = setup.signing_keys(lab.path(CONTROLLER_STATE))
    write_settings(lab, signing_keys={key.id: key.key for key in keys})


def apply(lab: Lab, text: str) -> dict[str, int]:
    """Put another network.yaml in force while the controller runs. The sites whose document it changes, and to which
    version."""
    lab.path(NETWORK_YAML).write_text(text)
    argv = [sys.executable, "-m", "cpe_controller", "--state", CONTROLLER_STATE, "apply", "--now", NETWORK_YAML]
    lines = lab.run(lab.network.controller, *argv, timeout_s=30).stdout.splitlines()
    changed = (line.partition(": version ") for line in lines)
    return {site: int(version) for site, _, version in changed if version}


def _inside(addresses: str, *sites: str) -> None:
    """What `provision` does inside the lab, in one process."""
    setup.init_state(Path(CONTROLLER_STATE), "lab", addresses.split(","), CONTROLLER_PORT)
    setup.apply(Path(CONTROLLER_STATE), Path(NETWORK_YAML))
    for site in sites:
        pems = setup.issue_site(Path(CONTROLLER_STATE), site)
        for name, content in zip(("key.pem", "certificate.pem", "ca.pem"), pems, strict=True):
            (Path("/run") / site / name).write_bytes(content)


def network_yaml(network: Network) -> str:
    """The controller's description of `network`: every branch may start flows to every subnet that a hub serves.

    A subnet that two hubs serve is one service, at both in the topology's order.
    """
    hubs = [site for site in network.sites if site.role == "hub"]
    services = {str(lan.subnet): lan for hub in reversed(hubs) for lan in hub.lans}
    names = {subnet: f"service-{subnet.split('/')[0].replace('.', '-')}" for subnet in sorted(services)}
    described: dict[str, Any] = {
        "network": "lab",
        "overlay": OVERLAY,
        "controllers": [controller_url(network)],
        "probe": PROBE,
        "policy": POLICY,
        "hubs": {hub.name: _described(hub) | {"endpoints": _endpoints(network, hub)} for hub in hubs},
        "branches": {site.name: _described(site) for site in network.sites if site.role == "branch"},
        "services": {name: {"subnet": subnet} for subnet, name in names.items()},
        "permits": [{"from": "branches", "to": name} for name in names.values()],
    }
    return yaml.safe_dump(described, sort_keys=False)


def probed(text: str) -> str:
    """The same network.yaml with every service's server asked, so that a drill has something to measure."""
    described: dict[str, Any] = yaml.safe_load(text)
    for service in described["services"].values():
        service["probe"] = {"kind": "icmp", "address": str(IPv4Network(service["subnet"])[SERVER])}
    return yaml.safe_dump(described, sort_keys=False)


def controller_url(network: Network) -> str:
    return controller_urls(network)[0]


def controller_urls(network: Network) -> list[str]:
    """One for each IP version of the controller, IPv4 first."""
    hosts = (f"[{address}]" if ":" in address else address for address in controller_addresses(network))
    return [f"https://{host}:{CONTROLLER_PORT}" for host in hosts]


def controller_addresses(network: Network) -> list[str]:
    machine = network.internet_host(network.controller)
    return [str(machine.address.ip), *([str(machine.ipv6.address.ip)] if machine.ipv6 else [])]


def write_settings(lab: Lab, signing_keys: Mapping[str, str]) -> None:
    """Write every site's agent.yaml. `signing_keys`: key id -> public key in base64."""
    write_settings_of(lab, lab.sites.values(), signing_keys)


def write_settings_of(lab: Lab, sites: Iterable[RunningSite], signing_keys: Mapping[str, str]) -> None:
    """Write the agent.yaml of these sites."""
    for site in sites:
        settings = agent_settings(site, controller_urls(lab.network), signing_keys)
        (site.outside / "agent.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))


def agent_settings(site: RunningSite, controllers: list[str], signing_keys: Mapping[str, str]) -> dict[str, Any]:
    """agent.yaml of one site. Its paths are as the site's processes see them; `state` and `run` are made."""
    directories = {name: site.inside / name for name in ("state", "run")}
    for name in directories:
        (site.outside / name).mkdir(mode=0o755, exist_ok=True)
    return {
        "site": site.name,
        "state_dir": str(directories["state"]),
        "run_dir": str(directories["run"]),
        "controllers": controllers,
        "ca": str(credential(site, "ca.pem")),
        "certificate": str(credential(site, "certificate.pem")),
        "key": str(credential(site, "key.pem")),
        "signing_keys": dict(signing_keys),
        "vici_socket": str(site.vici_socket),
        "backend": site.backend,
        "metrics": METRICS,
    }


def credential(site: RunningSite, name: str) -> Path:
    """Where the site's ca.pem, certificate.pem and key.pem are, as its own processes see them."""
    return site.inside / name


def _described(site: Site) -> dict[str, Any]:
    return {
        "uplinks": {uplink.name: {"kind": uplink.kind, "interface": uplink.name} for uplink in site.uplinks},
        "lans": {lan.name: {"subnet": str(lan.subnet), "interface": lan.name} for lan in site.lans},
    }


def _endpoints(network: Network, hub: Site) -> dict[str, Any]:
    return {uplink.name: {"address": str(network.public_address(hub.name, uplink.name))} for uplink in hub.uplinks}


if __name__ == "__main__":
    _inside(*sys.argv[1:])
