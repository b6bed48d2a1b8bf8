"""Are paths, bundles, selectors, routes and conflicts those that the document and the links ask for?"""

from __future__ import annotations

import ipaddress
import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpe_agent.core.compile import Site, compile_dataplane, with_active
from cpe_agent.core.uplinks import resolve
from cpe_agent.core.wanted_ruleset import answers
from cpe_agent.core.wanted_tunnels import connections, selectors
from cpe_agent.model import dataplane as dp
from cpe_agent.model.dataplane import Backend, Connection, Dataplane, Path, Route, Rule
from cpe_agent.model.document import Class, Document, DocumentError, Ipsec, Lan, Pair, Uplink
from cpe_agent.model.observed import Links
from tests.core import documents
from tests.core.documents import (
    BRANCH,
    CENTRE_LAN,
    HUB,
    HUB_LINKS,
    LAN,
    LINKS,
    LTE,
    OWN_LAN,
    SHARED,
    WIRED,
    branch,
    hub,
    link,
    links,
    pair,
)


def planned(document: Document, found: Links = LINKS, site: Site = BRANCH, ready: bool = True) -> Dataplane:
    return compile_dataplane(document, found, site, ready)[0]


def by_stem(plan: Dataplane) -> dict[str, Connection]:
    return {connection.stem: connection for connection in plan.tunnels.connections}


def test_a_path_for_each_uplink_and_endpoint() -> None:
    plan = planned(branch())
    # The cellular link has no IPv6: from it there is no path to the endpoint that is IPv6 alone.
    stems = {f"{u}.{e}" for u in ("wired", "lte") for e in ("centre.a", "centre.b", "cloud.a")} - {"lte.centre.b"}
    assert set(by_stem(plan)) == stems == {str(probe.path) for probe in plan.probes}
    found = by_stem(plan)
    assert found["wired.centre.a"].ike.local_addrs == ("203.0.113.18",)
    assert found["wired.centre.b"].ike.local_addrs == ("2001:db8:1::2",), "of the endpoint's IP version"
    assert {path for bundle in plan.bundles for path in bundle.paths} == {probe.path for probe in plan.probes}
    assert all(c.ike.remote_id.startswith(c.path.peer) for c in plan.tunnels.connections if c.path)
    assert found["wired.cloud.a"].ike.reauth_s == Ipsec().max_age_s


def test_probe_children_are_each_paths_own() -> None:
    children = [c.children[0] for c in planned(branch()).tunnels.connections]
    assert all(child.name == dp.PROBE_CHILD for child in children)
    assert len({(child.local_ts, child.remote_ts) for child in children}) == len(children)
    assert children[-1].local_ts == ("10.255.101.1/32",)
    assert children[-1].remote_ts == ("10.255.2.1/32", "10.255.2.2/32")


def test_bundles_are_pairs_with_the_same_ordered_peers() -> None:
    found = {bundle.name: bundle for bundle in planned(branch()).bundles}
    assert {name: bundle.pairs for name, bundle in found.items()} == {
        "centre": ("back", "web"),
        "cloud": ("cloud",),
        "centre+cloud": ("shared",),
    }
    # Best peer first, then best uplink, then endpoint as listed.
    assert [str(path) for path in found["centre+cloud"].paths] == [
        *("wired.centre.a", "wired.centre.b", "lte.centre.a"),
        *("wired.cloud.a", "lte.cloud.a"),
    ]


def test_a_shared_subnet_can_go_either_way() -> None:
    plan = planned(branch())
    for connection in plan.tunnels.connections:
        shared = [child for child in connection.children if child.name == "traffic-centre+cloud"]
        assert [child.remote_ts for child in shared] == [(SHARED,)]
        assert OWN_LAN in shared[0].local_ts and "10.255.0.101/32" in shared[0].local_ts


def test_a_class_that_shuns_metered_links_has_no_child_there() -> None:
    pairs = (pair("bulk", CENTRE_LAN, "centre", class_="bulk"),)
    plan = planned(branch(pairs=pairs, classes={"bulk": Class(metered="never")}))
    (bundle,) = plan.bundles
    assert {path.uplink for path in bundle.paths} == {"wired"}
    for stem, connection in by_stem(plan).items():
        assert (len(connection.children) == 2) == stem.startswith("wired.centre."), stem


