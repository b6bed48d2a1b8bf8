"""Is everything that no permit lists tried, and would it be noticed if it got through?"""

from __future__ import annotations

from tests.lab.forbidden import PROTOCOLS, Combination, forbidden, network_yaml, offer_all
from tests.lab.lab import Lab
from tests.lab.topology import NETWORK

HOSTS = [host.name for host in NETWORK.hosts]


def _pairs(combinations: list[Combination]) -> set[tuple[str, str]]:
    return {(c.sender, c.to) for c in combinations if c.sender in HOSTS}


def test_every_unlisted_ordered_pair_is_tried_by_every_protocol() -> None:
    tried = forbidden(NETWORK, network_yaml(NETWORK))
    pairs = _pairs(tried)
    everyone = {(a.name, str(b.address)) for a in NETWORK.hosts for b in NETWORK.hosts if a.address != b.address}
    servers = ("10.10.0.10", "10.20.0.10", "10.50.0.10")
    listed = {(host, server) for host in ("hospital-1-host", "van-1-host") for server in servers}
    outside = {(host, str(NETWORK.address_of("outside"))) for host in HOSTS}
    assert pairs == (everyone - listed) | outside
    assert len(tried) == len(set(tried)) == len(PROTOCOLS) * len({(c.sender, c.source, c.to) for c in tried})


def test_a_permit_takes_its_pairs_out_in_its_own_direction() -> None:
    tried = _pairs(forbidden(NETWORK, network_yaml(NETWORK)))
    without = _pairs(forbidden(NETWORK, network_yaml(NETWORK, services_without_permit=1)))
    assert without - tried == {("hospital-1-host", "10.20.0.10"), ("van-1-host", "10.20.0.10")}
    either = _pairs(forbidden(NETWORK, network_yaml(NETWORK, initiator="either")))
    assert tried - either == {
        (host.name, branch) for host in NETWORK.hosts if host.serves for branch in ("10.101.0.10", "10.102.0.10")
    }


def test_the_wire_is_tried_under_its_own_and_a_permitted_address() -> None:
    wire = {
        (c.sender, c.source, c.to) for c in forbidden(NETWORK, network_yaml(NETWORK)) if c.sender == "net-van-1-lte"
    }
    assert wire == {
        ("net-van-1-lte", "100.64.2.1", "10.102.0.10"),
        ("net-van-1-lte", "10.10.0.10", "10.102.0.10"),
    }


def test_what_gets_through_is_noticed(bare_lab: Lab) -> None:
    """Without an agent the centre forwards nothing; told to forward, it lets everything through."""
    tried = [
        Combination("centre-server", "10.10.0.10", "10.50.0.10", protocol, "centre", "lan0") for protocol in PROTOCOLS
    ]
    tried += [
        Combination("net-centre-wan", "10.101.0.10", "10.10.0.10", protocol, "centre", "wan") for protocol in PROTOCOLS
    ]
    outcomes, arrivals = offer_all(bare_lab, tried, 3)
    assert all(outcome.entered == (6 if outcome.combination.protocol == "fragments" else 3) for outcome in outcomes)
    assert arrivals.total() == 0
    bare_lab.run("centre", "sysctl", "-q", "net.ipv4.ip_forward=1")
    try:
        outcomes, arrivals = offer_all(bare_lab, tried, 3)
    finally:
        bare_lab.run("centre", "sysctl", "-q", "net.ipv4.ip_forward=0")
    assert {outcome.combination for outcome in outcomes if outcome.arrived >= 3} == set(tried)
