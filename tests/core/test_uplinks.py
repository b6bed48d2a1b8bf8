"""Which interface is which uplink, and does it lead anywhere?"""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpe_agent.core.compile import compile_dataplane
from cpe_agent.core.uplinks import found_uplinks, interfaces, kind_of, resolve
from cpe_agent.model.condition import Severity
from cpe_agent.model.dataplane import Rule
from cpe_agent.model.document import Document, Probing, Uplink
from cpe_agent.model.observed import Link, Links
from tests.core.documents import BRANCH, CENTRE, IPSEC, LAN, branch, hub, link, links

GATE = ("192.0.2.1",)


def document(**uplinks: Uplink) -> Document:
    return branch(uplinks=uplinks)


def wired(priority: int = 1, interface: str | None = None) -> Uplink:
    return Uplink("wired", priority, f"10.255.101.{priority}", interface=interface)


def cellular(priority: int = 2, interface: str | None = None) -> Uplink:
    return Uplink("cellular", priority, f"10.255.101.{priority}", interface=interface)


def uplink(name: str, number: int = 2, gateways: tuple[str, ...] = GATE) -> Link:
    return link(name, f"192.0.2.{number}/24", gateways=gateways)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("wwan0", "cellular"), ("wwp0s20u4", "cellular"), ("ppp0", "wired"), ("eth0", "wired"), ("enp1s0", "wired")],
)
def test_modems_are_known_by_their_names(name: str, kind: str) -> None:
    assert kind_of(name) == kind


@pytest.mark.parametrize(
    ("uplinks", "found", "bound"),
    [
        # Named: that one, there or not.
        ({"a": wired(1, "eth0")}, [uplink("eth1")], {"a": "eth0"}),
        # Its own name.
        ({"eth0": wired()}, [uplink("eth0", gateways=()), uplink("eth1")], {"eth0": "eth0"}),
        # By kind, whatever it is called now.
        ({"dsl": wired(), "lte": cellular()}, [uplink("ppp0"), uplink("wwan0")], {"dsl": "ppp0", "lte": "wwan0"}),
        ({"dsl": wired(), "lte": cellular()}, [uplink("ppp7"), uplink("wwan3")], {"dsl": "ppp7", "lte": "wwan3"}),
        # A modem is an uplink also before its default route is there; a wired interface is not.
        ({"lte": cellular()}, [uplink("wwan0", gateways=())], {"lte": "wwan0"}),
        ({"dsl": wired()}, [uplink("eth5", gateways=())], {"dsl": "dsl"}),
        # A default route without gateway is one.
        ({"dsl": wired()}, [uplink("ppp0", gateways=("",))], {"dsl": "ppp0"}),
        # Several: best uplink first, by name; none twice.
        ({"x": wired(2), "y": wired(1)}, [uplink("eth1"), uplink("eth2")], {"y": "eth1", "x": "eth2"}),
        ({"x": wired(2), "y": wired(1)}, [uplink("eth1")], {"y": "eth1", "x": "x"}),
        ({"x": wired(2, "eth1"), "y": wired(1)}, [uplink("eth1"), uplink("eth2")], {"y": "eth2", "x": "eth1"}),
        ({"x": wired(2, "eth1"), "y": wired(1)}, [uplink("eth1")], {"y": "y", "x": "eth1"}),
        # A LAN with a default route of its own is still a LAN; so are lo and our own devices.
        ({"dsl": wired()}, [link("lan0", "10.101.0.1/24", gateways=("10.101.0.9",))], {"dsl": "dsl"}),
        ({"dsl": wired()}, [link("ipsec0", "10.9.0.1/24", gateways=("",))], {"dsl": "dsl"}),
        ({"lte": cellular()}, [uplink("eth0")], {"lte": "lte"}),
    ],
)
def test_which_interface_is_which_uplink(uplinks: dict[str, Uplink], found: list[Link], bound: dict[str, str]) -> None:
    there = links(*(one for one in (LAN, IPSEC) if one.name not in {other.name for other in found}), *found)
    assert interfaces(document(**uplinks), there) == bound


_links = st.dictionaries(
    st.sampled_from(["eth0", "eth1", "ppp0", "wwan0", "wwan1", "lan0", "lo", "ipsec0", "a", "b"]),
    st.sampled_from([(), ("",), GATE]),
)
_uplinks = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    st.builds(Uplink, st.sampled_from(["wired", "cellular"]), st.integers(1, 3), st.just("10.255.101.1")),
)


