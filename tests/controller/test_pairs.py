"""Permits become pairs: at both ends, for each IP version, and never in silence."""

from __future__ import annotations

import datetime as dt
import time

import pytest

from cpe_agent.model import document
from cpe_agent.model.document import Document, Pair
from cpe_controller.compile import rehearse
from cpe_controller.fields import NetworkError
from cpe_controller.parse import parse
from tests.controller.test_compile import _holds

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

WIDE = """\
network: blood
overlay: 10.255.0.0/16
management: {ssh_from: [10.10.0.0/24], time_servers: [ntp.example]}
hubs:
  centre:
    endpoints: {wan: {address: 198.51.100.10}, wan6: {address: "2001:db8:1::10"}}
    uplinks: {wan: {kind: wired}}
    hub_nat: true
    lans:
      servers: {subnet: 10.10.0.0/24, interface: lan0, check: 10.10.0.10}
      servers-6: {subnet: "fd00:10::/64", interface: lan0}
      shared: {subnet: 10.50.0.0/24, interface: lan1}
  cloud:
    endpoints: {wan: {address: 198.51.100.20}}
    uplinks: {wan: {kind: wired}}
    drain: true
    lans:
      servers: {subnet: 10.20.0.0/24, interface: lan0}
      shared: {subnet: 10.50.0.0/24, interface: lan1}
branches:
  hospital-1:
    uplinks: {wired: {kind: wired}}
    management: {ssh_from: [], metrics_from: [10.20.0.0/24]}
    lans:
      ward: {subnet: 10.101.0.0/24, interface: lan0}
      ward-6: {subnet: "fd00:101::/64", interface: lan0}
      lab: {subnet: 10.104.0.0/24, via: 10.101.0.254}
  van-1:
    uplinks: {lte: {kind: cellular}}
    lans: {crew: {subnet: 10.102.0.0/24, interface: lan0}}
services:
  records: {subnet: [10.10.0.0/24, "fd00:10::/64"], protocol: icmp, probe: {kind: icmp, address: 10.10.0.10}}
  archive: {subnet: "fd00:10::/64"}
  imaging: {subnet: 10.20.0.0/24, protocol: tcp, ports: [443]}
  directory: {subnet: 10.50.0.0/24}
permits:
"""


def _compiled(*permits: str) -> dict[str, Document]:
    documents = rehearse(parse(WIDE + "".join(f"  - {{{permit}}}\n" for permit in permits)), NOW)
    _holds(documents)
    return documents


def _pair(documents: dict[str, Document], site: str, pair_id: str) -> Pair:
    return next(pair for pair in documents[site].pairs if pair.id == pair_id)


def _ids(documents: dict[str, Document], site: str) -> list[str]:
    return [pair.id for pair in documents[site].pairs]


def test_a_dual_stack_service_gives_a_pair_for_each_ip_version() -> None:
    documents = _compiled("from: branches, to: records")
    wanted = ["hospital-1.ward>records", "hospital-1.ward-6>records", "hospital-1.lab>records", "van-1.crew>records"]
    assert _ids(documents, "centre") == wanted
    assert not documents["cloud"].pairs
    old, new = (_pair(documents, "hospital-1", f"hospital-1.{lan}>records") for lan in ("ward", "ward-6"))
    assert (old.remote, old.protocol) == ("10.10.0.0/24", "icmp")
    assert (new.local, new.remote, new.protocol) == ("fd00:101::/64", "fd00:10::/64", "icmpv6")
    assert old.probe == document.ServiceProbe("icmp", address="10.10.0.10")
    assert new.probe is None, "the address is of the other IP version"
    assert _pair(documents, "centre", old.id).probe is None, "the server is at that end"


def test_one_lan_of_a_site_may_be_named() -> None:
    documents = _compiled("from: hospital-1.lab, to: imaging, log: true", "from: branches.crew, to: imaging")
    assert _ids(documents, "cloud") == ["hospital-1.lab>imaging", "van-1.crew>imaging"]
    assert _pair(documents, "cloud", "hospital-1.lab>imaging").log
    assert documents["hospital-1"].lans[2] == document.Lan("lab", "10.104.0.0/24", interface="lan0", via="10.101.0.254")


def test_a_hub_reaches_a_service_at_the_other() -> None:
    # Its shared LAN is left out: the other hub has that itself.
    documents = _compiled("from: centre, to: imaging, protocol: tcp, ports: [5432, 6000-6010], initiator: either")
    pair_id = "centre.servers>imaging:tcp/5432,6000-6010"
    assert _ids(documents, "centre") == _ids(documents, "cloud") == [pair_id]
    dialling = _pair(documents, "cloud", pair_id)
    assert (dialling.local, dialling.remote, dialling.peers) == ("10.20.0.0/24", "10.10.0.0/24", ("centre",))
    assert dialling.ports == ("5432", "6000-6010")
    assert documents["cloud"].peers["centre"].dial
    assert not documents["hospital-1"].pairs


