"""Every difference is told, what it is and of which kind; and none where there is none."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpe_agent.core.compile import compile_dataplane
from cpe_agent.core.verify import verify
from cpe_agent.model.condition import Condition, Severity
from cpe_agent.model.dataplane import Dataplane, NftChain, NftSet, Route, Routes, Rule, Ruleset, stem_of
from cpe_agent.model.difference import Difference, Kind
from cpe_agent.model.observed import Charon, ChildSa, IkeSa, LoadedChild
from tests.core.documents import BRANCH, HUB, HUB_LINKS, LINKS, branch, hub

MISSING, FOREIGN, ALTERED = Kind.MISSING, Kind.FOREIGN, Kind.ALTERED

WANTED, OBSTACLES = compile_dataplane(branch(), LINKS, BRANCH)
WANTED_HUB, _ = compile_dataplane(hub(), HUB_LINKS, HUB)


def in_sync(wanted: Dataplane) -> Charon:
    """charon as it is when all is well: each bundle on its best path."""
    sas = []
    number = 0
    for connection in wanted.tunnels.connections:
        carried = {b.child for b in wanted.bundles if b.paths[:1] == (connection.path,)}
        children = []
        for child in connection.children:
            number += 1
            if child.name == "probe" or child.name in carried:
                children.append(ChildSa(child.name, number, "INSTALLED", child.local_ts, child.remote_ts))
        if connection.path is not None:
            number += 1
            sas.append(IkeSa(connection.name, number, "ESTABLISHED", True, children=tuple(children)))
    loaded = {
        c.name: tuple(LoadedChild(x.name, x.local_ts, x.remote_ts) for x in c.children)
        for c in wanted.tunnels.connections
    }
    return Charon(loaded, tuple(sas), True)


CHARON = in_sync(WANTED)
FIRST = CHARON.ike_sas[0]


def found(
    *, ruleset: Ruleset | None = WANTED.ruleset, routes: Routes = WANTED.routes, charon: Charon | None = CHARON
) -> list[tuple[Kind, str]]:
    told = verify(WANTED, (), ruleset, routes, charon, "connection refused")
    return [(difference.kind, difference.what) for difference in told]


class TestInSync:
    def test_a_branch(self) -> None:
        assert found() == []

    def test_a_hub_that_nobody_has_dialled(self) -> None:
        assert verify(WANTED_HUB, (), WANTED_HUB.ruleset, WANTED_HUB.routes, in_sync(WANTED_HUB)) == ()

    def test_what_is_in_the_way_is_a_difference(self) -> None:
        obstacle = Condition("UplinkMissing", "lte", "there is no interface wwan0")
        told = verify(WANTED, (obstacle,), WANTED.ruleset, WANTED.routes, CHARON)
        assert told == (Difference("links", MISSING, "lte: there is no interface wwan0"),)

    def test_an_uplink_that_was_found_by_itself_is_no_difference(self) -> None:
        remark = Condition("UplinkFound", "lte", "uses wwan3, a cellular interface", Severity.OK)
        assert verify(WANTED, (remark,), WANTED.ruleset, WANTED.routes, CHARON) == ()


def with_set(name: str, **changes: object) -> Ruleset:
    sets = tuple(msgspec.structs.replace(s, **changes) if s.name == name else s for s in WANTED.ruleset.sets)
    return msgspec.structs.replace(WANTED.ruleset, sets=sets)


def with_rules(name: str, change: Callable[[tuple[str, ...]], tuple[str, ...]]) -> Ruleset:
    chains = tuple(
        msgspec.structs.replace(c, rules=change(c.rules)) if c.name == name else c for c in WANTED.ruleset.chains
    )
    return msgspec.structs.replace(WANTED.ruleset, chains=chains)


FORWARD = next(chain for chain in WANTED.ruleset.chains if chain.name == "forward")
LAST = len(FORWARD.rules)


class TestRules:
    def test_no_table(self) -> None:
        assert found(ruleset=None) == [(MISSING, "the whole table")]

    def test_elements(self) -> None:
        assert found(ruleset=with_set("lans", elements=frozenset({"eth9"}))) == [
            (MISSING, "set lans: element lan0"),
            (FOREIGN, "set lans: element eth9"),
        ]

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"type": "ipv4_addr"}, "set lans: type is 'ipv4_addr', not 'ifname'"),
            ({"flags": "timeout"}, "set lans: flags is 'timeout', not nothing"),
            ({"counter": True}, "set lans: counter is 'True', not 'False'"),
        ],
    )
    def test_properties_of_a_set(self, changes: dict[str, object], words: str) -> None:
        assert found(ruleset=with_set("lans", **changes)) == [(ALTERED, words)]

    def test_sets_that_are_not_there_and_that_nobody_asked_for(self) -> None:
        sets = tuple(s for s in WANTED.ruleset.sets if s.name != "lans")
        strange = (NftSet("friends", "ipv4_addr"), NftSet("map verdicts", "", "type ipv4_addr : verdict"))
        ruleset = msgspec.structs.replace(WANTED.ruleset, sets=(*sets, *strange, NftSet("table", "", "flags dormant")))
        assert found(ruleset=ruleset) == [
            (MISSING, "set lans with 1 elements"),
            (FOREIGN, "set friends"),
            (FOREIGN, "map verdicts"),
            (ALTERED, "the table itself: flags dormant"),
        ]

    def test_chains(self) -> None:
        chains = [c for c in WANTED.ruleset.chains if c.name != "forward"]
        early = NftChain("early", "type filter hook forward priority -10; policy accept;", ())
        ruleset = msgspec.structs.replace(WANTED.ruleset, chains=(*chains, early))
        assert found(ruleset=ruleset) == [
            (MISSING, "chain forward"),
            (FOREIGN, "chain early (type filter hook forward priority -10; policy accept;)"),
        ]

    def test_a_policy(self) -> None:
        hook = FORWARD.hook.replace("policy drop", "policy accept")
        chains = tuple(
            msgspec.structs.replace(c, hook=hook) if c.name == "forward" else c for c in WANTED.ruleset.chains
        )
        ruleset = msgspec.structs.replace(WANTED.ruleset, chains=chains)
        assert found(ruleset=ruleset) == [(ALTERED, f"chain forward: is '{hook}', not '{FORWARD.hook}'")]

    def test_rules(self) -> None:
        drop = FORWARD.rules[-1]
        assert found(ruleset=with_rules("forward", lambda rules: rules[:-1])) == [
            (MISSING, f"chain forward, rule {LAST}: {drop}")
        ]
        assert found(ruleset=with_rules("forward", lambda rules: ("accept", *rules))) == [
            (FOREIGN, "chain forward, rule 1: accept")
        ]
        assert found(ruleset=with_rules("forward", lambda rules: (*rules[:-1], "accept"))) == [
            (ALTERED, f"chain forward, rule {LAST}: is 'accept', not '{drop}'")
        ]

    def test_order_is_told(self) -> None:
        told = found(ruleset=with_rules("forward", lambda rules: (rules[-1], *rules[:-1])))
        assert told == [
            (FOREIGN, f"chain forward, rule 1: {FORWARD.rules[-1]}"),
            (MISSING, f"chain forward, rule {LAST}: {FORWARD.rules[-1]}"),
        ]

    @given(
        st.just(FORWARD.rules)
        | st.permutations(FORWARD.rules).map(tuple)
        | st.lists(st.sampled_from((*FORWARD.rules, "accept", "drop")), max_size=8).map(tuple)
    )
    def test_any_other_rules_are_told(self, rules: tuple[str, ...]) -> None:
        told = found(ruleset=with_rules("forward", lambda _: rules))
        assert (told == []) == (rules == FORWARD.rules)


def with_route(route: Route, new: Route | None) -> Routes:
    routes = (WANTED.routes.routes - {route}) | ({new} if new else frozenset())
    return msgspec.structs.replace(WANTED.routes, routes=routes)


class TestRoutes:
    ROUTE = next(r for r in sorted(WANTED.routes.routes) if r.device == "ipsec0")
    RULE = next(r for r in sorted(WANTED.routes.rules) if r.iif == "lan0")

    def test_a_route(self) -> None:
        words = f"route {self.ROUTE.destination} dev ipsec0 table {self.ROUTE.table} metric 100"
        elsewhere = msgspec.structs.replace(self.ROUTE, device="wired")
        beside = msgspec.structs.replace(self.ROUTE, metric=5)
        assert found(routes=with_route(self.ROUTE, None)) == [(MISSING, words)]
        assert found(routes=with_route(self.ROUTE, elsewhere)) == [
            (ALTERED, f"is {words.replace('ipsec0', 'wired')}, not {words}")
        ]
        assert found(routes=with_route(self.ROUTE, beside)) == [
            (MISSING, words),
            (FOREIGN, words.replace("metric 100", "metric 5")),
        ]

    def test_two_in_one_place(self) -> None:
        words = f"route {self.ROUTE.destination} dev wired table {self.ROUTE.table} metric 100"
        both = WANTED.routes.routes | {msgspec.structs.replace(self.ROUTE, device="wired")}
        assert found(routes=msgspec.structs.replace(WANTED.routes, routes=both)) == [(FOREIGN, words)]

    def test_a_rule(self) -> None:
        rules = (WANTED.routes.rules - {self.RULE}) | {msgspec.structs.replace(self.RULE, table=254)}
        words = f"v{self.RULE.family} rule {self.RULE.priority} iif lan0 table"
        assert found(routes=msgspec.structs.replace(WANTED.routes, rules=rules)) == [
            (ALTERED, f"is {words} 254, not {words} {self.RULE.table}")
        ]
        stray = WANTED.routes.rules | {Rule(4, 99, 254, source="10.0.0.1")}
        assert found(routes=msgspec.structs.replace(WANTED.routes, rules=stray)) == [
            (FOREIGN, "v4 rule 99 from 10.0.0.1 table 254")
        ]

    def test_connection_tracking_that_would_stop_flows(self) -> None:
        strict = msgspec.structs.replace(WANTED_HUB.routes, lenient=False)
        told = verify(WANTED_HUB, (), WANTED_HUB.ruleset, strict, in_sync(WANTED_HUB))
        assert [(d.kind, d.what) for d in told] == [
            (ALTERED, "connection tracking is strict: TCP flows that come back from another hub stop")
        ]
        assert found(routes=msgspec.structs.replace(WANTED.routes, lenient=True)) == [], "not a branch's matter"

    def test_addresses_devices_and_forwarding(self) -> None:
        routes = msgspec.structs.replace(
            WANTED.routes, addresses=frozenset({"10.9.9.9/32"}), devices=frozenset({"cpe0"}), forwarding=frozenset({6})
        )
        told = found(routes=routes)
        assert (FOREIGN, "address 10.9.9.9/32") in told
        assert (MISSING, "address 10.255.0.101/32") in told
        assert (FOREIGN, "device cpe0") in told
        assert (ALTERED, "v4 forwarding is off, not on") in told
        assert (ALTERED, "v6 forwarding is on, not off") not in told  # this document has IPv6 LANs


def with_sa(**changes: object) -> Charon:
    """charon with its first IKE_SA changed."""
    return msgspec.structs.replace(CHARON, ike_sas=(msgspec.structs.replace(FIRST, **changes), *CHARON.ike_sas[1:]))


def with_child(name: str, **changes: object) -> Charon:
    sas = tuple(
        msgspec.structs.replace(
            sa, children=tuple(msgspec.structs.replace(c, **changes) if c.name == name else c for c in sa.children)
        )
        for sa in CHARON.ike_sas
    )
    return msgspec.structs.replace(CHARON, ike_sas=sas)


class TestTunnels:
    def test_charon_does_not_answer(self) -> None:
        assert found(charon=None) == [(MISSING, "charon does not answer: connection refused")]

    def test_credentials(self) -> None:
        (told,) = found(charon=msgspec.structs.replace(CHARON, credentials_loaded=False))
        assert told[0] is MISSING and told[1].startswith("credentials: ")

    def test_connections(self) -> None:
        name = FIRST.connection
        others = {n: children for n, children in CHARON.connections.items() if n != name}
        stem = stem_of(name)
        charon = msgspec.structs.replace(
            CHARON, connections={**others, "cpe-guest": (), f"cpe-{stem}-00000000": CHARON.connections[name]}
        )
        assert found(charon=charon) == [
            (MISSING, f"connection {stem}"),
            (FOREIGN, "connection cpe-guest is not in the document"),
            (FOREIGN, f"connection cpe-{stem}-00000000 has other settings than the document's"),
            (FOREIGN, f"IKE_SA {FIRST.unique_id} of {stem} has no connection: that is not loaded"),
        ]

    def test_children_of_a_connection(self) -> None:
        name = FIRST.connection
        stem = stem_of(name)
        probe = next(c for c in CHARON.connections[name] if c.name == "probe")
        rest = tuple(c for c in CHARON.connections[name] if c.name != "probe")
        wide = msgspec.structs.replace(probe, local_ts=("0.0.0.0/0",))
        for children, told in (
            (rest, (MISSING, f"connection {stem}, child probe")),
            ((*rest, probe, LoadedChild("x", (), ())), (FOREIGN, f"connection {stem}, child x")),
            (
                (*rest, wide),
                (
                    ALTERED,
                    f"connection {stem}, child probe: local selectors are 0.0.0.0/0, not {', '.join(probe.local_ts)}",
                ),
            ),
        ):
            charon = msgspec.structs.replace(CHARON, connections={**CHARON.connections, name: children})
            assert found(charon=charon) == [told]

    def test_ike_sas_of_others(self) -> None:
        stray = IkeSa("cpe-guest-12345678", 900, "ESTABLISHED", False)
        old = IkeSa(f"cpe-{stem_of(FIRST.connection)}-00000000", 901, "ESTABLISHED", True)
        told = found(charon=msgspec.structs.replace(CHARON, ike_sas=(*CHARON.ike_sas, stray, old)))
        assert told == [
            (FOREIGN, "IKE_SA 900 of guest belongs to no connection of the document (cpe-guest-12345678)"),
            (
                ALTERED,
                f"IKE_SA 901 of {stem_of(old.connection)} was made with other settings than the document's"
                f" ({old.connection})",
            ),
        ]

    def test_a_path_without_ike_sa(self) -> None:
        stem = stem_of(FIRST.connection)
        gone = msgspec.structs.replace(CHARON, ike_sas=CHARON.ike_sas[1:])
        assert (MISSING, f"path {stem}: no established IKE_SA") in found(charon=gone)
        assert (MISSING, f"path {stem}: no established IKE_SA (one is CONNECTING)") in found(
            charon=with_sa(state="CONNECTING", children=())
        )

    def test_a_path_with_two(self) -> None:
        second = msgspec.structs.replace(FIRST, unique_id=700, children=())
        told = found(charon=msgspec.structs.replace(CHARON, ike_sas=(*CHARON.ike_sas, second)))
        assert told == [(FOREIGN, f"path {stem_of(FIRST.connection)}: more than one IKE_SA ({FIRST.unique_id}, 700)")]
        replaced = msgspec.structs.replace(second, state="REKEYED")
        assert found(charon=msgspec.structs.replace(CHARON, ike_sas=(*CHARON.ike_sas, replaced))) == []

    def test_one_that_is_being_deleted_is_no_difference_and_stands_in_for_nothing(self) -> None:
        leaving = msgspec.structs.replace(FIRST, unique_id=700, state="DELETING")
        old = msgspec.structs.replace(leaving, connection=f"cpe-{stem_of(FIRST.connection)}-00000000")
        for sa in (leaving, old):
            assert found(charon=msgspec.structs.replace(CHARON, ike_sas=(*CHARON.ike_sas, sa))) == []
        stem = stem_of(FIRST.connection)
        assert (MISSING, f"path {stem}: no established IKE_SA") in found(charon=with_sa(state="DELETING"))
        ending = tuple(msgspec.structs.replace(sa, state="DELETING") for sa in CHARON.ike_sas)
        told = found(charon=msgspec.structs.replace(CHARON, ike_sas=ending))
        for bundle in WANTED.bundles:
            assert (MISSING, f"bundle {bundle.name}: no CHILD_SA carries it") in told

    def test_what_comes_out_of_one_that_is_being_deleted_is_told(self) -> None:
        wide = tuple(msgspec.structs.replace(child, remote_ts=("0.0.0.0/0",)) for child in FIRST.children[:1])
        stray = IkeSa("cpe-guest-12345678", 900, "DELETING", False, children=wide)
        for sa in (msgspec.structs.replace(FIRST, unique_id=700, state="DELETING", children=wide), stray):
            (told,) = found(charon=msgspec.structs.replace(CHARON, ike_sas=(*CHARON.ike_sas, sa)))
            assert told[0] is ALTERED and "which is being deleted, goes beyond the document: " in told[1]
            assert told[1].endswith("0.0.0.0/0")

    def test_a_probe_that_is_gone(self) -> None:
        rest = tuple(c for c in FIRST.children if c.name != "probe")
        assert found(charon=with_sa(children=rest)) == [
            (MISSING, f"path {stem_of(FIRST.connection)}: no probe CHILD_SA")
        ]

    def test_selectors_of_child_sas(self) -> None:
        bundle = WANTED.bundles[0]
        (child,) = [c for sa in CHARON.ike_sas for c in sa.children if c.name == bundle.child]
        told = found(charon=with_child(bundle.child, remote_ts=("0.0.0.0/0",)))
        assert [kind for kind, _ in told] == [ALTERED]
        assert told[0][1].endswith(" goes beyond the document: 0.0.0.0/0")
        told = found(charon=with_child(bundle.child, local_ts=child.local_ts[1:]))
        assert [kind for kind, _ in told] == [ALTERED]
        assert told[0][1].endswith(f" falls short of the document: {child.local_ts[0]}")

    def test_a_child_that_the_document_does_not_know(self) -> None:
        guest = ChildSa("guest", 800, "INSTALLED", ("10.0.0.0/8",), ("10.0.0.0/8",))
        (told,) = found(charon=with_sa(children=(*FIRST.children, guest)))
        assert told[0] is FOREIGN and "CHILD_SA 800 (guest)" in told[1]

    def test_bundles(self) -> None:
        bundle = next(b for b in WANTED.bundles if len(b.paths) > 1)
        carriers = [sa for sa in CHARON.ike_sas if any(c.name == bundle.child for c in sa.children)]
        (child,) = [c for c in carriers[0].children if c.name == bundle.child]
        without = with_child(bundle.child, state="DELETED")
        assert found(charon=without) == [(MISSING, f"bundle {bundle.name}: no CHILD_SA carries it")]
        other = str(next(path for path in bundle.paths if str(path) != stem_of(carriers[0].connection)))
        twice = tuple(
            msgspec.structs.replace(sa, children=(*sa.children, msgspec.structs.replace(child, unique_id=801)))
            if stem_of(sa.connection) == other
            else sa
            for sa in CHARON.ike_sas
        )
        paths = ", ".join(sorted([other, stem_of(carriers[0].connection)]))
        assert found(charon=msgspec.structs.replace(CHARON, ike_sas=twice)) == [
            (FOREIGN, f"bundle {bundle.name}: carried on more than one path ({paths})")
        ]

    def test_a_bundle_that_has_just_moved_to_another_hub(self) -> None:
        bundle = next(b for b in WANTED.bundles if {path.peer for path in b.paths} == {"centre", "cloud"})
        (here,) = [sa for sa in CHARON.ike_sas if any(c.name == bundle.child for c in sa.children)]
        (child,) = [c for c in here.children if c.name == bundle.child]
        stem = stem_of(here.connection)

        def moved(to: str, young: bool) -> list[tuple[Kind, str]]:
            new = msgspec.structs.replace(child, unique_id=801, young=young)
            there = next(sa for sa in CHARON.ike_sas if stem_of(sa.connection) == to)
            sas = (*CHARON.ike_sas, msgspec.structs.replace(there, children=(*there.children, new)))
            return found(charon=msgspec.structs.replace(CHARON, ike_sas=tuple(sa for sa in sas if sa is not there)))

        assert stem == "wired.centre.a"
        assert moved("wired.cloud.a", young=True) == []
        for to, young in (("wired.cloud.a", False), ("lte.centre.a", True)):
            paths = ", ".join(sorted((stem, to)))
            assert moved(to, young) == [(FOREIGN, f"bundle {bundle.name}: carried on more than one path ({paths})")]

    def test_what_a_peer_has_dialled_may_be_narrower_but_not_wider(self) -> None:
        (connection,) = WANTED_HUB.tunnels.connections
        traffic = next(c for c in connection.children if c.name == "traffic")
        for local_ts, told in (
            (traffic.local_ts[:1], []),
            (("10.0.0.0/8",), [ALTERED]),
        ):
            child = ChildSa("traffic", 2, "INSTALLED", local_ts, traffic.remote_ts[:1])
            sa = IkeSa(connection.name, 1, "ESTABLISHED", False, children=(child,))
            charon = msgspec.structs.replace(in_sync(WANTED_HUB), ike_sas=(sa,))
            found_ = verify(WANTED_HUB, (), WANTED_HUB.ruleset, WANTED_HUB.routes, charon)
            assert [difference.kind for difference in found_] == told
