"""A second network for the lab: what `NETWORK` leaves out.

IPv6 in LANs and on some uplinks, a clinic whose provider has IPv6 alone, uplinks with an MTU of 1492 and 1280 bytes, a
LAN behind a LAN router, and servers in both data centres that talk to each other. Public IPv6 addresses are from the
documentation range, inner ones from fd00::/8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from tests.lab.provision import POLICY, PROBE, controller_urls
from tests.lab.topology import Network, Site, beyond, internet_host, ipv6, lan, uplink

OVERLAY = "10.255.0.0/24"

WIDE = Network(
    sites=(
        Site(
            "centre",
            "hub",
            uplinks=(
                replace(
                    uplink("wan", "wired", "198.51.100.10/29", "198.51.100.9"),
                    ipv6=ipv6("2001:db8:1::10/64", "2001:db8:1::1"),
                ),
            ),
            lans=(
                lan("lan0", "10.10.0.0/24", "centre-server", serves=True, subnet6="fd00:10::/64"),
                lan("lan1", "10.50.0.0/24", "centre-shared", serves=True),
            ),
        ),
        Site(
            "cloud",
            "hub",
            uplinks=(
                replace(
                    uplink("wan", "wired", "198.51.100.18/29", "198.51.100.17"),
                    ipv6=ipv6("2001:db8:2::10/64", "2001:db8:2::1"),
                ),
            ),
            lans=(
                lan("lan0", "10.20.0.0/24", "cloud-server", serves=True, subnet6="fd00:20::/64"),
                lan("lan1", "10.50.0.0/24", "cloud-shared", serves=True),
            ),
        ),
        Site(
            "hospital-1",
            "branch",
            uplinks=(
                replace(uplink("wired", "wired", "203.0.113.18/28", "203.0.113.17"), mtu=1492),
                replace(uplink("lte", "cellular", "203.0.113.34/28", "203.0.113.33"), mtu=1280),
            ),
            lans=(
                lan("lan0", "10.101.0.0/24", "hospital-1-host", serves=True, subnet6="fd00:101::/64"),
                lan("lan1", "10.103.0.0/24", "ward-router", beyond=beyond("10.104.0.0/24", "ward-host", serves=True)),
            ),
        ),
        Site(
            "clinic-1",
            "branch",
            uplinks=(
                replace(
                    uplink("wired", "wired", "203.0.113.50/28", "203.0.113.49"),
                    ipv4=False,
                    ipv6=ipv6("2001:db8:3::10/64", "2001:db8:3::1"),
                ),
            ),
            lans=(lan("lan0", "10.105.0.0/24", "clinic-1-host", serves=True, subnet6="fd00:105::/64"),),
        ),
    ),
    nats=(),
    internet_hosts=(
        internet_host(
            "controller", "198.51.100.202/30", "198.51.100.201", ipv6("2001:db8:ca::202/64", "2001:db8:ca::201")
        ),
        internet_host("outside", "203.0.113.202/30", "203.0.113.201", ipv6("2001:db8:cb::202/64", "2001:db8:cb::201")),
    ),
    controller="controller",
)

SERVICES: Mapping[str, Any] = {
    "records": {"subnet": ["10.10.0.0/24", "fd00:10::/64"]},
    "imaging": {"subnet": ["10.20.0.0/24", "fd00:20::/64"]},
    "directory": {"subnet": "10.50.0.0/24"},
}
PERMITS: Sequence[Mapping[str, Any]] = (
    {"from": "branches", "to": "records"},
    {"from": "branches", "to": "imaging"},
    {"from": "branches", "to": "directory"},
)


def silent(network: Network) -> Network:
    """The same, but no provider says that a packet was too long: it is only lost."""
    sites = tuple(
        replace(site, uplinks=tuple(replace(link, silent_mtu=True) for link in site.uplinks)) for site in network.sites
    )
    return replace(network, sites=sites)


def network_yaml(network: Network = WIDE, permits: Sequence[Mapping[str, Any]] = PERMITS) -> str:
    """The controller's description of `network`, for `provision` and `apply`. A LAN is called as its interface;
    `lan0-6` is its IPv6 subnet, `lan1-beyond` what lies behind its router."""
    described: dict[str, Any] = {
        "network": "lab",
        "overlay": OVERLAY,
        "controllers": controller_urls(network),
        "probe": PROBE,
        "policy": POLICY,
        "hubs": {site.name: _site(site) | {"endpoints": _endpoints(site)} for site in network.sites if _is_hub(site)},
        "branches": {site.name: _site(site) for site in network.sites if not _is_hub(site)},
        "services": dict(SERVICES),
        "permits": [dict(permit) for permit in permits],
    }
    return yaml.safe_dump(described, sort_keys=False)


def _is_hub(site: Site) -> bool:
    return site.role == "hub"


def _site(site: Site) -> dict[str, Any]:
    uplinks = {link.name: {"kind": link.kind, "interface": link.name, "mtu": link.mtu} for link in site.uplinks}
    lans: dict[str, Any] = {}
    for each in site.lans:
        lans[each.name] = {"subnet": str(each.subnet), "interface": each.name}
        if each.subnet6:
            lans[f"{each.name}-6"] = {"subnet": str(each.subnet6), "interface": each.name}
        if each.beyond:
            lans[f"{each.name}-beyond"] = {"subnet": str(each.beyond.subnet), "via": str(each.host.address)}
    return {"uplinks": uplinks, "lans": lans}


def _endpoints(hub: Site) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for link in hub.uplinks:
        found[link.name] = {"address": str(link.address.ip)}
        if link.ipv6:
            found[f"{link.name}6"] = {"address": str(link.ipv6.address.ip)}
    return found
