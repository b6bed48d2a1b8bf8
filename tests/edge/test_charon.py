"""What only the real charon has: its words, its certificates, other people's connections, its own timers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path as FilePath

import msgspec
import pytest
import trio

from cpe_agent.edge.charon import CharonTunnels, canonical_selector
from cpe_agent.edge.connection import connection_message
from cpe_agent.edge.vici import open_vici
from cpe_agent.model.dataplane import Backend, Child, Tunnels
from cpe_agent.model.observed import EventKind
from cpe_agent.model.ops import (
    Initiate,
    LoadConnection,
    LoadCredentials,
    TerminateIke,
)
from cpe_agent.ports import EdgeError
from tests.edge.charon_bed import (
    BRANCH_ID,
    HUB_ADDRESS,
    Authority,
    Bed,
    authority,
    bed,
)
from tests.edge.charon_ends import (
    BOUND_S,
    NEEDS_CHARON,
    TRAFFIC,
    WIRED,
    RealEnds,
    branch_wants,
    hub_wants,
    settle,
    tunnels,
)


@pytest.fixture(scope="module")
def real_bed() -> Iterator[Bed]:
    with bed() as both:
        yield both


@pytest.fixture
async def real(real_bed: Bed) -> AsyncIterator[RealEnds]:
    real = RealEnds(real_bed)
    yield real
    real.close()


def test_services_become_numbers() -> None:
    assert canonical_selector("10.1.0.0/24[tcp/https]") == "10.1.0.0/24[tcp/443]"
    assert canonical_selector("10.1.0.0/24[udp/domain]") == "10.1.0.0/24[udp/53]"
    assert canonical_selector("10.1.0.0/24[udp/OPAQUE]") == "10.1.0.0/24[udp/OPAQUE]"
    for plain in ("10.1.0.0/24", "10.1.0.0/24[tcp]", "10.1.0.0/24[tcp/1-9]", "10.1.0.0/24[icmp/8]", "fd00::/64"):
        assert canonical_selector(plain) == plain


async def test_credentials_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(EdgeError, match="our certificate"):
        CharonTunnels(FilePath("/nonexistent"), b"nonsense", b"", authority().pem, Backend.USERLAND)


@NEEDS_CHARON
async def test_only_our_connections_are_seen(real_bed: Bed, real: RealEnds) -> None:
    async with open_vici(real_bed.branch.vici) as vici:
        await vici.request("load-conn", {"other": {"version": 2, "remote_addrs": [HUB_ADDRESS]}})
    first = branch_wants(WIRED).connections[0]
    connections = [msgspec.structs.replace(first, stem=f"many-{number}") for number in range(12)]
    for connection in connections:
        await real.branch.apply(LoadConnection(connection))
    assert set((await real.branch.read()).connections) == {connection.name for connection in connections}


@NEEDS_CHARON
async def test_charon_knows_the_marks_of_the_kernel_backend(real_bed: Bed, real: RealEnds) -> None:
    (connection,) = hub_wants().connections
    assert any(child.unique_marks for child in connection.children)
    marked = connection_message(connection, Backend.KERNEL)
    assert "%unique" in str(marked) and "%unique" not in str(connection_message(connection, Backend.USERLAND))
    async with open_vici(real_bed.hub.vici) as vici:
        await vici.request("load-conn", {connection.name: marked})
    assert set((await real.hub.read()).connections) == {connection.name}


@NEEDS_CHARON
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


@pytest.mark.parametrize(
    ("rekey_s", "reauth_s", "spread"),
    [(14400, 86400, "7200s"), (14400, 60, "6s"), (600, 86400, "300s"), (0, 600, "60s"), (14400, 2, "0s"), (0, 0, "0s")],
)
def test_that_chance_leaves_something_of_each_life(rekey_s: int, reauth_s: int, spread: str) -> None:
    connection = branch_wants(WIRED).connections[0]
    ike = msgspec.structs.replace(connection.ike, rekey_s=rekey_s, reauth_s=reauth_s)
    message = connection_message(msgspec.structs.replace(connection, ike=ike), Backend.USERLAND)
    assert message["rand_time"] == spread


@NEEDS_CHARON
async def test_a_renewed_certificate_leaves_live_tunnels_alone_and_is_used_for_the_next(real: RealEnds) -> None:
    await settle(real.hub, hub_wants())
    wanted = branch_wants(WIRED)
    before = await settle(real.branch, wanted)
    (sa,) = before.last.ike_sas
    renewed = authority().issue(BRANCH_ID)
    assert isinstance(real.branch, CharonTunnels)
    real.branch.use_credentials(renewed.certificate_pem, renewed.key_pem, authority().pem)
    after = await settle(real.branch, wanted)
    assert [type(op) for op in after.ops] == [LoadCredentials]
    assert [(s.unique_id, s.established) for s in after.last.ike_sas] == [(sa.unique_id, True)]
    await real.branch.apply(TerminateIke(sa.unique_id, force=True))
    again = await settle(real.branch, wanted)
    (fresh,) = again.last.ike_sas
    assert fresh.established and fresh.unique_id != sa.unique_id


@NEEDS_CHARON
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


@NEEDS_CHARON
async def test_the_dialler_replaces_an_old_ike_sa_without_a_gap(real: RealEnds) -> None:
    await settle(real.hub, hub_wants())
    young = branch_wants(WIRED).connections[0]
    young = msgspec.structs.replace(young, ike=msgspec.structs.replace(young.ike, reauth_s=2))
    wanted = Tunnels((young,), {WIRED: frozenset({TRAFFIC})})
    # From before the first one is there: on a machine that stands still it is replaced before anybody looks.
    async with real.branch.subscription() as events:
        run = await settle(real.branch, wanted)
        old = min(sa.unique_id for look in run.looks for sa in look.ike_sas)
        ups: set[str] = set()
        with trio.fail_after(BOUND_S):
            while True:
                event = await anext(events)
                if event.unique_id == old and event.kind in (EventKind.IKE_DOWN, EventKind.CHILD_DOWN):
                    break
                if event.unique_id != old and event.kind is EventKind.CHILD_UP:
                    ups.add(event.child)
    assert (event.kind, ups) == (EventKind.IKE_DOWN, {"probe", TRAFFIC})


@NEEDS_CHARON
async def test_a_trial_takes_the_questions_beside_the_traffic(real: RealEnds) -> None:
    await settle(real.hub, hub_wants())
    wanted = branch_wants(WIRED)
    connection = wanted.connections[0]
    trial = Child("trial-x", ("10.1.0.1/32[icmp]", "10.1.0.1/32[tcp]"), ("10.0.0.0/24[icmp]", "10.0.0.0/24[tcp/443]"))
    connection = msgspec.structs.replace(connection, children=tuple(sorted((*connection.children, trial))))
    tried = Tunnels((connection,), {WIRED: frozenset({TRAFFIC, "trial-x"})})
    run = await settle(real.branch, tried)
    (sa,) = run.last.ike_sas
    held = {child.name: (sorted(child.local_ts), sorted(child.remote_ts)) for child in sa.children if child.installed}
    assert held["trial-x"] == (sorted(trial.local_ts), sorted(trial.remote_ts))
    spis = {child.name: child.spi_in for child in sa.children}
    assert all(spis.values()) and len(set(spis.values())) == len(spis)
    # The hub agrees, and has nothing against it.
    assert (await settle(real.hub, hub_wants())).last.ike_sas
    # What is no longer wanted goes, and the traffic stays.
    run = await settle(real.branch, Tunnels((connection,), {WIRED: frozenset({TRAFFIC})}))
    names = {child.name for sa in run.last.ike_sas for child in sa.children if child.installed}
    assert names == {"probe", TRAFFIC}


@NEEDS_CHARON
async def test_an_event_tells_the_spi_of_what_came_up(real: RealEnds) -> None:
    await settle(real.hub, hub_wants())
    async with real.branch.subscription() as events:
        run = await settle(real.branch, branch_wants(WIRED))
        told: dict[str, int] = {}
        with trio.fail_after(BOUND_S):
            while TRAFFIC not in told:
                event = await anext(events)
                if event.kind is EventKind.CHILD_UP:
                    told[event.child] = event.spi_in
    (sa,) = run.last.ike_sas
    assert told[TRAFFIC] == next(child.spi_in for child in sa.children if child.name == TRAFFIC) != 0