def test_a_router_is_managed_by_pairs_like_any_other() -> None:
    documents = _compiled(
        "from: centre.servers, to: {site: branches}, protocol: tcp, ports: 22",
        "from: {site: hospital-1}, to: imaging",
        "from: van-1, to: {site: [centre, cloud]}, protocol: icmp",
        "from: hubs, to: {site: van-1}, protocol: icmp",
    )
    hospital, van = documents["hospital-1"], documents["van-1"]
    managed = _pair(documents, "hospital-1", "centre.servers>hospital-1.router:tcp/22")
    assert (managed.local, managed.remote) == (f"{hospital.site_address}/32", "10.10.0.0/24")
    assert (managed.initiator, managed.peers, managed.ports) == ("remote", ("centre",), ("22",))
    assert _pair(documents, "centre", managed.id).initiator == "local"
    assert _pair(documents, "hospital-1", "hospital-1.router>imaging").local == f"{hospital.site_address}/32"
    assert _pair(documents, "van-1", "van-1.crew>cloud.router:icmp").remote == f"{documents['cloud'].site_address}/32"
    # A subnet that both hubs have is one pair, served by both.
    shared = _pair(documents, "van-1", "centre.shared>van-1.router:icmp")
    assert (shared.local, shared.peers) == (f"{van.site_address}/32", ("centre", "cloud"))


def test_ids_stay_when_permits_come_and_go() -> None:
    every = ["from: van-1, to: imaging", "from: van-1, to: imaging, protocol: udp", "from: van-1, to: directory"]
    all_ids = set(_ids(_compiled(*every), "van-1"))
    assert len(all_ids) == 3
    for left_out in every:
        kept = set(_ids(_compiled(*(permit for permit in every if permit != left_out)), "van-1"))
        assert kept < all_ids and len(kept) == 2


def test_management_drain_and_nat_are_each_site_s_own() -> None:
    documents = _compiled("from: branches, to: imaging")
    assert documents["van-1"].management.ssh_from == ("10.10.0.0/24",)
    assert documents["hospital-1"].management == document.Management(
        metrics_from=("10.20.0.0/24",), time_servers=("ntp.example",)
    )
    assert (documents["cloud"].drain, documents["centre"].drain) == (True, False)
    assert (documents["cloud"].hub_nat, documents["centre"].hub_nat) == (False, True)
    assert documents["centre"].lans[0].check == "10.10.0.10"


MISTAKES = [
    # (permit, field, what the error says)
    ("from: van-1, to: archive", "from", "van-1 has IPv4 only; archive is IPv6"),
    ("from: branches, to: archive", "from", "van-1 has IPv4 only"),
    ("from: hospital-1.ward, to: archive", "from", "hospital-1.ward is IPv4"),
    ("from: {site: hospital-1}, to: archive", "from", "has IPv4 only"),
    ("from: hospital-1.ward-6, to: {site: centre}", "from", "hospital-1.ward-6 is IPv6"),
    ("from: hospital-1.bed, to: imaging", "from", "use hospital-1.ward, hospital-1.ward-6, hospital-1.lab"),
    ("from: hospital-2, to: imaging", "from", "is no site; use branches, hubs, centre"),
    ("from: hospital-1, to: {site: van-1}", "from", "one end must be a hub"),
    ("from: hospital-1, to: hospital-1", "to", "use {site: hospital-1} for its router"),
    ("from: {site: centre}, to: {site: centre}", "from", "has all of `to` itself"),
    ("from: cloud, to: imaging", "from", "has all of `to` itself"),
    ("from: centre.shared, to: imaging", "from", "cloud has 10.50.0.0/24 itself"),
    ("from: centre, to: {site: van-1}", "from", "10.50.0.0/24 is at cloud too; name every hub that has it, or only"),
    ("from: van-1, to: imaging, log: maybe", "log", "use true, false"),
    ("from: van-1, to: imaging, ports: []", "ports", "lists no port"),
    ("from: van-1, to: imaging, protocol: 300", "protocol", "from 0 to 255"),
    ("from: [], to: imaging", "from", "names no site"),
    ("from: {site: []}, to: imaging", "from.site", "names no site"),
    ("from: {host: van-1}, to: imaging", "from.host", "is not known; use site"),
]


