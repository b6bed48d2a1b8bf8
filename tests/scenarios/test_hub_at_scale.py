"""What of a hub with thousands of branches of two uplinks each, 50 of them alive?

Everything at the hub is real: its document, signed and served by the controller, its agent, charon, nftables and
routes. `BRANCHES=2000` is what it is meant for, and takes two minutes; by default there are fewer.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from cpe_agent.core.compile import Site, compile_dataplane
from cpe_agent.edge.connection import connection_message
from cpe_agent.edge.vici import DEFAULT_TIMEOUT_S
from cpe_agent.model.condition import Status
from cpe_agent.model.dataplane import Backend, Connection
from cpe_agent.model.document_check import decode
from cpe_agent.model.observed import Link, LinkAddress, Links
from tests.lab import crowd, provision, watch
from tests.lab.container import wait_until
from tests.lab.crowd import HUB, LIVE, Branch
from tests.lab.lab import Lab
from tests.lab.site import RunningSite
from tests.scenarios import faults, oracle
from tests.scenarios.charon_mutations import charon_of
from tests.scenarios.publishing import served

BRANCHES = int(os.environ.get("BRANCHES", "500"))
PATHS_EACH = 2
# The agent's work on top of charon's own for each connection; and the machine has two cores for all of this.
TIMES_CHARONS_OWN = 4.0
SAMPLE = 300  # connections, to know charon's own speed by
LOAD_S, JOIN_S, EDIT_S, RETURN_S = 60.0, 40.0, 20.0, 60.0
HUNG_S, QUIET_S = 2 * DEFAULT_TIMEOUT_S + 5.0, 5.0  # a glance finds it out, then a pass
# Sets of subnets in which neighbours share an element.
COVERING = ("protected4: ", "probed4: ")
Range = tuple[int, int]  # first and last address

pytestmark = pytest.mark.timeout(400)


@dataclass(frozen=True)
class Loaded:
    """How fast the hub's connections went into charon, in ms each: by a client that does nothing else, by the agent."""

    alone_ms: float
    agent_ms: float
    in_sync_s: float


