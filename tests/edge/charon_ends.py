"""Both ends of two paths, in memory or for real, what they should hold, and the loop that brings them there.

core.tunnels decides, as in the product: read, step, apply until nothing is left to do, woken by events.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Protocol

import msgspec
import pytest
import trio

from cpe_agent.core.tunnels import Attempts, step
from cpe_agent.edge.charon import CharonTunnels
from cpe_agent.edge.ipsec import resolve
from cpe_agent.loops.bell import Bell
from cpe_agent.model.dataplane import Child, Connection, Ike, Path, Tunnels
from cpe_agent.model.observed import Charon, CharonEvent
from cpe_agent.model.ops import (
    TunnelOp,
)
from cpe_agent.ports import TunnelPort
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
    Bed,
    authority,
)
from tests.fakes.charon import Answer, FakeCharon
from tests.lab.pace import BACKEND, patience

IKE_PROPOSAL, ESP_PROPOSAL = "aes256gcm16-prfsha384-ecp256", "aes256gcm16-ecp256"
TRAFFIC = "traffic-centre+cloud/voice"
WIRED, CELLULAR = Path("wired", "centre", "wan"), Path("cellular", "centre", "wan")
# How long anything here may take: a set-up is 10 ms, on a busy machine many times that.
BOUND_S = patience(15.0)

NEEDS_CHARON = pytest.mark.skipif(NO_CHARON, reason="needs root, charon-systemd and /dev/net/tun")


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
    return CharonTunnels(vici, issued.certificate_pem, issued.key_pem, trusted or authority().pem, resolve(BACKEND))


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


def grown(charon: Charon) -> Charon:
    """As it is when nothing in it is young any more."""
    sas = tuple(
        msgspec.structs.replace(sa, children=tuple(msgspec.structs.replace(c, young=False) for c in sa.children))
        for sa in charon.ike_sas
    )
    return msgspec.structs.replace(charon, ike_sas=sas)


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