@pytest.mark.parametrize(("permit", "field", "says"), MISTAKES, ids=[mistake[0] for mistake in MISTAKES])
def test_a_permit_that_comes_to_nothing_is_named(permit: str, field: str, says: str) -> None:
    with pytest.raises(NetworkError) as caught:
        _compiled("from: hospital-1, to: imaging", permit)
    assert caught.value.field == f"permits[1].{field}"
    assert caught.value.line == len(WIDE.splitlines()) + 2
    assert says in caught.value.reason


def test_the_same_permitted_twice_is_named() -> None:
    with pytest.raises(NetworkError, match=r"permits\[1\]: van-1.crew to imaging is permitted in line .* either"):
        _compiled(
            "from: branches, to: imaging", "from: van-1.crew, to: imaging, initiator: to, ports: 443, protocol: tcp"
        )


PROBE = "{kind: icmp, address: 10.10.0.10}"
SITE_MISTAKES = [
    # (in WIDE, written instead, field, what the error says)
    ("via: 10.101.0.254", "via: 10.109.0.254", "branches.hospital-1.lans.lab.via", "add the LAN that the router is in"),
    ("via: 10.101.0.254", "via: 10.101.0.254, interface: lan7", "branches.hospital-1.lans.lab.via", "on lan0"),
    ("via: 10.101.0.254", "via: 10.104.0.1", "branches.hospital-1.lans.lab.via", "in no LAN"),
    ("via: 10.101.0.254", 'via: "fd00:101::1"', "branches.hospital-1.lans.lab.via", "no IPv4 address"),
    ("check: 10.10.0.10", "check: 10.20.0.10", "hubs.centre.lans.servers.check", "is not in 10.10.0.0/24"),
    ('[10.10.0.0/24, "fd00:10::/64"]', "[10.10.0.0/24, 10.50.0.0/24]", "services.records.subnet[1]", "second IPv4"),
    ('[10.10.0.0/24, "fd00:10::/64"]', '[10.20.0.0/24, "fd00:10::/64"]', "services.records.subnet", "no hub has all"),
    (PROBE, "{kind: tcp}", "services.records.probe", "needs"),
    (PROBE, "{kind: icmp, port: 443}", "services.records.probe.port", "leave it out"),
    (PROBE, "{kind: tcp, port: 70000}", "services.records.probe.port", "65535"),
    (PROBE, "{kind: icmp}", "services.records.probe", "more than one host"),
    (PROBE, "{kind: icmp, address: 10.11.0.10}", "services.records.probe.address", "is not in 10.10.0.0/24"),
    (PROBE, "{kind: icmp, address: server}", "services.records.probe.address", "is no IP address"),
    (PROBE, "{kind: tcp, port: 443, address: 10.10.0.10}", "services.records.probe", "it speaks icmp"),
    ("drain: true", "drain: yes", "hubs.cloud.drain", "use true, false"),
    ("[ntp.example]", "[ntp example]", "management.time_servers[0]", "no address or host name"),
    (
        "metrics_from: [10.20.0.0/24]",
        "metrics_from: [10.20.0.1/24]",
        "branches.hospital-1.management.metrics_from[0]",
        "w",
    ),
    ("  van-1:", "  hubs:", "branches.hubs", "means every hub"),
]


@pytest.mark.parametrize(("good", "bad", "field", "says"), SITE_MISTAKES, ids=[each[1] for each in SITE_MISTAKES])
def test_a_mistake_in_a_site_or_service_is_named(good: str, bad: str, field: str, says: str) -> None:
    assert good in WIDE
    text = WIDE.replace(good, bad, 1) + "  - {from: hospital-1, to: imaging}\n"
    with pytest.raises(NetworkError) as caught:
        rehearse(parse(text), NOW)
    assert caught.value.field == field
    assert says in caught.value.reason
    assert bad in text.splitlines()[caught.value.line - 1]


def test_hundreds_of_pairs_per_branch_and_ten_thousand_on_a_hub() -> None:
    branches = "".join(
        f"  b{n}: {{uplinks: {{a: {{kind: wired}}}}, lans: {{a: {{subnet: 10.{128 + n}.0.0/16, interface: lan0}}}}}}\n"
        for n in range(34)
    )
    head, tail = WIDE.split("services:\n")
    permits = "".join(f"  - {{from: branches, to: directory, protocol: tcp, ports: {1000 + n}}}\n" for n in range(300))
    text = f"{head}{branches}services:\n{tail}{permits}"
    started = time.process_time()
    documents = rehearse(parse(text), NOW)
    assert time.process_time() - started < 10
    assert len(documents["b0"].pairs) == 300
    assert len(documents["cloud"].pairs) == 300 * 37
    assert len(document.encode(documents["cloud"])) < document.MAX_BYTES
