"""What every `TunnelPort` keeps to: the fake, and two real charons (hub and branch) in two network namespaces.

core.tunnels decides, as in the product: read, step, apply until nothing is left to do, woken by events.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, closing
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Protocol

import msgspec
import pytest
import trio

from cpe_agent.core.tunnels import Attempts, step
from cpe_agent.edge.charon import CharonTunnels, canonical_selector, connection_message
from cpe_agent.edge.vici import open_vici
from cpe_agent.loops.bell import Bell
from cpe_agent.model.dataplane import Backend, Child, Connection, Ike, Path, Tunnels
from cpe_agent.model.observed import Charon, CharonEvent, EventKind
from cpe_agent.model.ops import (
    Initiate,
    LoadConnection,
    LoadCredentials,
    TerminateChild,
    TerminateIke,
    TunnelOp,
    UnloadConnection,
)
from cpe_agent.ports import EdgeError, TunnelPort
from tests.edge.charon_bed import (
    BRANCH_ID,
    BRANCH_LAN,
    CELLULAR_ADDRESS,
    CELLULAR_PATH_ADDRESS,
    HUB_ADDRESS,
    HUB_ID,
    HUB_LANS,
    NO_CHARON,
    PROBE_ADDRESS,
    READY_ADDRESS,
    WIRED_ADDRESS,
    WIRED_PATH_ADDRESS,
    Authority,
    Bed,
    authority,
    bed,
)
from tests.fakes.charon import Answer, FakeCharon

IKE_PROPOSAL, ESP_PROPOSAL = "aes256gcm16-prfsha384-ecp256", "aes256gcm16-ecp256"
TRAFFIC = "traffic-centre+cloud/voice"
WIRED, CELLULAR = Path("wired", "centre", "wan"), Path("cellular", "centre", "wan")
# How long anything here may take: a set-up is 10 ms, on a busy machine many times that.
BOUND_S = 15.0

needs_charon = pytest.mark.skipif(NO_CHARON, reason="needs root, charon-systemd and /dev/net/tun")


class Port(TunnelPort, Protocol):
    """With a subscription that is known to have begun."""

    def subscription(self) -> AbstractAsyncContextManager[AsyncIterator[CharonEvent]]: ...


class Ends(Protocol):
    """Both ends of two paths, whoever plays them."""

    @property
    def hub(self) -> Port: ...
    @property
    def branch(self) -> Port: ...
    def kill_branch(self) -> None: ...
    def start_branch(self) -> None: ...
    def blackhole(self, path: Path) -> None: ...


class FakeEnds:
    def __init__(self) -> None:
        self.hub = FakeCharon()
        self.branch = FakeCharon(self.hub)

    def kill_branch(self) -> None:
        self.branch.kill()

    def start_branch(self) -> None:
        self.branch.start()

    def blackhole(self, path: Path) -> None:
        self.branch.answers[str(path)] = Answer.SILENT


class RealEnds:
    """Both charons start empty."""

    def __init__(self, bed: Bed) -> None:
        self._bed = bed
        for host in (bed.hub, bed.branch):
            host.kill_charon()
            host.start_charon()
        bed.heal()
        self.hub = tunnels(bed.hub.vici, HUB_ID)
        self.branch = tunnels(bed.branch.vici, BRANCH_ID)

    def close(self) -> None:
        self.hub.close()
        self.branch.close()

    def kill_branch(self) -> None:
        self._bed.branch.kill_charon()

    def start_branch(self) -> None:
        self._bed.branch.start_charon()

    def blackhole(self, path: Path) -> None:
        self._bed.blackhole(path.uplink)


def tunnels(vici: FilePath, identity: str, *, trusted: bytes | None = None) -> CharonTunnels:
    issued = authority().issue(identity)
    return CharonTunnels(vici, issued.certificate_pem, issued.key_pem, trusted or authority().pem, Backend.USERLAND)


@pytest.fixture(scope="module")
def real_bed() -> Iterator[Bed]:
    with bed() as both:
        yield both


@pytest.fixture(params=["fake", pytest.param("real", marks=needs_charon)])
async def ends(request: pytest.FixtureRequest) -> AsyncIterator[Ends]:
    if request.param == "fake":
        yield FakeEnds()
        return
    real = RealEnds(request.getfixturevalue("real_bed"))
    yield real
    real.close()


@pytest.fixture
async def real(real_bed: Bed) -> AsyncIterator[RealEnds]:
    real = RealEnds(real_bed)
    yield real
    real.close()


def hub_wants(lans: tuple[str, ...] = HUB_LANS) -> Tunnels:
    ike = Ike((), (), 0, HUB_ID, BRANCH_ID, IKE_PROPOSAL, ESP_PROPOSAL, dpd_s=10, rekey_s=0, reauth_s=0)
    own = (f"{PROBE_ADDRESS}/32", f"{READY_ADDRESS}/32")
    probe = Child("probe", own, (f"{WIRED_PATH_ADDRESS}/32", f"{CELLULAR_PATH_ADDRESS}/32"))
    return Tunnels((Connection("hospital-1", ike, (probe, Child("traffic", lans, (BRANCH_LAN,), True))),))


def branch_wants(*paths: Path, active: Path = WIRED, dpd_s: int = 10, lans: tuple[str, ...] = HUB_LANS) -> Tunnels:
    connections = []
    for path in paths or (WIRED, CELLULAR):
        here = WIRED_ADDRESS if path == WIRED else CELLULAR_ADDRESS
        inner = WIRED_PATH_ADDRESS if path == WIRED else CELLULAR_PATH_ADDRESS
        ike = Ike((here,), (HUB_ADDRESS,), 4500, BRANCH_ID, HUB_ID, IKE_PROPOSAL, ESP_PROPOSAL, dpd_s, 14400, 86400)
        probe = Child("probe", (f"{inner}/32",), (f"{PROBE_ADDRESS}/32", f"{READY_ADDRESS}/32"))
        connections.append(Connection(str(path), ike, (probe, Child(TRAFFIC, (BRANCH_LAN,), lans))))
    return Tunnels(tuple(connections), {active: frozenset({TRAFFIC})})


@dataclass
class Run:
    """What was done, and what charon held at each look."""

    ops: list[TunnelOp] = field(default_factory=list)
    looks: list[Charon] = field(default_factory=list)

    @property
    def last(self) -> Charon:
        return self.looks[-1]


async def settle(port: Port, wanted: Tunnels, done: Callable[[Charon], bool] = lambda _: True) -> Run:
    """Read, step, apply until there is nothing to do, nothing under way, and `done`."""
    run = Run()
    attempts: Attempts = {}
    bell = Bell()

    async def listen(events: AsyncIterator[CharonEvent]) -> None:
        async for event in events:
            bell.ring(event.connection)

    with trio.fail_after(BOUND_S):
        async with port.subscription() as events, trio.open_nursery() as nursery:
            nursery.start_soon(listen, events)
            while True:
                observed = await port.read()
                run.looks.append(observed)
                decided = step(wanted, observed, attempts, trio.current_time())
                attempts = decided.attempts
                for op in decided.ops:
                    await port.apply(op)
                    run.ops.append(op)
                idle = all(sa.established and not sa.busy for sa in observed.ike_sas)
                if not decided.ops and idle and decided.wake_at is None and done(observed):
                    nursery.cancel_scope.cancel()
                    return run
                await bell.wait(trio.current_time() + 0.1)


async def both_up(ends: Ends, *paths: Path, active: Path = WIRED) -> Run:
    await settle(ends.hub, hub_wants())
    return await settle(ends.branch, branch_wants(*paths, active=active))


def installed(charon: Charon) -> list[tuple[str, str]]:
    """(path or peer, child), sorted."""
    return sorted(
        (sa.connection.removeprefix("cpe-").rpartition("-")[0], child.name)
        for sa in charon.ike_sas
        for child in sa.children
        if child.installed
    )


async def test_a_branch_with_one_path_comes_up_and_stays(ends: Ends) -> None:
    run = await both_up(ends, WIRED)
    name = branch_wants(WIRED).connections[0].name
    assert [type(op) for op in run.ops] == [LoadCredentials, LoadConnection, Initiate, Initiate]
    assert run.ops[2:] == [Initiate(name, TRAFFIC), Initiate(name, "probe")]
    assert installed(run.last) == [("wired.centre.wan", "probe"), ("wired.centre.wan", TRAFFIC)]
    (sa,) = run.last.ike_sas
    assert (sa.connection, sa.initiator, sa.remote_id, sa.remote_host) == (name, True, HUB_ID, HUB_ADDRESS)
    traffic = next(child for child in sa.children if child.name == TRAFFIC)
    assert (traffic.local_ts, traffic.remote_ts) == ((BRANCH_LAN,), HUB_LANS)
    again = await settle(ends.branch, branch_wants(WIRED))
    assert (again.ops, again.last) == ([], run.last)
    hub = await settle(ends.hub, hub_wants())
    assert hub.ops == []
    assert installed(hub.last) == [("hospital-1", "probe"), ("hospital-1", "traffic")]
    assert [(sa.initiator, sa.remote_id) for sa in hub.last.ike_sas] == [(False, BRANCH_ID)]


async def test_a_move_makes_the_new_child_before_the_old_one_ends(ends: Ends) -> None:
    await both_up(ends)
    run = await settle(ends.branch, branch_wants(active=CELLULAR))
    assert [type(op) for op in run.ops] == [Initiate, TerminateChild]
    for look in run.looks:
        assert TRAFFIC in [child for _, child in installed(look)]
    assert installed(run.last) == [
        ("cellular.centre.wan", "probe"),
        ("cellular.centre.wan", TRAFFIC),
        ("wired.centre.wan", "probe"),
    ]
    hub = await settle(ends.hub, hub_wants(), lambda charon: len(installed(charon)) == 3)
    assert hub.ops == []


async def test_after_charon_was_killed_everything_comes_back(ends: Ends) -> None:
    await both_up(ends, WIRED)
    async with ends.branch.subscription() as events:
        ends.kill_branch()
        with trio.fail_after(BOUND_S), pytest.raises(EdgeError, match="charon"):
            while True:
                await anext(events)
    with pytest.raises(EdgeError, match="charon"):
        await anext(aiter(ends.branch.events()))
    with pytest.raises(EdgeError, match="charon"):
        await ends.branch.read()
    with pytest.raises(EdgeError, match="charon"):
        await ends.branch.apply(LoadCredentials())
    ends.start_branch()
    assert await ends.branch.read() == Charon()
    run = await settle(ends.branch, branch_wants(WIRED))
    assert [type(op) for op in run.ops] == [LoadCredentials, LoadConnection, Initiate, Initiate]
    assert installed(run.last) == [("wired.centre.wan", "probe"), ("wired.centre.wan", TRAFFIC)]


async def test_a_hub_ends_what_goes_beyond_its_lans(ends: Ends) -> None:
    await both_up(ends, WIRED)
    async with ends.branch.subscription() as events:
        run = await settle(ends.hub, hub_wants(HUB_LANS[:1]))
        assert [type(op) for op in run.ops] == [LoadConnection, TerminateChild]
        assert installed(run.last) == [("hospital-1", "probe")]
        with trio.fail_after(BOUND_S):
            event = await anext(events)
    assert (event.kind, event.child) == (EventKind.CHILD_DOWN, TRAFFIC)
    assert installed(await ends.branch.read()) == [("wired.centre.wan", "probe")]
    # The live IKE_SA answers with the new configuration: what the branch gets now is narrower.
    await ends.branch.apply(Initiate(event.connection, TRAFFIC))
    narrowed = await settle(ends.hub, hub_wants(HUB_LANS[:1]), lambda charon: len(installed(charon)) == 2)
    assert narrowed.ops == []


async def test_a_lan_that_is_added_is_carried_without_a_gap(ends: Ends) -> None:
    await settle(ends.hub, hub_wants(HUB_LANS[:1]))
    before = await settle(ends.branch, branch_wants(WIRED, lans=HUB_LANS[:1]))
    await settle(ends.hub, hub_wants())
    run = await settle(ends.branch, branch_wants(WIRED))
    assert [type(op) for op in run.ops] == [LoadConnection, Initiate, TerminateChild]
    for look in run.looks:
        assert TRAFFIC in [child for _, child in installed(look)]
    (sa,) = run.last.ike_sas
    assert sa.unique_id == before.last.ike_sas[0].unique_id
    assert [child.remote_ts for child in sa.children if child.name == TRAFFIC and child.installed] == [HUB_LANS]


async def test_a_dead_path_is_ended_at_once_and_its_traffic_moves(ends: Ends) -> None:
    run = await both_up(ends)
    (dead,) = [sa.unique_id for sa in run.last.ike_sas if sa.connection.startswith("cpe-wired.")]
    ends.blackhole(WIRED)
    # The dead path is not dialled again here: only its end is looked at.
    wanted = branch_wants(CELLULAR, active=CELLULAR)
    with trio.fail_after(2):
        await ends.branch.apply(TerminateIke(dead, force=True))
        assert dead not in [sa.unique_id for sa in (await ends.branch.read()).ike_sas]
    moved = await settle(ends.branch, wanted)
    assert installed(moved.last) == [("cellular.centre.wan", "probe"), ("cellular.centre.wan", TRAFFIC)]


async def test_an_initiation_that_nobody_answers_is_under_way_and_not_repeated(ends: Ends) -> None:
    await settle(ends.hub, hub_wants())
    ends.blackhole(WIRED)
    wanted = branch_wants(WIRED)
    for op in (LoadCredentials(), LoadConnection(wanted.connections[0])):
        await ends.branch.apply(op)
    with trio.fail_after(2):
        await ends.branch.apply(Initiate(wanted.connections[0].name, TRAFFIC))
    observed = await ends.branch.read()
    assert [(sa.established, sa.busy) for sa in observed.ike_sas] == [(False, True)]
    assert step(wanted, observed, {}, trio.current_time()).ops == ()


async def test_a_change_of_ike_settings_takes_a_new_ike_sa_first(ends: Ends) -> None:
    run = await both_up(ends, WIRED)
    wanted = branch_wants(WIRED, dpd_s=11)
    changed = await settle(ends.branch, wanted)
    assert [type(op) for op in changed.ops] == [LoadConnection, Initiate, UnloadConnection, Initiate, TerminateIke]
    assert set(changed.last.connections) == {wanted.connections[0].name}
    assert [sa.connection for sa in changed.last.ike_sas] == [wanted.connections[0].name]
    assert changed.last.ike_sas[0].unique_id != run.last.ike_sas[0].unique_id
    for look in changed.looks:
        assert TRAFFIC in [child for _, child in installed(look)]


async def test_doing_it_twice_changes_nothing(ends: Ends) -> None:
    run = await both_up(ends, WIRED)
    connection = branch_wants(WIRED).connections[0]
    for op in (
        LoadCredentials(),
        LoadConnection(connection),
        Initiate(connection.name, "probe"),
        Initiate(connection.name, TRAFFIC),
        TerminateChild(999),
        TerminateIke(999, force=True),
        TerminateIke(999, force=False),
        UnloadConnection("cpe-gone-00000000"),
    ):
        await ends.branch.apply(op)
    assert (await settle(ends.branch, branch_wants(WIRED))).last == run.last
    with pytest.raises(EdgeError, match="nobody"):
        await ends.branch.apply(Initiate(connection.name, "nobody"))
    await ends.branch.apply(UnloadConnection(connection.name))
    after = await ends.branch.read()
    assert (after.connections, after.ike_sas) == ({}, run.last.ike_sas)


async def test_selectors_are_read_as_they_were_loaded(ends: Ends) -> None:
    children = (
        Child("narrow", ("10.1.0.0/24[tcp]",), ("10.0.0.0/24[tcp/443]", "10.0.1.0/24[tcp/8000-8080]")),
        Child("hosts", ("10.1.0.9/32[udp/53]", "10.1.0.8/32"), ("10.0.0.0/24[udp]", "10.0.1.7/32[udp/7777]")),
        Child("ping", ("10.1.0.0/24[icmp]",), ("0.0.0.0/0",)),
        Child("six", ("fd00:1::/64[tcp/22]",), ("fd00::1/128[ipv6-icmp]",)),
    )
    connection = msgspec.structs.replace(branch_wants(WIRED).connections[0], children=children)
    await ends.branch.apply(LoadConnection(connection))
    read = (await ends.branch.read()).connections[connection.name]
    assert {(c.name, c.local_ts, c.remote_ts) for c in read} == {(c.name, c.local_ts, c.remote_ts) for c in children}
    # Another load under the same name is seen at the next look.
    await ends.branch.apply(LoadConnection(msgspec.structs.replace(connection, children=children[:1])))
    assert [c.name for c in (await ends.branch.read()).connections[connection.name]] == ["narrow"]


async def test_a_child_of_some_ports_is_installed_as_wanted(ends: Ends) -> None:
    await settle(ends.hub, hub_wants())
    connection = branch_wants(WIRED).connections[0]
    ports = Child(
        TRAFFIC, (f"{BRANCH_LAN}[tcp]",), tuple(f"{lan}[tcp/{port}]" for lan in HUB_LANS for port in (443, 80))
    )
    connection = msgspec.structs.replace(connection, children=(connection.children[0], ports))
    run = await settle(ends.branch, Tunnels((connection,), {WIRED: frozenset({TRAFFIC})}))
    (child,) = [child for sa in run.last.ike_sas for child in sa.children if child.name == TRAFFIC]
    assert (child.local_ts, sorted(child.remote_ts)) == (ports.local_ts, sorted(ports.remote_ts))
    assert (await settle(ends.hub, hub_wants())).ops == []


def test_services_become_numbers() -> None:
    assert canonical_selector("10.1.0.0/24[tcp/https]") == "10.1.0.0/24[tcp/443]"
    assert canonical_selector("10.1.0.0/24[udp/domain]") == "10.1.0.0/24[udp/53]"
    assert canonical_selector("10.1.0.0/24[udp/OPAQUE]") == "10.1.0.0/24[udp/OPAQUE]"
    for plain in ("10.1.0.0/24", "10.1.0.0/24[tcp]", "10.1.0.0/24[tcp/1-9]", "10.1.0.0/24[icmp/8]", "fd00::/64"):
        assert canonical_selector(plain) == plain


async def test_credentials_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(EdgeError, match="our certificate"):
        CharonTunnels(FilePath("/nonexistent"), b"nonsense", b"", authority().pem, Backend.USERLAND)


@needs_charon
async def test_only_our_connections_are_seen(real_bed: Bed, real: RealEnds) -> None:
    async with open_vici(real_bed.branch.vici) as vici:
        await vici.request("load-conn", {"other": {"version": 2, "remote_addrs": [HUB_ADDRESS]}})
    first = branch_wants(WIRED).connections[0]
    connections = [msgspec.structs.replace(first, stem=f"many-{number}") for number in range(12)]
    for connection in connections:
        await real.branch.apply(LoadConnection(connection))
    assert set((await real.branch.read()).connections) == {connection.name for connection in connections}


@needs_charon
async def test_charon_knows_the_marks_of_the_kernel_backend(real_bed: Bed, real: RealEnds) -> None:
    (connection,) = hub_wants().connections
    assert any(child.unique_marks for child in connection.children)
    marked = connection_message(connection, Backend.KERNEL)
    assert "%unique" in str(marked) and "%unique" not in str(connection_message(connection, Backend.USERLAND))
    async with open_vici(real_bed.hub.vici) as vici:
        await vici.request("load-conn", {connection.name: marked})
    assert set((await real.hub.read()).connections) == {connection.name}


@needs_charon
async def test_new_credentials_replace_old_ones(real_bed: Bed, real: RealEnds) -> None:
    await real.branch.apply(LoadCredentials())
    assert (await real.branch.read()).credentials_loaded
    other = Authority.make("another")
    # A renewed certificate; one authority more; the old authority no longer.
    for trusted in (authority().pem, authority().pem + other.pem, other.pem):
        with closing(tunnels(real_bed.branch.vici, BRANCH_ID, trusted=trusted)) as renewed:
            assert not (await renewed.read()).credentials_loaded
            await renewed.apply(LoadCredentials())
            assert (await renewed.read()).credentials_loaded


@needs_charon
async def test_a_peer_of_another_authority_is_refused(real_bed: Bed, real: RealEnds) -> None:
    await settle(real.hub, hub_wants())
    stranger = Authority.make("overlay")
    issued = stranger.issue(BRANCH_ID)
    both = authority().pem + stranger.pem
    connection = branch_wants(WIRED).connections[0]
    with closing(
        CharonTunnels(real_bed.branch.vici, issued.certificate_pem, issued.key_pem, both, Backend.USERLAND)
    ) as port:
        for op in (LoadCredentials(), LoadConnection(connection)):
            await port.apply(op)
        async with port.subscription() as events:
            await port.apply(Initiate(connection.name, "probe"))
            with trio.fail_after(BOUND_S):
                assert (await anext(events)).kind is EventKind.IKE_DOWN
        assert (await port.read()).ike_sas == ()
    assert (await real.hub.read()).ike_sas == ()


@needs_charon
async def test_the_dialler_replaces_an_old_ike_sa_without_a_gap(real: RealEnds) -> None:
    await settle(real.hub, hub_wants())
    young = branch_wants(WIRED).connections[0]
    young = msgspec.structs.replace(young, ike=msgspec.structs.replace(young.ike, reauth_s=2))
    wanted = Tunnels((young,), {WIRED: frozenset({TRAFFIC})})
    run = await settle(real.branch, wanted)
    (old,) = run.last.ike_sas
    ups: set[str] = set()
    async with real.branch.subscription() as events:
        with trio.fail_after(BOUND_S):
            while True:
                event = await anext(events)
                if event.unique_id == old.unique_id:
                    break
                if event.kind is EventKind.CHILD_UP:
                    ups.add(event.child)
    assert (event.kind, ups) == (EventKind.IKE_DOWN, {"probe", TRAFFIC})