@given(found=_links, uplinks=_uplinks)
def test_no_two_uplinks_share_and_none_takes_a_lan(
    found: dict[str, tuple[str, ...]], uplinks: dict[str, Uplink]
) -> None:
    there = Links({name: Link(name, True, (), gateways) for name, gateways in found.items()})
    asked = document(**uplinks)
    bound = interfaces(asked, there)
    assert set(bound) == set(uplinks) and len(set(bound.values())) == len(bound)
    assert not {"lan0", "lo", "ipsec0"} & set(bound.values())
    assert bound == interfaces(asked, Links(dict(reversed(there.by_name.items())))), "whatever the kernel's order"


def test_what_was_found_is_said_locked_and_used() -> None:
    asked = document(dsl=wired(), lte=cellular())
    there = links(uplink("ppp3"), link("wwan1", "100.64.1.2/30", gateways=("",)), LAN, IPSEC)
    plan, conditions = compile_dataplane(asked, there, BRANCH)
    assert [(c.type, c.subject, c.severity) for c in conditions] == [
        ("UplinkFound", "dsl", Severity.OK),
        ("UplinkFound", "lte", Severity.OK),
    ]
    assert {s.name: s.elements for s in plan.ruleset.sets}["uplinks"] == {"ppp3", "wwan1"}
    assert {Rule(4, 110, 15501, iif="ppp3"), Rule(4, 110, 15501, iif="wwan1")} <= plan.routes.rules
    assert {str(probe.path).partition(".")[0] for probe in plan.probes} == {"dsl", "lte"}
    # The same uplink under another name: the same plan as if the document had named it.
    named = document(dsl=wired(interface="ppp3"), lte=cellular(interface="wwan1"))
    assert compile_dataplane(named, there, BRANCH)[0] == plan


def test_a_missing_interface_says_what_was_looked_for() -> None:
    (missing,) = resolve(document(dsl=wired()), links(LAN))[1]
    assert (missing.type, missing.reason) == (
        "UplinkMissing",
        "there is no interface dsl, and no other wired one with a default route",
    )


@pytest.mark.parametrize(
    ("found", "leads_out", "condition"),
    [
        (uplink("eth0"), True, None),
        (uplink("eth0", gateways=("",)), True, None),
        (uplink("eth0", gateways=()), False, "UplinkNoGateway"),
        (link("eth0", "192.0.2.2/24", gateways=GATE, up=False), False, "UplinkDown"),
        (link("eth0", "2001:db8::2/64", gateways=("2001:db8::1",)), True, None),
        # The hub is its neighbour.
        (link("eth0", "198.51.100.11/29"), True, None),
    ],
)
def test_an_uplink_leads_out_only_with_a_way(found: Link, leads_out: bool, condition: str | None) -> None:
    (resolved,), conditions = resolve(document(eth0=wired()), links(found, LAN))
    assert resolved.leads_out is leads_out
    assert [c.type for c in conditions] == ([condition] if condition else [])


def test_a_hub_that_is_a_name_is_on_nobodys_network() -> None:
    endpoint = msgspec.structs.replace(CENTRE.endpoints[0], address="centre.example")
    asked = branch(
        uplinks={"eth0": wired()},
        peers={"centre": msgspec.structs.replace(CENTRE, endpoints=(endpoint,))},
        pairs=(),
    )
    (resolved,), _ = resolve(asked, links(uplink("eth0", gateways=()), LAN))
    assert not resolved.leads_out


def test_before_a_document_uplinks_are_found_all_the_same() -> None:
    there = links(uplink("eth0"), uplink("wwan0", gateways=()), link("lan0", "10.1.0.1/24"), IPSEC)
    assert found_uplinks(there, ()) == ("eth0", "wwan0")


def test_hubs_find_theirs_too() -> None:
    there = links(link("ens5", "198.51.100.10/29", gateways=("198.51.100.9",)), link("lan0"), link("lan1"), IPSEC)
    assert interfaces(hub(), there) == {"wan": "ens5"}


def test_dpd_waits_longer_than_standby_probes_do() -> None:
    slow = msgspec.structs.replace(cellular(), probe=Probing(standby_interval_ms=120_000))
    asked = document(eth0=wired(), wwan0=slow)
    there = links(uplink("eth0"), link("wwan0", "100.64.1.2/30", gateways=("",)), LAN, IPSEC)
    found = compile_dataplane(asked, there, BRANCH)[0].tunnels.connections
    assert {c.ike.dpd_s for c in found if c.stem.startswith("wwan0.")} == {180}
    assert {c.ike.dpd_s for c in found if c.stem.startswith("eth0.")} == {20}