@dataclass(frozen=True)
class Hub:
    """`peers`: what its first document says of each branch."""

    lab: Lab
    loaded: Loaded
    peers: dict[str, dict[str, Any]]

    @property
    def site(self) -> RunningSite:
        return self.lab.site(HUB)

    def apply(self, numbers: range | list[int]) -> Status:
        """Another network; returns when the hub holds what it asks for."""
        changed = provision.apply(self.lab, crowd.network_yaml(numbers))
        return watch.wait_for(self.lab, HUB, "it obeys", watch.has_document(changed[HUB]), EDIT_S)

    def facts(self) -> oracle.Facts:
        return faults.everything(self.site)

    def unique_ids(self) -> Counter[tuple[str, int]]:
        """(connection, unique id) of every established IKE_SA and installed CHILD_SA."""
        found: Counter[tuple[str, int]] = Counter()
        with charon_of(self.site) as session:
            for sas in session.list_sas():
                for name, sa in sas.items():
                    if sa["state"] == b"ESTABLISHED":
                        found[name, int(sa["uniqueid"])] += 1
                        for child in sa["child-sas"].values():
                            found[f"{name} {child['name'].decode()}", int(child["uniqueid"])] += 1
        return found


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Lab(crowd.network(), name="scale") as lab, ExitStack() as diallers:
        crowd.provision(lab, crowd.network_yaml(range(BRANCHES)))
        lab.controller.start()
        loaded = _load(lab)
        for group in range(LIVE // crowd.TOGETHER):
            diallers.callback(crowd.join(lab, group).close)
        crowd.wait_joined(lab, JOIN_S)
        yield Hub(lab, loaded, served(lab, HUB)["peers"])


def test_that_the_initial_load_is_bounded_by_charon(hub: Hub, record_property: Callable[[str, object], None]) -> None:
    loaded = hub.loaded
    words = (
        f"{BRANCHES} connections: {loaded.agent_ms:.2f} ms each by the agent, {loaded.alone_ms:.2f} ms by a client "
        f"that does nothing else; all in sync after {loaded.in_sync_s:.1f} s"
    )
    record_property("load", words)
    print(words)
    assert loaded.agent_ms <= TIMES_CHARONS_OWN * loaded.alone_ms, words


def test_that_the_live_ones_are_carried(hub: Hub) -> None:
    """By the hub's own account, and by packets inside of every path."""
    report = watch.wait_for(hub.lab, HUB, "all are there", _all_there, JOIN_S)
    assert len(report.peers) == BRANCHES
    dialled = [crowd.progress(hub.lab, group) for group in range(LIVE // crowd.TOGETHER)]
    assert sum(one["paths"] for one in dialled) == PATHS_EACH * LIVE
    assert max(one["most_under_way"] for one in dialled) == 1
    probe = served(hub.lab, HUB)["endpoints"][0]["probe_address"]
    for group in range(LIVE // crowd.TOGETHER):
        site = hub.lab.site(crowd.group_name(group))
        members = [Branch(group * crowd.TOGETHER + index) for index in range(crowd.TOGETHER)]
        own = [u["path_address"] for b in members for u in _document(hub.lab, b)["uplinks"].values()]
        script = f"for a in {' '.join(own)}; do ping -q -c 1 -W 2 -I $a {probe} > /dev/null || echo $a; done"
        assert site.run("sh", "-c", script, timeout_s=60).stdout == ""
        for branch in members[:2]:
            asked = ["curl", "-s", "--fail", "--noproxy", "*", "-m", "3", "--interface", str(branch.lan[1])]
            assert "centre-server" in site.run(*asked, "http://10.10.0.10/").stdout


def test_that_one_branch_more_or_less_touches_only_its_own(hub: Hub) -> None:
    """A branch that is not there goes and comes; then one that lives, with its SAs."""
    before, ids, packets = hub.facts(), hub.unique_ids(), _counted(hub.site)
    for branch in (Branch(BRANCHES - 1), Branch(7)):
        hub.apply([number for number in range(BRANCHES) if number != branch.number])
        without, left = hub.facts(), hub.unique_ids()
        lost, gained = _plain(before) - _plain(without), _plain(without) - _plain(before)
        assert not gained
        assert {kind for kind, _ in lost} >= {"connection", "child", "element", "route"}
        assert all(_is_of(branch, hub, text) for _, text in lost), [t for _, t in lost if not _is_of(branch, hub, t)]
        # Neighbouring subnets share an element in these: what counts is which addresses are covered.
        for name in COVERING:
            covered, still = _covered(before, name), _covered(without, name)
            uncovered = _minus(covered, still)
            assert uncovered and not _minus(still, covered)
            assert not _minus(uncovered, _own_ranges(branch, hub))
        assert not left - ids
        assert all(_stem(name) == branch.name for name, _ in ids - left)
        assert bool(ids - left) == (branch.number < LIVE)
        # A set that is replaced counts from zero: nobody else's element was.
        now = _counted(hub.site)
        assert all(now[element] >= count for element, count in packets.items() if element in now)
        gone = set(packets) - set(now)
        assert gone and all(str(branch.lan.network_address) in element for element in gone)
        hub.apply(range(BRANCHES))
        crowd.wait_joined(hub.lab, JOIN_S)
        _wait_for(hub, before)
        kept = Counter({sa: n for sa, n in ids.items() if _stem(sa[0]) != branch.name})
        assert not kept - hub.unique_ids()
        before, ids, packets = hub.facts(), hub.unique_ids(), _counted(hub.site)


def test_that_doing_nothing_costs_little(hub: Hub, record_property: Callable[[str, object], None]) -> None:
    began, spent = time.monotonic(), _processor_s(hub)
    time.sleep(QUIET_S)
    share = (_processor_s(hub) - spent) / (time.monotonic() - began)
    record_property("agent", f"{share:.1%} of a core")
    print(f"the agent takes {share:.1%} of a core while nothing happens and {LIVE} branches live")
    assert share < 0.25


def test_that_a_hung_charon_hangs_nobody(hub: Hub) -> None:
    """It is stopped for longer than any call may take: the agent says so, and loses nothing."""
    ids = hub.unique_ids()
    charon = hub.site.charon
    hub.lab.container.signal(charon.pid, signal.SIGSTOP)
    try:
        told = watch.wait_for(hub.lab, HUB, "it says so", _tunnels_failed, HUNG_S)
        (error,) = [target.error for target in told.targets if target.name == "tunnels"]
        assert re.search(rf"no answer within {DEFAULT_TIMEOUT_S:g} s", error), error
    finally:
        hub.lab.container.signal(charon.pid, signal.SIGCONT)
    watch.wait_for(hub.lab, HUB, "it is in sync again", watch.all_up, JOIN_S)
    stems = {_stem(name) for name, _ in ids}
    wait_until("all are there", lambda: {_stem(name) for name, _ in hub.unique_ids()} == stems, JOIN_S, interval_s=0.5)


def test_that_a_hubs_return_is_no_stampede(hub: Hub, record_property: Callable[[str, object], None]) -> None:
    """All that live are told that the hub's charon goes, and dial at once; it comes back without a connection."""
    before = [crowd.progress(hub.lab, group)["initiated"] for group in range(LIVE // crowd.TOGETHER)]
    hub.site.charon.stop()
    wait_until("they know", lambda: not any(_up(hub.lab)), 10)
    hub.site.start_charon()
    began = time.monotonic()
    crowd.wait_joined(hub.lab, RETURN_S)
    took = time.monotonic() - began
    told = [crowd.progress(hub.lab, group) for group in range(LIVE // crowd.TOGETHER)]
    tries = sum(one["initiated"] for one in told) - sum(before)
    record_property("return", f"{took:.1f} s, {tries} initiations for {PATHS_EACH * LIVE} paths")
    print(f"all {PATHS_EACH * LIVE} paths are up {took:.1f} s after charon, by {tries} initiations")
    assert max(one["most_under_way"] for one in told) == 1
    watch.wait_for(hub.lab, HUB, "the hub is in sync", lambda r: watch.all_up(r) and _all_there(r), JOIN_S)


def _load(lab: Lab) -> Loaded:
    connections = _connections(lab)
    alone_ms = _load_alone(lab.site(crowd.group_name(0)), connections[:SAMPLE])
    site = lab.site(HUB)
    site.start()
    none_s = time.monotonic()  # when it was last seen to have loaded none

    def begins() -> bool:
        nonlocal none_s
        asked_s = time.monotonic()
        if _loaded(site):
            return True
        none_s = asked_s
        return False

    wait_until("the agent loads connections", begins, LOAD_S)
    wait_until("all connections are loaded", lambda: _loaded(site) == BRANCHES, LOAD_S)
    took_s = time.monotonic() - none_s
    watch.wait_all_up(lab, LOAD_S, [HUB])
    return Loaded(alone_ms, took_s * 1000 / BRANCHES, time.monotonic() - none_s)


def _connections(lab: Lab) -> tuple[Connection, ...]:
    """What the hub is to load, compiled as the agent does it."""
    links = Links(
        {
            "wan": Link("wan", True, (LinkAddress("198.51.100.10", 29),), ("198.51.100.9",)),
            "lan0": Link("lan0", True, (LinkAddress("10.10.0.1", 24),)),
        }
    )
    asked = decode(json.dumps(served(lab, HUB)).encode())
    return compile_dataplane(asked, links, Site("centre.lab", Backend.USERLAND))[0].tunnels.connections


def _load_alone(site: RunningSite, connections: tuple[Connection, ...]) -> float:
    """ms for each, into a charon that nobody else talks to; it is empty again afterwards."""
    site.start_charon()
    messages = [{one.name: _vici(connection_message(one, Backend.USERLAND))} for one in connections]
    with charon_of(site) as session:
        began_s = time.perf_counter()
        for message in messages:
            session.load_conn(message)
        took_s = time.perf_counter() - began_s
    site.charon.stop()
    return took_s * 1000 / len(messages)


def _vici(value: object) -> object:
    """As strongSwan's own client takes it."""
    if isinstance(value, dict):
        return {key: _vici(inner) for key, inner in value.items()}
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return [_vici(inner) for inner in value]
    return str(value)


def _loaded(site: RunningSite) -> int:
    with suppress(OSError), charon_of(site) as session:
        return len(session.get_conns()["conns"])
    return 0


def _all_there(report: Status) -> bool:
    live = {Branch(number).name for number in range(LIVE)}
    there = {peer.name for peer in report.peers if peer.ike_sas == PATHS_EACH and peer.children == PATHS_EACH + 1}
    return there == live


def _tunnels_failed(report: Status) -> bool:
    return any(target.name == "tunnels" and target.error for target in report.targets)


def _up(lab: Lab) -> list[int]:
    return [crowd.progress(lab, group)["up"] for group in range(LIVE // crowd.TOGETHER)]


def _document(lab: Lab, branch: Branch) -> dict[str, dict[str, dict[str, str]]]:
    found: dict[str, dict[str, dict[str, str]]] = json.loads(
        lab.path(crowd.CROWD / branch.name / "document.json").read_text()
    )
    return found


def _stem(name: str) -> str:
    return name.split(" ")[0].removeprefix("cpe-").rpartition("-")[0]


def _is_of(branch: Branch, hub: Hub, text: str) -> bool:
    """Does this fact name the branch, its LAN or one of its inner addresses?"""
    peer = hub.peers[branch.name]
    own = (peer["site_address"], *peer["path_addresses"])
    return any(word in text for word in (f"cpe-{branch.name}-", str(branch.lan.network_address), *own))


def _plain(facts: oracle.Facts) -> oracle.Facts:
    return Counter({fact: n for fact, n in facts.items() if not fact[1].startswith(COVERING)})


def _comparable(facts: oracle.Facts) -> oracle.Facts:
    """A set's elements in one text, since they may be cut in other places."""
    found = _plain(facts)
    for name in COVERING:
        found["covered", f"{name}{_covered(facts, name)}"] = 1
    return found


def _wait_for(hub: Hub, facts: oracle.Facts) -> None:
    wanted = _comparable(facts)
    wait_until("all is as it was", lambda: _comparable(hub.facts()) == wanted, EDIT_S, interval_s=0.5)


def _covered(facts: oracle.Facts, name: str) -> list[Range]:
    """What the set covers, as ranges of addresses that do not touch."""
    nets = (_network(json.loads(text.removeprefix(name))) for _, text in facts if text.startswith(name))
    merged: list[Range] = []
    for first, last in sorted((int(net[0]), int(net[-1])) for net in nets):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(merged[-1][1], last)
        else:
            merged.append((first, last))
    return merged


def _network(element: Any) -> IPv4Network:
    if isinstance(element, dict):
        return IPv4Network(f"{element['prefix']['addr']}/{element['prefix']['len']}")
    return IPv4Network(element)


def _minus(ranges: list[Range], others: list[Range]) -> list[Range]:
    """What of `ranges` is in none of `others`."""
    left = ranges
    for first, last in others:
        left = [
            part
            for low, high in left
            for part in ((low, min(high, first - 1)), (max(low, last + 1), high))
            if part[0] <= part[1]
        ]
    return left


def _own_ranges(branch: Branch, hub: Hub) -> list[Range]:
    peer = hub.peers[branch.name]
    inner = [int(IPv4Address(address)) for address in (peer["site_address"], *peer["path_addresses"])]
    return [(int(branch.lan[0]), int(branch.lan[-1])), *((address, address) for address in inner)]


def _counted(site: RunningSite) -> dict[str, int]:
    """Packets by pair element."""
    listing = site.run("nft", "list", "table", "inet", "cpe_agent").stdout
    found = re.findall(r"(10\.\S+ \. 10\.\S+ \. \S+ \. \S+) counter packets (\d+)", listing)
    return {element: int(count) for element, count in found}


def _processor_s(hub: Hub) -> float:
    fields = hub.lab.path(f"/proc/{hub.site.agent.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
