"""network.yaml: the example is good, and every mistake is named with its line, its field and the mend."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
import yaml

from cpe_controller import fields, setup
from cpe_controller.compile import rehearse
from cpe_controller.fields import NetworkError
from cpe_controller.network import Network
from cpe_controller.parse import parse

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def test_the_example_is_good(text: str) -> None:
    network = parse(text)
    assert [hub.name for hub in network.hubs] == ["centre", "cloud"]
    assert [branch.name for branch in network.branches] == ["hospital-1", "van-1"]
    assert network.services[2].at == ("centre", "cloud")
    assert [(uplink.name, uplink.priority) for uplink in network.branches[0].uplinks] == [("wired", 1), ("lte", 2)]
    assert [(end.site, end.lan) for end in network.permits[0].ends] == [("hospital-1", "ward"), ("van-1", "crew")]
    assert network.permits[0].ports == ("80", "443")
    assert rehearse(network, NOW).keys() == {"centre", "cloud", "hospital-1", "van-1"}


MISTAKES = [
    # (in the example, written instead, field, what the error says)
    ("subnet: 10.101.0.0/24", "subnet: 10.101.0.1/24", "branches.hospital-1.lans.ward.subnet", "write 10.101.0.0/24"),
    ("subnet: 10.101.0.0/24", "subnet: 10.12.0.0", "branches.hospital-1.lans.ward.subnet", "10.12.0.0/32 if that one"),
    ("subnet: 10.101.0.0/24", "subnet: 127.0.0.0/8", "branches.hospital-1.lans.ward.subnet", "no range that machines"),
    ("subnet: 10.101.0.0/24", "subnet: 224.0.0.0/24", "branches.hospital-1.lans.ward.subnet", "no range that machines"),
    ("subnet: 10.101.0.0/24", "subnet: 240.0.0.0/24", "branches.hospital-1.lans.ward.subnet", "no range that machines"),
    ("overlay: 10.255.0.0/16", "overlay: 127.0.0.0/16", "overlay", "no range that machines"),
    (
        "10.102.0.0/24, interface: lan0",
        "10.102.0.0/24, interface: lte",
        "branches.van-1.lans.crew.interface",
        "lte is uplink lte's",
    ),
    (
        "10.102.0.0/24, interface: lan0",
        "10.102.0.0/24, interface: a-very-long-name",
        "branches.van-1.lans.crew.interface",
        "1 to 15 of letters",
    ),
    (
        "      lte: {kind: cellular}",
        "      lte: {kind: cellular, interface: lo}",
        "branches.van-1.uplinks.lte.interface",
        "leads nowhere",
    ),
    (
        "      lte: {kind: cellular}",
        "      lte: {kind: cellular, priority: -1}",
        "branches.van-1.uplinks.lte.priority",
        "0 to 65535",
    ),
    (
        "      lte: {kind: cellular}",
        "      lte: {kind: cellular, monthly_bytes: 1000}",
        "branches.van-1.uplinks.lte.monthly_bytes",
        "1000000 to",
    ),
    ("confirm_s: 120", "confirm_s: 1000000", "policy.confirm_s", "1 to 86400"),
    ("https://198.51.100.202:8443", "https://10.101.0.7:8443", "controllers[0]", "of branches.hospital-1.lans.ward"),
    ("https://198.51.100.202:8443", "https://10.255.0.7:8443", "controllers[0]", "of overlay"),
    ("subnet: 10.101.0.0/24", "subnet: ward", "branches.hospital-1.lans.ward.subnet", "10.1.0.0/24"),
    ("subnet: 10.101.0.0/24", "subnet: ''", "branches.hospital-1.lans.ward.subnet", "is empty"),
    ("subnet: 10.102.0.0/24", "subnet: 10.101.0.128/25", "branches.van-1.lans.crew.subnet", "ward; give it a range"),
    ("subnet: 10.102.0.0/24", "subnet: 10.101.0.0/24", "branches.van-1.lans.crew.subnet", "overlaps 10.101.0.0/24"),
    ("subnet: 10.102.0.0/24", "subnet: 10.0.0.0/8", "branches.van-1.lans.crew.subnet", "overlaps 10."),
    ("subnet: 10.102.0.0/24", "subnet: 10.255.3.0/24", "branches.van-1.lans.crew.subnet", "of overlay"),
    (
        "subnet: 10.20.0.0/24, interface",
        "subnet: 10.10.0.0/25, interface",
        "hubs.cloud.lans.servers.subnet",
        "overlaps",
    ),
    ("address: 198.51.100.20", "address: 198.51.100.10", "hubs.cloud.endpoints.wan", "has its own"),
    ("address: 198.51.100.20", "address: 10.20.0.9", "hubs.cloud.endpoints.wan.address", "public address"),
    ("address: 198.51.100.20", "address: a b", "hubs.cloud.endpoints.wan.address", "no address"),
    *(
        ("address: 198.51.100.20", f"address: {address}", "hubs.cloud.endpoints.wan.address", says)
        for address, says in (
            ("192.0.2.300", "no IP address"),
            ("192.0.2", "no IP address"),
            ("3221225994", "no IP address"),
            ("hub.0x7f", "no IP address"),
            ("192.0.2.10:4500", "without a port"),
            ("bad_host!", "no address or host name"),
            ("east..x", "no address or host name"),
            ("0.0.0.0", "no single machine's"),
            ("0.0.0.1", "no single machine's"),
            ("255.255.255.255", "no single machine's"),
            ("224.0.0.1", "no single machine's"),
            ("'ff02::1'", "no single machine's"),
            ("'::ffff:192.0.2.1'", "no single machine's"),
            ("'fe80::1%eth0'", "without %"),
            ("'fe80::1'", "from elsewhere"),
            ("127.0.0.1", "from elsewhere"),
            ("localhost", "this machine itself"),
        )
    ),
    ("dials: [centre]", "dials: [centra]", "hubs.cloud.dials[0]", "use centre"),
    ("dials: [centre]", "dails: [centre]", "hubs.cloud.dails", "is not known; did you mean dials?"),
    ("      lte: {kind: cellular}", "      lte: {kind: 4g}", "branches.van-1.uplinks.lte.kind", "wired, cellular"),
    ("      lte: {kind: cellular}", "      lte: {}", "branches.van-1.uplinks.lte", "has no 'kind'"),
    ("      lte: {kind: cellular}", "      LTE: {kind: cellular}", "branches.van-1.uplinks.LTE", "is no name"),
    (
        "kind: cellular, priority: 2",
        "kind: cellular, priority: best",
        "branches.hospital-1.uplinks.lte.priority",
        "whole",
    ),
    ("kind: cellular, priority: 2", "kind: cellular, mtu: 5", "branches.hospital-1.uplinks.lte.mtu", "1280 to 9216"),
    ("misses: 3", "misses: 0", "probe.misses", "1 to 100"),
    ("failback_s: 60", "failback_s: -1", "policy.failback_s", "at least 0"),
    ("  van-1:\n", "  centre:\n", "branches.centre", "a hub too"),
    ("  van-1:\n", "  branches:\n", "branches.branches", "another name"),
    ("  van-1:\n", "  hospital-1:\n", "branches.hospital-1", "written twice"),
    ("at: [cloud]", "at: [centre]", "services.imaging.at[0]", "use cloud"),
    ("records: {subnet: 10.10.0.0/24", "records: {subnet: 10.11.0.0/24", "services.records.subnet", "no LAN of a hub"),
    ("8000-8010", "8010-8000", "services.imaging.ports[2]", "is no port"),
    ("protocol: tcp, ports: [80, 443]}", "ports: [80]}", "services.records.ports", "needs protocol"),
    ("to: records", "to: record", "permits[0].to", "use records, imaging, directory"),
    ("from: [hospital-1, van-1]", "from: [hospital-1, van-2]", "permits[2].from[1]", "is no site; use branches, hubs,"),
    ("from: [hospital-1, van-1]", "from: centre", "permits[2].from", "has all of `to` itself"),
    ("to: imaging}", "to: records}", "permits[1]", "permitted in line"),
    ("to: imaging}", "to: imaging, class: voice}", "permits[1].class", "is no class"),
    ("to: imaging}", "to: imaging, initiator: service}", "permits[1]", "ports are those of `from`"),
    ("overlay: 10.255.0.0/16", "overlay: 10.255.0.0/29", "overlay", "give it a larger range"),
    ("https://198.51.100.202:8443", "http://198.51.100.202", "controllers[0]", "https://"),
    *(
        ("https://198.51.100.202:8443", url, "controllers[0]", says)
        for url, says in (
            ("https://192.0.2.5", "has no port"),
            ("https://user:pw@x.example:8443", "names a user"),
            ("https://300.1.1.1:8443", "'300.1.1.1' is no IP address"),
            ("https://a_b:8443", "no address or host name"),
            ("https://x.example:8443/v1", "no controller"),
            ("https://x.example:8443?a", "no controller"),
        )
    ),
    ("network: blood ", "networks: blood ", "networks", "is not known"),
    (
        "policy: {",
        "classes: {bulk: {uplinks: lta}}\npolicy: {",
        "classes.bulk.uplinks",
        "use cellular, lte, wan, wired",
    ),
    ("policy: {", "classes: {bulk: {metered: no}}\npolicy: {", "classes.bulk.metered", "use always, budget, never"),
    ("network: blood ", "network: Blood ", "network", "is no name"),
]


@pytest.mark.parametrize(("good", "bad", "field", "says"), MISTAKES, ids=[mistake[1] for mistake in MISTAKES])
def test_a_mistake_is_named(text: str, good: str, bad: str, field: str, says: str) -> None:
    assert good in text
    wrong = text.replace(good, bad, 1)
    with pytest.raises(NetworkError) as caught:
        rehearse(parse(wrong, "my.yaml"), NOW)
    assert caught.value.field == field
    assert says in caught.value.reason
    assert str(caught.value).startswith(f"my.yaml:{caught.value.line}: {field}: ")
    assert bad.strip().partition("\n")[0] in wrong.splitlines()[caught.value.line - 1]


def test_what_is_no_yaml_is_named_by_its_line() -> None:
    with pytest.raises(NetworkError, match=r"my.yaml:2: is no YAML") as caught:
        parse("network: a\nhubs: [}\n", "my.yaml")
    assert caught.value.line == 2
    with pytest.raises(NetworkError, match="is empty"):
        parse("# nothing\n")
    with pytest.raises(NetworkError, match="write it as 'name: value' lines"):
        parse("[a, b]")


# The slow one everywhere, the quick one where libyaml is. In an order: pytest's workers compare what they collect.
LOADERS = list(dict.fromkeys((yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader))))


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("network: a\nhubs:\n\tcentre: {}\n", 3, "has a tab where only spaces may be; write spaces"),
        ("network: @a\n", 1, "has '@' where a value begins; put the value in quotes"),
        ("a: 1\nhubs: {x: {y: 1}\nbranches: 2\nc: 3\n", 2, "not closed, or lacks a comma before line 3"),
        ("a: 1\nhubs: {x: {y: 1}\n", 2, "not closed"),
        ("a: {b: 1 c: 2}\n", 1, "lacks a comma"),
        ("a: [1, 2\nb: 3\n", 1, "not closed"),
        ("a: 1\nbranches\n  van-1:\n    x: 1\n", 2, "has no ':' behind its name"),
        ("a: 1\nlifetime_days 30\nb: 2\n", 2, "has no ':' behind its name"),
        ("a: 'x\nb: 2\n", 1, "has a quote that is not closed"),
        ("a:\n  b: 1\n c: 2\n", 3, "is indented otherwise than the lines that it belongs to, from line 1 on"),
        ("a:\n  b: 1\n    c: 2\n", 3, "is indented deeper"),
        ("a:\n  - x\n  y: 1\n", 3, "is indented otherwise"),
        ("a: *x\n", 1, "has a '*'"),
        ("a: 1\n---\nb: 2\n", 2, "keep one"),
    ],
)
@pytest.mark.parametrize("loader", LOADERS)
def test_what_is_to_be_changed_is_said(
    text: str, line: int, says: str, loader: type[yaml.SafeLoader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fields, "_LOADER", loader)
    with pytest.raises(NetworkError) as caught:
        parse(text, "my.yaml")
    assert str(caught.value).startswith(f"my.yaml:{line}: is no YAML: ") and says in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"a: 1\nb: Universit\xe4t\n", ":2: has the byte 0xe4, which is no UTF-8 (Latin-1?); save the file as UTF-8"),
        ("a: 1\n".encode("utf-16"), ":1: is UTF-16; save it as UTF-8"),
        (b"a: 1\n\nb: \x00\n", ":3: has the control character U+0000; save the file as plain text in UTF-8"),
        (None, ": cannot be read: No such file or directory"),
    ],
)
def test_what_is_no_text_is_named_by_its_line(tmp_path: Path, raw: bytes | None, says: str) -> None:
    path = tmp_path / "network.yaml"
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(NetworkError) as caught:
        setup.read_network(path)
    assert str(caught.value) == f"{path}{says}"


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "network.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert setup.read_network(path) == text


def test_mistakes_that_have_nothing_to_do_with_each_other_are_told_at_once(text: str) -> None:
    wrong = text
    for good, bad in (
        ("network: blood ", "network: Blood "),
        ("policy: {failback_s: 60", "polcy: {failback: 60"),
        ("dials: [centre]", "dails: [centre]"),
        ("address: 198.51.100.20", "address: 192.0.2.300"),
        ("kind: cellular, priority: 2", "kind: 4g, priority: 2"),
        ("subnet: 10.102.0.0/24", "subnet: 10.102.0.0"),
    ):
        assert good in wrong
        wrong = wrong.replace(good, bad, 1)
    # Two sites of the template make one mistake of it.
    wrong = wrong.replace(
        "  van-1:\n", "  van-2: {template: hospital, lans: {ward: {subnet: 10.9.0.0/24}}}\n  van-1:\n", 1
    )
    with pytest.raises(NetworkError) as caught:
        parse(wrong, "my.yaml")
    told = str(caught.value).splitlines()
    assert [line.split(": ")[1] for line in told] == [
        "network",
        "polcy",
        "polcy.failback",
        "hubs.cloud.endpoints.wan.address",
        "hubs.cloud.dails",
        "branches.hospital-1.uplinks.lte.kind",
        "branches.van-1.lans.crew.subnet",
    ]
    assert [int(line.split(":")[1]) for line in told] == sorted(int(line.split(":")[1]) for line in told)


def test_permits_are_told_each_by_itself(text: str) -> None:
    wrong = text.replace("to: records}", "to: record}").replace("to: imaging}", "to: image}")
    with pytest.raises(NetworkError) as caught:
        parse(wrong, "my.yaml")
    assert [error.field for error in (caught.value, *caught.value.others)] == ["permits[0].to", "permits[1].to"]


def test_hundreds_of_mistakes_are_counted(text: str) -> None:
    many = "".join(f"  b{n}: {{uplinks: {{lte: {{kind: 4g}}}}, lans: {{}}}}\n" for n in range(300))
    with pytest.raises(NetworkError) as caught:
        parse(text.replace("  van-1:\n", f"{many}  van-1:\n", 1), "my.yaml")
    told = str(caught.value).splitlines()
    assert (len(told), told[-1], len(caught.value.others)) == (21, "and 280 more mistakes", 299)


def test_a_typing_error_is_recognised(text: str) -> None:
    with pytest.raises(NetworkError) as caught:
        parse(text.replace("permits:\n", "permit:\n", 1), "my.yaml")
    assert str(caught.value).endswith(": permit: is not known; did you mean permits?")
    with pytest.raises(NetworkError, match=r"hubs.cloud: has no 'uplinks'; add it"):
        parse("network: a\noverlay: 10.0.0.0/8\nhubs: {cloud: {lans: {}, endpoints: {}}}\n")


@pytest.mark.parametrize("address", ["203.0.113.9", "10.9.9.9", "hub.example", "HUB-1.Example", "'2001:db8::1'"])
def test_what_can_be_dialled_is_good(text: str, address: str) -> None:
    network = parse(text.replace("address: 198.51.100.20", f"address: {address}"))
    assert network.hubs[1].endpoints == (("wan", address.strip("'")),)


@pytest.mark.parametrize("url", ["https://[2001:db8::5]:8443", "https://x.example:443/", "https://127.0.0.1:8443"])
def test_where_a_controller_can_be(text: str, url: str) -> None:
    network = parse(text.replace("https://198.51.100.202:8443", url))
    assert network.controllers == (url.removesuffix("/"),)


def _dials(network: Network) -> dict[str, tuple[str, ...]]:
    return {hub.name: hub.dials for hub in network.hubs}


def test_of_two_hubs_exactly_one_dials(text: str) -> None:
    later = {"centre": (), "cloud": ("centre",)}
    assert _dials(parse(text)) == later
    silent = text.replace("    dials: [centre]\n", "")
    assert _dials(parse(silent)) == later
    centre = silent.replace("  centre:\n", "  centre:\n    dials: [cloud]\n", 1)
    assert _dials(parse(centre)) == {"centre": ("cloud",), "cloud": ()}
    assert _dials(parse(text.replace("dials: [centre]", "dials: []"))) == {"centre": ("cloud",), "cloud": ()}
    with pytest.raises(NetworkError, match="dial each other"):
        parse(text.replace("  centre:\n", "  centre:\n    dials: [cloud]\n", 1))
    with pytest.raises(NetworkError, match="do not dial each other"):
        parse(
            silent.replace("  centre:\n", "  centre:\n    dials: []\n", 1).replace(
                "  cloud:\n", "  cloud:\n    dials: []\n"
            )
        )


def test_a_subnet_has_one_list_of_hubs(text: str) -> None:
    second = text.replace("permits:", "  extra: {subnet: 10.50.0.0/25, at: [cloud]}\npermits:")
    with pytest.raises(NetworkError, match=r"services.extra: .* the same hubs in the same order"):
        parse(second)


def test_standby_paths_on_metered_uplinks_are_asked_seldom(text: str) -> None:
    documents = rehearse(parse(text), NOW)
    uplinks = documents["hospital-1"].uplinks
    assert (uplinks["wired"].probe.standby_interval_ms, uplinks["lte"].probe.standby_interval_ms) == (1000, 120_000)
    assert uplinks["lte"].probe.active_interval_ms == 100
    # DPD stays silent at both ends.
    assert documents["hospital-1"].ipsec.dpd_s == 20 and documents["centre"].ipsec.dpd_s == 180


def test_what_is_written_holds_for_every_uplink_without_its_own(text: str) -> None:
    written = text.replace("misses: 3}", "misses: 3, standby_interval_ms: 500}")
    documents = rehearse(parse(written), NOW)
    assert {u.probe.standby_interval_ms for u in documents["hospital-1"].uplinks.values()} == {500}
    assert documents["centre"].ipsec.dpd_s == 20
    own = written.replace(
        "lte: {kind: cellular, priority: 2}", "lte: {kind: cellular, probe: {standby_interval_ms: 700}}"
    )
    assert rehearse(parse(own), NOW)["hospital-1"].uplinks["lte"].probe.standby_interval_ms == 700
