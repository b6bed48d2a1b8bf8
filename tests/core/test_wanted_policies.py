"""Which of the kernel's policies shut what no tunnel is for?"""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address

import msgspec

from cpe_agent.core.wanted_policies import block_policies, protected
from cpe_agent.model.dataplane import BlockPolicy
from cpe_agent.model.document import Document
from tests.core.documents import branch, hub

BRANCH, HUB = branch(), hub()


def _verdict(document: Document, direction: str, source: str, to: str) -> bool:
    """Does one of the policies block this packet?"""
    return any(
        policy.direction == direction
        and ipaddress.ip_address(source) in ipaddress.ip_network(policy.source)
        and ipaddress.ip_address(to) in ipaddress.ip_network(policy.destination)
        for policy in block_policies(document)
        if ":" not in policy.source
    )


def test_that_every_protected_subnet_is_shut_and_no_lan() -> None:
    for document in (BRANCH, HUB):
        lan = str(ipaddress.ip_network(document.lans[0].subnet)[10])
        for peer in document.peers.values():
            for subnet in {lan for lan in peer.lans if ":" not in lan} - {own.subnet for own in document.lans}:
                far = str(IPv4Address(ipaddress.ip_network(subnet)[10]))
                assert _verdict(document, "out", lan, far), "it would leave in cleartext"
                assert _verdict(document, "out", "198.51.100.1", far)
                assert _verdict(document, "in", far, document.site_address)
                assert _verdict(document, "fwd", far, lan), "cleartext from the uplink"
                # The kernel asks before it encrypts what comes from a LAN.
                assert not _verdict(document, "fwd", lan, far)
        assert _verdict(document, "fwd", "203.0.113.9", lan), "decrypted packets go this way, nothing else does"
        assert not _verdict(document, "out", document.site_address, lan), "the router reaches its own LAN"
        assert not _verdict(document, "in", lan, document.site_address)


def test_that_a_lan_inside_a_wider_subnet_is_cut_out() -> None:
    name, peer = next(iter(BRANCH.peers.items()))
    wide = str(ipaddress.ip_network(BRANCH.lans[0].subnet).supernet(8))
    document = msgspec.structs.replace(
        BRANCH, peers={**BRANCH.peers, name: msgspec.structs.replace(peer, lans=(*peer.lans, wide))}
    )
    lan = str(ipaddress.ip_network(BRANCH.lans[0].subnet)[10])
    beside = str(ipaddress.ip_network(BRANCH.lans[0].subnet).network_address + 256)
    assert not _verdict(document, "out", document.site_address, lan)
    assert _verdict(document, "out", document.site_address, beside)
    assert all(not network.overlaps(ipaddress.ip_network(BRANCH.lans[0].subnet)) for network in protected(document))


def test_that_ipv6_has_policies_of_its_own() -> None:
    name, peer = next(iter(BRANCH.peers.items()))
    document = msgspec.structs.replace(
        BRANCH, peers={**BRANCH.peers, name: msgspec.structs.replace(peer, lans=(*peer.lans, "fd00:10::/64"))}
    )
    assert BlockPolicy("out", "::/0", "fd00:10::/64") in block_policies(document)