def boxes(child: dp.Child) -> list[tuple[int, ...]]:
    """What a child claims: (local, remote, protocol, local port, remote port) as ranges, charon's cross product."""
    numbers = {"": (0, 255), "tcp": (6, 6), "udp": (17, 17), "icmp": (1, 1)}

    def read(selector: str) -> tuple[Any, str, tuple[int, int]]:
        subnet, _, tail = selector.partition("[")
        protocol, _, ports = tail.removesuffix("]").partition("/")
        first, _, last = ports.partition("-")
        return ipaddress.ip_network(subnet), protocol, (int(first), int(last or first)) if ports else (0, 65535)

    found: list[tuple[int, ...]] = []
    for (here, near, near_ports), (there, far, far_ports) in itertools.product(
        map(read, child.local_ts), map(read, child.remote_ts)
    ):
        if here.version == there.version and (near == far or not near or not far):
            found.append(
                (
                    *(int(here[0]), int(here[-1]), int(there[0]), int(there[-1])),
                    *(*numbers[near or far], *near_ports, *far_ports),
                )
            )
    return found


def claims(box: tuple[int, ...], packet: tuple[int, ...]) -> bool:
    return all(box[2 * i] <= packet[i] <= box[2 * i + 1] for i in range(5))


selections = st.lists(
    st.builds(
        lambda peers, class_, remote, proto, initiator: (peers, class_, remote, proto, initiator),
        st.sampled_from([("centre",), ("centre", "cloud"), ("cloud", "centre")]),
        st.sampled_from(["default", "voice"]),
        st.sampled_from([SHARED, "10.50.0.0/25"]),
        st.sampled_from(
            [(None, ()), ("tcp", ()), ("tcp", ("443",)), ("tcp", ("400-500",)), ("tcp", ("450-550",)), ("udp", ("53",))]
        ),
        st.sampled_from(["local", "remote", "either"]),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(selections, st.lists(st.sampled_from([0, 53, 420, 443, 470, 520]), min_size=4, max_size=4))
def test_no_two_bundles_claim_the_same_packet(some: list[Any], ports: list[int]) -> None:
    pairs = tuple(
        Pair(f"p{i}", OWN_LAN, remote, initiator, peers, protocol, of_responder, class_)
        for i, (peers, class_, remote, (protocol, of_responder), initiator) in enumerate(some)
    )
    document = branch(pairs=pairs, classes={"voice": Class()})
    try:
        plan = planned(document)
    except DocumentError as error:
        assert error.path.startswith("pairs[") and error.path.endswith(".remote")
        assert len({(p.peers, p.class_) for p in pairs}) > 1
        return
    children = by_stem(plan)["wired.centre.a"].children[1:]
    here, there = int(ipaddress.ip_address("10.101.0.7")), int(ipaddress.ip_address("10.50.0.7"))
    for protocol, near, far in itertools.product((1, 6, 17), ports[:2], ports[2:]):
        packet = (here, there, protocol, near, far)
        winners: list[tuple[tuple[int, ...], str]] = []
        for child in children:
            winners += [(box, child.name) for box in boxes(child) if claims(box, packet)]
        # The more specific wins; none may lie level with another bundle's, nor overlap it in part.
        for (one, name), (other, rival) in itertools.combinations(winners, 2):
            if name != rival:
                assert one != other
                sides = [(one[i], one[i + 1], other[i], other[i + 1]) for i in range(0, 10, 2)]
                # charon ranks by prefix length before it looks at ports: with other subnets the ports may cross.
                ranked = any((a, b) != (c, d) for a, b, c, d in sides[:2])
                assert ranked or all((a <= c and d <= b) or (c <= a and b <= d) for a, b, c, d in sides)


@pytest.mark.parametrize(
    ("first", "second", "refused"),
    [
        ((None, ()), (None, ()), True),
        (("tcp", ()), ("tcp", ()), True),
        (("tcp", ("443",)), ("tcp", ("443",)), True),
        (("tcp", ("443",)), ("6", ()), False),
        (("tcp", ()), ("6", ()), True),
        (("tcp", ("400-500",)), ("tcp", ("450-550",)), True),
        (("tcp", ("400-500",)), ("tcp", ("443",)), False),
        (("tcp", ("443",)), ("udp", ("443",)), False),
        (("tcp", ("443",)), (None, ()), False),
    ],
)
def test_who_may_claim_the_same_subnet(first: Any, second: Any, refused: bool) -> None:
    pairs = tuple(
        Pair(f"p{i}", OWN_LAN, SHARED, "local", ("centre",), protocol, ports, class_)
        for i, ((protocol, ports), class_) in enumerate(((first, "default"), (second, "voice")))
    )
    document = branch(pairs=pairs, classes={"voice": Class()})
    if not refused:
        assert len(selectors(document)) == 2
        return
    with pytest.raises(DocumentError) as caught:
        selectors(document)
    assert caught.value.path == "pairs[1].remote"


def test_the_hub_answers_what_the_branch_asks() -> None:
    """Whatever the dialler's children want lies whole in one child of the answering connection."""
    asking = planned(branch())
    (answering,) = planned(hub(), HUB_LINKS, HUB).tunnels.connections
    assert (answering.stem, answering.path) == ("hospital-1", None)
    offered = {child.name: child for child in answering.children}
    assert set(offered) == {dp.PROBE_CHILD, dp.TRAFFIC_CHILD}
    for connection in asking.tunnels.connections:
        if connection.path is None or connection.path.peer != "centre":
            continue
        assert (connection.ike.local_id, connection.ike.remote_id) == (answering.ike.remote_id, answering.ike.local_id)
        assert connection.ike.proposal == answering.ike.proposal
        assert connection.ike.esp_proposal == answering.ike.esp_proposal
        for child in connection.children:
            offer = offered[dp.PROBE_CHILD if child.name == dp.PROBE_CHILD else dp.TRAFFIC_CHILD]
            assert within(child.local_ts, offer.remote_ts) and within(child.remote_ts, offer.local_ts), child
    assert (answering.ike.rekey_s, answering.ike.reauth_s) == (0, 0), "only the dialler rekeys and replaces"


def within(narrow: tuple[str, ...], wide: tuple[str, ...]) -> bool:
    nets = [ipaddress.ip_network(text) for text in wide]
    return all(
        any(n.version == w.version and n.subnet_of(w) for w in nets)  # type: ignore[arg-type]
        for n in (ipaddress.ip_network(text.partition("[")[0]) for text in narrow)
    )


def test_only_the_kernel_needs_marks() -> None:
    for backend in Backend:
        (answering,) = planned(hub(), HUB_LINKS, Site("centre.city", backend)).tunnels.connections
        assert {c.unique_marks for c in answering.children if c.name != dp.PROBE_CHILD} == {backend is Backend.KERNEL}


def names(document: Document, found: Links = LINKS) -> set[str]:
    return {c.name for c in planned(document, found).tunnels.connections}


def test_a_connections_name_changes_with_its_ike_settings_only() -> None:
    before = names(branch())
    assert names(branch(version=8, pairs=documents.PAIRS[:1])) == before, "pairs are children's business"
    assert names(branch(lans=(*branch().lans, Lan("more", "10.101.1.0/24", "lan0")))) == before
    assert not names(branch(ipsec=Ipsec(suite="aes128gcm-ecp256"))) & before
    assert not names(branch(ipsec=Ipsec(max_age_s=3600))) & before
    moved = links(link("wired", "203.0.113.19/28", "2001:db8:1::2/64", gateways=("203.0.113.17",)), LTE, LAN)
    changed = {dp.stem_of(name) for name in names(branch(), moved) - before}
    assert changed == {"wired.centre.a", "wired.cloud.a"}
    assert {dp.stem_of(name) for name in before} == set(by_stem(planned(branch())))


def routes_of(plan: Dataplane, table: int) -> set[Route]:
    return {route for route in plan.routes.routes if route.table == table}


@pytest.mark.parametrize("found", [LINKS, links(WIRED, LTE, LAN), links()])
@pytest.mark.parametrize("backend", list(Backend))
def test_every_protected_subnet_leads_to_the_tunnel_or_nowhere(found: Links, backend: Backend) -> None:
    if backend.device == "cpe0" and "ipsec0" in found.by_name:
        found = Links({**found.by_name, "cpe0": link("cpe0")})
    plan = planned(branch(), found, Site("hospital-1.city", backend))
    overlay = routes_of(plan, dp.OVERLAY)
    protected = {CENTRE_LAN, SHARED, documents.CLOUD_LAN, documents.CENTRE_LAN_6, "10.255.0.1/32", "10.255.1.2/32"}
    for subnet in protected:
        assert Route(dp.OVERLAY, subnet) in overlay
        devices = {r.device for r in overlay if r.destination == subnet and r.device}
        # The dummy device is ours to make.
        there = backend is Backend.KERNEL or backend.device in found.by_name
        assert devices == ({backend.device} if there else set())
    assert all(r.metric < dp.METRIC_NOWHERE for r in overlay if r.device)
    for family, anywhere in ((4, "0.0.0.0/0"), (6, "::/0")):
        assert Route(dp.INBOUND, anywhere) in plan.routes.routes
        for interface in ("wired", "wwan0"):
            assert Rule(family, dp.PRIORITY_UPLINK_IN, dp.INBOUND, iif=interface) in plan.routes.rules
        assert Rule(family, dp.PRIORITY_LAN_IN, dp.INBOUND, iif="lan0") in plan.routes.rules
        assert Rule(family, dp.PRIORITY_OVERLAY, dp.OVERLAY) in plan.routes.rules
    if backend is Backend.USERLAND:
        assert not any(r.device for r in routes_of(plan, dp.INBOUND)), "nothing is forwarded from an uplink"


def test_own_lans_win_over_equal_and_wider_remote_ones() -> None:
    wide = msgspec.structs.replace(documents.CENTRE, lans=("10.0.0.0/8", OWN_LAN))
    pairs = (pair("wide", "10.0.0.0/8", "centre"),)
    overlay = routes_of(planned(branch(peers={"centre": wide}, pairs=pairs)), dp.OVERLAY)

    def leads(address: str) -> str:
        host = ipaddress.ip_address(address)
        matching = [r for r in overlay if host in ipaddress.ip_network(r.destination)]
        longest = max(int(r.destination.split("/")[1]) for r in matching)
        return min((r for r in matching if r.destination.endswith(f"/{longest}")), key=lambda r: r.metric).device

    assert leads("10.101.0.9") == "lan0"
    assert leads("10.102.0.9") == "ipsec0"


def test_each_uplink_has_its_own_way_out() -> None:
    plan = planned(branch())
    tables = {rule.source: rule.table for rule in plan.routes.rules if rule.source}
    assert set(tables) == {"203.0.113.18", "2001:db8:1::2", "100.64.1.10"}
    assert tables["203.0.113.18"] == tables["2001:db8:1::2"] != tables["100.64.1.10"]
    wired = routes_of(plan, tables["203.0.113.18"])
    assert Route(tables["203.0.113.18"], "0.0.0.0/0", "wired", "203.0.113.17", dp.METRIC_TUNNEL) in wired
    assert Route(tables["203.0.113.18"], "203.0.113.16/28", "wired", metric=dp.METRIC_TUNNEL) in wired
    assert Route(tables["203.0.113.18"], "::/0", "wired", "2001:db8:1::1", dp.METRIC_TUNNEL) in wired
    lte = routes_of(plan, tables["100.64.1.10"])
    assert lte == {
        Route(tables["100.64.1.10"], "0.0.0.0/0"),
        Route(tables["100.64.1.10"], "0.0.0.0/0", "wwan0", "", dp.METRIC_TUNNEL),
    }
    down = planned(branch(), links(link("wired", "203.0.113.18/28", gateways=("203.0.113.17",), up=False), LTE, LAN))
    assert routes_of(down, tables["203.0.113.18"]) == {Route(tables["203.0.113.18"], "0.0.0.0/0")}


def test_a_table_stays_an_uplinks_own_when_another_goes() -> None:
    before = {rule.source: rule.table for rule in planned(branch()).routes.rules if rule.source}
    after = {rule.source: rule.table for rule in planned(branch(), links(WIRED)).routes.rules if rule.source}
    assert after.items() <= before.items()


@pytest.mark.parametrize(
    ("found", "usable", "conditions"),
    [
        (LINKS, ["wired", "lte"], set()),
        (links(WIRED, LAN), ["wired"], {("UplinkMissing", "lte")}),
        (links(WIRED, link("wwan0"), LAN), ["wired"], {("UplinkUnaddressed", "lte")}),
        (links(WIRED, link("wwan0", "100.64.1.10/32"), LAN), ["wired", "lte"], {("UplinkNoGateway", "lte")}),
        (
            links(WIRED, link("wwan0", "100.64.1.10/32", gateways=("",), up=False), LAN),
            ["wired", "lte"],
            {("UplinkDown", "lte")},
        ),
        (links(WIRED, link("wwan0", "203.0.113.18/32", gateways=("",)), LAN), [], {("UplinkConflict", "lte")}),
        (links(WIRED, link("wwan0", "10.101.0.9/24", gateways=("",)), LAN), ["wired"], {("UplinkConflict", "lte")}),
        # Its address is outside the LAN, its network is not.
        (links(WIRED, link("wwan0", "10.100.0.9/8", gateways=("",)), LAN), ["wired"], {("UplinkConflict", "lte")}),
        (links(WIRED, LTE), ["wired", "lte"], set()),
    ],
)
def test_uplinks(found: Links, usable: list[str], conditions: set[tuple[str, str]]) -> None:
    uplinks, about = resolve(branch(), found)
    assert [uplink.name for uplink in uplinks] == usable
    assert {(c.type, c.subject) for c in about} == conditions


def test_a_missing_lan_interface_is_a_condition() -> None:
    _, about = compile_dataplane(branch(), links(WIRED, LTE, documents.IPSEC), BRANCH)
    assert {(c.type, c.subject) for c in about} == {("LanMissing", "wards"), ("LanMissing", "wards6")}


@pytest.mark.parametrize(
    ("addresses", "unaddressed"),
    [
        (("10.101.0.1/24", "fd00:101::1/64"), set()),
        (("10.101.0.1/24",), {"wards6"}),
        (("192.168.1.1/24", "fd00:101::1/64"), {"wards"}),
        ((), {"wards", "wards6"}),
    ],
)
def test_a_lan_without_an_address_of_its_own_is_a_condition(addresses: tuple[str, ...], unaddressed: set[str]) -> None:
    found = links(WIRED, LTE, documents.IPSEC, link("lan0", *addresses))
    _, about = compile_dataplane(branch(), found, BRANCH)
    assert {(c.type, c.subject) for c in about} == {("LanUnaddressed", name) for name in unaddressed}
    assert all("lan0 has no address in" in c.reason for c in about)


def test_a_lan_behind_a_router_needs_no_address_here() -> None:
    lab = Lan("lab", "10.131.0.0/24", "lan0", via="10.101.0.254")
    _, about = compile_dataplane(branch(lans=(*branch().lans, lab)), LINKS, BRANCH)
    assert about == ()


def test_a_missing_tunnel_device_is_a_condition() -> None:
    _, about = compile_dataplane(branch(), links(WIRED, LTE, LAN), BRANCH)
    assert ("TunnelDeviceMissing", "ipsec0") in {(c.type, c.subject) for c in about}


@pytest.mark.parametrize(("changes", "ready"), [({}, True), ({"drain": True}, True), ({}, False)])
def test_a_hub_that_is_not_willing_has_its_ready_addresses_but_does_not_answer_there(
    changes: dict[str, Any], ready: bool
) -> None:
    plan = planned(hub(**changes), HUB_LINKS, HUB, ready)
    always, at_will = ("10.255.0.1", "10.255.1.1", "10.255.1.3", "10.255.100.1"), ("10.255.1.2", "10.255.1.4")
    assert {f"{address}/32" for address in (*always, *at_will)} <= plan.routes.addresses
    assert all(answers(plan.ruleset, address) for address in always)
    willing = ready and not changes
    assert [answers(plan.ruleset, address) for address in at_will] == [willing, willing]
    assert not answers(plan.ruleset, "10.255.1.5"), "that is nobody's"


def test_that_a_hub_goes_on_with_flows_that_were_elsewhere() -> None:
    assert planned(documents.hub()).routes.lenient
    assert not planned(branch()).routes.lenient, "it has seen all of its flows, and the setting is not its own"


def test_ip_versions_that_forward() -> None:
    four = branch(
        lans=(Lan("wards", OWN_LAN, "lan0"),),
        uplinks={"lte": Uplink("cellular", 2, "10.255.101.2", interface="wwan0")},
        peers={"cloud": documents.CLOUD},
        pairs=(),
    )
    assert planned(four).routes.forwarding == {4}
    assert planned(branch()).routes.forwarding == {4, 6}


def test_active_children_by_path() -> None:
    plan = planned(branch())
    wired, lte = Path("wired", "centre", "a"), Path("lte", "centre", "a")
    active = {"centre": wired, "centre+cloud": wired, "cloud": None}
    tunnels = with_active(plan.tunnels, plan.bundles, active, frozenset({7}))
    assert tunnels.active == {wired: {"traffic-centre", "traffic-centre+cloud"}}
    assert tunnels.dead == {7} and tunnels.connections == plan.tunnels.connections
    assert lte not in tunnels.active


def test_nothing_depends_on_the_order_of_a_mapping() -> None:
    document = branch()
    turned = branch(uplinks=dict(reversed(document.uplinks.items())), peers=dict(reversed(document.peers.items())))
    assert planned(turned) == planned(document)
    assert connections(turned, (), "x", Backend.KERNEL) == ()
