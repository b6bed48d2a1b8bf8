"""Which servers are asked, from where, and what lets exactly these questions through?"""

from __future__ import annotations

import msgspec
import pytest

from cpe_agent.core.compile import compile_dataplane
from cpe_agent.model.dataplane import Backend, Dataplane, Service
from cpe_agent.model.document import Document, DocumentError, Pair, ServiceProbe, encode
from cpe_agent.model.document_check import decode
from cpe_agent.model.observed import Link, LinkAddress, Links
from tests.core.documents import BRANCH, CENTRE_LAN, PAIRS, SHARED, branch, pair

ECHO = ServiceProbe("icmp", address="10.50.0.10")
WEB = ServiceProbe("tcp", 443, "10.10.0.10")
LAN = Link("lan0", True, (LinkAddress("10.101.0.1", 24),))


def _document(*pairs: Pair) -> Document:
    return branch(pairs=pairs)


def _probed(found: Pair, probe: ServiceProbe) -> Pair:
    return msgspec.structs.replace(found, probe=probe)


def _compiled(document: Document, lan: Link = LAN) -> tuple[Dataplane, tuple[str, ...]]:
    links = Links({link.name: link for link in (lan, *UPLINKS, Link(Backend.USERLAND.device, True))})
    dataplane, conditions = compile_dataplane(document, links, BRANCH)
    return dataplane, tuple(condition.type for condition in conditions)


UPLINKS = (
    Link("wired", True, (LinkAddress("203.0.113.18", 28),), ("203.0.113.17",)),
    Link("lte", True, (LinkAddress("100.64.1.10", 24),), ("100.64.1.1",)),
)


def test_that_a_server_is_asked_from_the_routers_address_in_the_pair() -> None:
    shared = _probed(pair("shared", SHARED, "centre", "cloud"), ECHO)
    web = _probed(pair("web", CENTRE_LAN, "centre", protocol="tcp", ports=("443",)), WEB)
    dataplane, _ = _compiled(_document(shared, web))
    assert dataplane.services == (
        Service("centre", "web", "10.101.0.1", "10.10.0.10", 443),
        Service("centre+cloud", "shared", "10.101.0.1", "10.50.0.10"),
    )
    sets = {nft_set.name: nft_set.elements for nft_set in dataplane.ruleset.sets}
    assert sets["asked_echo4"] == {"10.101.0.1 . 10.50.0.10"} and sets["asked_tcp4"] == {
        "10.101.0.1 . 10.10.0.10 . 443"
    }
    assert not sets["asked_echo6"] and not sets["asked_tcp6"]


def test_that_the_trials_tunnel_takes_the_questions_and_nothing_else() -> None:
    dataplane, _ = _compiled(_document(_probed(pair("shared", SHARED, "centre", "cloud"), ECHO)))
    trials = {
        connection.stem: child
        for connection in dataplane.tunnels.connections
        for child in connection.children
        if child.name.startswith("trial-")
    }
    assert trials and all(stem.split(".")[1] in ("centre", "cloud") for stem in trials)
    for child in trials.values():
        assert child.name == "trial-centre+cloud"
        assert (child.local_ts, child.remote_ts) == (("10.101.0.1/32[icmp]",), ("10.50.0.0/24[icmp]",))


def test_that_without_an_address_there_it_is_said_and_not_asked() -> None:
    document = _document(_probed(pair("shared", SHARED, "centre", "cloud"), ECHO))
    dataplane, conditions = _compiled(document, Link("lan0", True))
    assert dataplane.services == () and "ServerNotAsked" in conditions


def test_that_nothing_is_asked_without_a_probe() -> None:
    dataplane, _ = _compiled(_document(*PAIRS))
    assert dataplane.services == ()
    assert not any(c.name.startswith("trial") for conn in dataplane.tunnels.connections for c in conn.children)


@pytest.mark.parametrize(
    ("found", "probe", "path", "reason"),
    [
        (pair("a", SHARED, "centre", "cloud"), ServiceProbe("icmp"), "probe.address", "is more than one host"),
        (
            pair("a", SHARED, "centre"),
            ServiceProbe("icmp", address="10.51.0.1"),
            "probe.address",
            "is not in 10.50.0.0/24",
        ),
        (pair("a", SHARED, "centre"), ServiceProbe("icmp", address="x"), "probe.address", "is no IP address"),
        (pair("a", SHARED, "centre"), ServiceProbe("tcp", address="10.50.0.1"), "probe.port", "needs a port"),
        (pair("a", SHARED, "centre"), ServiceProbe("tcp", 70000, "10.50.0.1"), "probe.port", "65535"),
        (pair("a", SHARED, "centre", protocol="udp"), ECHO, "probe.kind", "does not let this site start an echo"),
        (pair("a", SHARED, "centre", initiator="remote"), ECHO, "probe.kind", "does not let this site start"),
        (
            pair("a", SHARED, "centre", protocol="tcp", ports=("80",)),
            ServiceProbe("tcp", 443, "10.50.0.1"),
            "probe.kind",
            "start tcp port 443",
        ),
    ],
)
def test_that_a_probe_that_cannot_be_is_refused_by_field(
    found: Pair, probe: ServiceProbe, path: str, reason: str
) -> None:
    with pytest.raises(DocumentError) as refused:
        decode(encode(_document(_probed(found, probe))))
    assert refused.value.path == f"pairs[0].{path}" and reason in refused.value.reason


def test_that_a_single_host_needs_no_address() -> None:
    document = _document(_probed(pair("a", "10.50.0.10/32", "centre"), ServiceProbe("icmp")))
    assert decode(encode(document)).pairs[0].probe == ServiceProbe("icmp")
    dataplane, _ = _compiled(document)
    assert [service.server for service in dataplane.services] == ["10.50.0.10"]
