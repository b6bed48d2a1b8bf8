"""Documents for the tests of core: a branch with two uplinks and two hubs, and what those hubs are told of it."""

from __future__ import annotations

import datetime as dt
from typing import Any, Literal

from cpe_agent.core.compile import Site
from cpe_agent.model.dataplane import Backend
from cpe_agent.model.document import Document, Endpoint, Lan, Pair, Peer, Uplink
from cpe_agent.model.observed import Link, LinkAddress, Links

ISSUED = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
EXPIRES = dt.datetime(2026, 7, 1, tzinfo=dt.UTC)
BRANCH = Site("hospital-1.city", Backend.USERLAND)
HUB = Site("centre.city", Backend.USERLAND)

SHARED = "10.50.0.0/24"
CENTRE_LAN = "10.10.0.0/24"
CLOUD_LAN = "10.20.0.0/24"
OWN_LAN = "10.101.0.0/24"
OWN_LAN_6 = "fd00:101::/64"
CENTRE_LAN_6 = "fd00:10::/64"

CENTRE_ENDPOINTS = (
    Endpoint("a", "198.51.100.10", "10.255.1.1", "10.255.1.2"),
    Endpoint("b", "2001:db8::10", "10.255.1.3", "10.255.1.4"),
)
CLOUD_ENDPOINTS = (Endpoint("a", "198.51.100.20", "10.255.2.1", "10.255.2.2"),)
CENTRE = Peer("centre.city", True, "10.255.0.1", (CENTRE_LAN, SHARED, CENTRE_LAN_6), endpoints=CENTRE_ENDPOINTS)
CLOUD = Peer("cloud.city", True, "10.255.0.2", (CLOUD_LAN, SHARED), endpoints=CLOUD_ENDPOINTS)
HOSPITAL = Peer(
    "hospital-1.city",
    False,
    "10.255.0.101",
    (OWN_LAN, OWN_LAN_6),
    path_addresses=("10.255.101.1", "10.255.101.2"),
)


def pair(
    id_: str,
    remote: str,
    *peers: str,
    local: str = OWN_LAN,
    initiator: Literal["local", "remote", "either"] = "local",
    protocol: str | None = None,
    ports: tuple[str, ...] = (),
    class_: str = "default",
) -> Pair:
    return Pair(id_, local, remote, initiator, peers, protocol, ports, class_)


PAIRS = (
    pair("web", CENTRE_LAN, "centre", protocol="tcp", ports=("443", "8000-8010")),
    pair("cloud", CLOUD_LAN, "cloud", initiator="either"),
    pair("shared", SHARED, "centre", "cloud", protocol="tcp"),
    pair("back", CENTRE_LAN, "centre", initiator="remote", protocol="udp", ports=("53",)),
)


def branch(**changes: Any) -> Document:
    """hospital-1, which dials both hubs over a wired and a cellular uplink."""
    return _document(
        "hospital-1",
        "branch",
        {
            "site_address": "10.255.0.101",
            "lans": (Lan("wards", OWN_LAN, "lan0"), Lan("wards6", OWN_LAN_6, "lan0")),
            "uplinks": {
                "wired": Uplink("wired", 1, "10.255.101.1"),
                "lte": Uplink("cellular", 2, "10.255.101.2", interface="wwan0"),
            },
            "peers": {"centre": CENTRE, "cloud": CLOUD},
            "pairs": PAIRS,
            **changes,
        },
    )


def hub(**changes: Any) -> Document:
    """centre, which hospital-1 dials."""
    return _document(
        "centre",
        "hub",
        {
            "site_address": "10.255.0.1",
            "endpoints": CENTRE_ENDPOINTS,
            "lans": (
                Lan("servers", CENTRE_LAN, "lan0"),
                Lan("shared", SHARED, "lan1"),
                Lan("six", CENTRE_LAN_6, "lan0"),
            ),
            "uplinks": {"wan": Uplink("wired", 1, "10.255.100.1")},
            "peers": {"hospital-1": HOSPITAL},
            "pairs": (pair("web", OWN_LAN, "hospital-1", local=CENTRE_LAN, initiator="remote"),),
            **changes,
        },
    )


def _document(site: str, role: Literal["hub", "branch"], fields: dict[str, Any]) -> Document:
    stamp: dict[str, Any] = {"network": "city", "epoch": 1, "version": 7, "issued_at": ISSUED, "expires_at": EXPIRES}
    return Document(schema=1, site=site, role=role, **{**stamp, **fields})


def link(name: str, *addresses: str, gateways: tuple[str, ...] = (), up: bool = True) -> Link:
    """An interface with addresses like "192.0.2.1/24"."""
    split = [text.split("/") for text in addresses]
    return Link(name, up, tuple(LinkAddress(address, int(length)) for address, length in split), gateways)


def links(*found: Link) -> Links:
    return Links({one.name: one for one in found})


WIRED = link("wired", "203.0.113.18/28", "2001:db8:1::2/64", gateways=("203.0.113.17", "2001:db8:1::1"))
LTE = link("wwan0", "100.64.1.10/32", gateways=("",))
LAN = link("lan0", "10.101.0.1/24", "fd00:101::1/64")
IPSEC = link("ipsec0")
LINKS = links(WIRED, LTE, LAN, IPSEC)
HUB_LINKS = links(
    link("wan", "198.51.100.10/29", gateways=("198.51.100.9",)),
    link("lan0", "10.10.0.1/24"),
    link("lan1", "10.50.0.1/24"),
    IPSEC,
)
