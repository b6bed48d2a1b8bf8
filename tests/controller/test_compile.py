"""Documents: what holds for every network, on the example and on networks that hypothesis makes up."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpe_agent.model import document
from cpe_agent.model.document import Document
from cpe_agent.model.document_check import decode
from cpe_controller.addresses import allocate
from cpe_controller.compile import rehearse
from cpe_controller.fields import NetworkError
from cpe_controller.parse import parse
from tests.controller.conftest import EXAMPLE

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
BRANCH_LANS = ("hospital-1.ward", "van-1.crew")
SWAPPED = {"local": "remote", "remote": "local", "either": "either"}


def _holds(documents: dict[str, Document]) -> None:
    """The two ends of everything agree, and no inner address is used twice."""
    for site, mine in documents.items():
        assert decode(document.encode(mine)) == mine
        for name, peer in mine.peers.items():
            theirs = documents[name]
            assert peer.identity == f"{name}.{mine.network}.cpe"
            assert peer.site_address == theirs.site_address
            assert theirs.peers[site].dial is not peer.dial
            assert peer.endpoints == (theirs.endpoints if peer.dial else ())
            paths = {uplink.path_address for uplink in theirs.uplinks.values()}
            assert set(peer.path_addresses) == (set() if peer.dial else paths)
            assert set(peer.lans) <= {lan.subnet for lan in theirs.lans}
            assert not set(peer.lans) & {lan.subnet for lan in mine.lans}
        assert len({pair.id for pair in mine.pairs}) == len(mine.pairs)
        for pair in mine.pairs:
            for name in pair.peers:
                [mirrored] = [other for other in documents[name].pairs if other.id == pair.id]
                assert (mirrored.local, mirrored.remote) == (pair.remote, pair.local)
                assert mirrored.initiator == SWAPPED[pair.initiator]
                assert (mirrored.protocol, mirrored.ports, mirrored.class_) == (pair.protocol, pair.ports, pair.class_)
                assert mirrored.log == pair.log
                assert site in mirrored.peers
    counts = Counter(address for each in documents.values() for address in _addresses(each).values())
    assert max(counts.values()) == 1


def _addresses(mine: Document) -> dict[str, str]:
    found = {"site": mine.site_address}
    found |= {f"path/{name}": uplink.path_address for name, uplink in mine.uplinks.items()}
    for endpoint in mine.endpoints:
        found |= {f"probe/{endpoint.name}": endpoint.probe_address, f"ready/{endpoint.name}": endpoint.ready_address}
    return found


def test_the_example(text: str) -> None:
    documents = rehearse(parse(text), NOW)
    _holds(documents)
    hospital, centre, cloud = documents["hospital-1"], documents["centre"], documents["cloud"]
    assert [(pair.id, pair.peers) for pair in hospital.pairs] == [
        ("hospital-1.ward>records", ("centre",)),
        ("hospital-1.ward>imaging", ("cloud",)),
        ("hospital-1.ward>directory", ("centre", "cloud")),
    ]
    assert {pair.id for pair in centre.pairs} == {f"{b}>{s}" for b in BRANCH_LANS for s in ("records", "directory")}
    assert hospital.peers["centre"].dial and hospital.peers["cloud"].dial
    assert cloud.peers["centre"].dial and not centre.peers["cloud"].dial
    assert centre.peers["cloud"].lans == ("10.20.0.0/24",)
    assert hospital.peers["cloud"].lans == ("10.20.0.0/24", "10.50.0.0/24")
    assert centre.expires_at - centre.issued_at == dt.timedelta(days=90)
    assert centre.uplinks["wan"].interface is None
    assert all(ipaddress.ip_address(a) in ipaddress.ip_network("10.255.0.0/16") for a in _addresses(centre).values())


def test_a_second_permit_for_the_same_service_has_an_id_of_its_own(text: str) -> None:
    more = "  - {from: van-1, to: records, initiator: service, protocol: tcp, ports: 9100}\n"
    documents = rehearse(parse(text + more), NOW)
    _holds(documents)
    second = next(pair for pair in documents["van-1"].pairs if pair.id == "van-1.crew>records:tcp/9100")
    assert (second.initiator, second.ports) == ("remote", ("9100",))


def test_addresses_stay_when_sites_come_and_go(text: str) -> None:
    first = allocate(parse(text), {})
    earlier = """branches:
  aid-post:
    uplinks: {lte: {kind: cellular}}
    lans: {desk: {subnet: 10.99.0.0/24, interface: lan0}}
"""
    grown = allocate(parse(text.replace("branches:\n", earlier, 1)), first)
    assert {site: grown[site] for site in first} == first
    assert not set(grown["aid-post"].values()) & {a for site in first.values() for a in site.values()}
    shrunk = allocate(parse(text), grown)
    assert shrunk == first

    # What a site has just lost is not given to another in the same breath.
    moved = text.replace("branches:\n", earlier, 1).replace("      lte: {kind: cellular, priority: 2}\n", "")
    lost = first["hospital-1"]["path/lte"]
    assert lost not in {a for site in allocate(parse(moved), first).values() for a in site.values()}


def test_an_address_outside_a_new_overlay_is_replaced(text: str) -> None:
    first = allocate(parse(text), {})
    second = allocate(parse(text.replace("overlay: 10.255.0.0/16", "overlay: 10.254.0.0/16")), first)
    assert all(a.startswith("10.254.") for site in second.values() for a in site.values())


def test_a_full_overlay_is_an_error(text: str) -> None:
    # Site, path, probe and ready for two hubs; site and paths for two branches.
    with pytest.raises(NetworkError, match="13 addresses are needed"):
        allocate(parse(text.replace("overlay: 10.255.0.0/16", "overlay: 10.255.0.0/29")), {})
    allocate(parse(text.replace("overlay: 10.255.0.0/16", "overlay: 10.255.0.0/28")), {})


@st.composite
def _networks(draw: st.DrawFn) -> str:
    """The example with more branches, uplinks, LANs and permits."""
    names = draw(st.lists(st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True), unique=True, min_size=1, max_size=4))
    branches, permits = [], []
    for number, name in enumerate(f"b-{name}" for name in names):
        uplinks = draw(st.sampled_from(["{a: {kind: wired}}", "{a: {kind: wired}, b: {kind: cellular}}"]))
        lans = ", ".join(
            f"lan{i}: {{subnet: 10.{120 + number}.{i}.0/24, interface: lan{i}}}" for i in range(draw(st.integers(1, 3)))
        )
        branches.append(f"  {name}:\n    uplinks: {uplinks}\n    lans: {{{lans}}}\n")
        for service in draw(st.sets(st.sampled_from(["records", "imaging", "directory"]))):
            starts = draw(st.sampled_from(["branch", "either"]))
            permits.append(f"  - {{from: {name}, to: {service}, initiator: {starts}}}\n")
    text = EXAMPLE.read_text()
    head, tail = text.split("branches:\n", 1)[0], text[text.index("services:\n") : text.index("permits:\n")]
    return f"{head}branches:\n{''.join(branches)}{tail}" + (f"permits:\n{''.join(permits)}" if permits else "")


@settings(max_examples=40, deadline=None)
@given(_networks())
def test_every_network_holds(text: str) -> None:
    _holds(rehearse(parse(text), NOW))
