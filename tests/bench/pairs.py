"""How fast do ten thousand pairs get into the kernel, and what does an edit cost those that stay?

A hub of 250 branches with 40 pairs each: eight of ten begun by the branch, one by the hub, one by either. The plan and
reconcile loops are the agent's, nftables is the kernel's; routes and charon, which have no part in this, are fakes.
Times run from the decoded document to the end of the transaction that puts it into the kernel; then a listing, made
apart, has to say that nothing is missing.
"""

from __future__ import annotations

import ipaddress
import random
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec
import trio

from cpe_agent.core.compile import compile_dataplane
from cpe_agent.edge.nftables import NftablesFirewall
from cpe_agent.log import configure
from cpe_agent.loops.cells import Cells, Readiness
from cpe_agent.loops.planning import keep_plan
from cpe_agent.loops.reconcile import Reconciler
from cpe_agent.model.dataplane import Backend
from cpe_agent.model.document import Document, Pair, Peer, encode
from cpe_agent.model.document_check import decode
from cpe_agent.model.ops import FirewallOp
from tests.bench.crossing import Crossing
from tests.core.documents import CENTRE_LAN, HUB, HUB_LINKS, hub, pair
from tests.fakes.charon import FakeCharon
from tests.fakes.early import FakeEarly
from tests.fakes.routes import FakeRoutes

BRANCHES, PAIRS_EACH = 250, 40
RATE = 1000  # packets per second, each way
MANY = 100  # so many pairs at once take a set swap

_DEADLINE_S = 60.0
_QUIET_S = 0.5  # for what the last edit still rings
_BRANCH_NETS = int(ipaddress.ip_address("10.128.0.0"))
_SITES = int(ipaddress.ip_address("10.254.0.0"))

Say = Callable[[str], None]


def first_apply(runs: int, chance: random.Random, say: Say) -> list[float]:
    """ms from the first document to a table that holds it, by an agent that has just started."""
    return [_clean(trio.run(_first_apply), run, say) for run in range(1, runs + 1)]


def pair_added(runs: int, chance: random.Random, say: Say) -> list[float]:
    """ms from a document with one pair more to that pair in the kernel."""
    return [more for more, _ in trio.run(_edit, runs, chance, say)]


def pair_removed(runs: int, chance: random.Random, say: Say) -> list[float]:
    """ms from a document with one pair less to that pair out of the kernel."""
    return [less for _, less in trio.run(_edit, runs, chance, say)]


def edit_lost(runs: int, chance: random.Random, say: Say) -> list[float]:
    """Packets lost of two flows, one each way, while other pairs come and go, one by one and by set swaps."""
    return [_clean(float(trio.run(_edit_under_way, chance, say)), run, say) for run in range(1, runs + 1)]


def foreign_flush(runs: int, chance: random.Random, say: Say) -> list[float]:
    """ms from somebody's `nft flush ruleset` to a listing that is as wanted."""
    return trio.run(_foreign_flush, runs, chance, say)


def document(version: int, pairs: tuple[Pair, ...]) -> Document:
    """What the controller would have sent: decoded, so that it shares nothing with the one before."""
    return decode(encode(hub(version=version, peers=PEERS, pairs=pairs)))


class WatchedFirewall(NftablesFirewall):
    """Tells when each of its transactions was through."""

    def __init__(self) -> None:
        super().__init__()
        self.applied_at = 0.0
        self.applied = trio.Event()

    async def apply(self, ops: Sequence[FirewallOp]) -> None:
        await super().apply(ops)
        self.applied_at = time.perf_counter()
        self.applied.set()

    async def apply_of(self, change: Callable[[], object]) -> float:
        """Make `change`; ms until the next transaction after it was through."""
        self.applied = trio.Event()
        began = time.perf_counter()
        change()
        with trio.fail_after(_DEADLINE_S):
            await self.applied.wait()
        return (self.applied_at - began) * 1000


class Agent:
    """The loops that put rules into the kernel."""

    def __init__(self) -> None:
        self.cells = Cells()
        self.firewall = WatchedFirewall()
        routes = FakeRoutes()
        for link in HUB_LINKS.by_name.values():
            routes.set_link(link)
        self.reconciler = Reconciler(self.cells, self.firewall, routes, FakeCharon(), Backend.USERLAND, FakeEarly())
        self.cells.links.set(HUB_LINKS)
        self.cells.readiness.set(Readiness(True))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_plan, self.cells, HUB)
            nursery.start_soon(self.reconciler.run)
            await self.reconciler.firewall_seen_to.wait()
            yield
            nursery.cancel_scope.cancel()

    async def obey(self, asked: Document) -> float:
        """ms until it is in the kernel; then all is as wanted."""
        took = await self.firewall.apply_of(lambda: self.cells.document.set(asked))
        await self.check(asked)
        return took

    async def check(self, asked: Document) -> None:
        """A listing by somebody else says that all is as it should be."""
        with trio.fail_after(_DEADLINE_S):
            while True:
                listed = await NftablesFirewall().read()
                if listed == compile_dataplane(asked, HUB_LINKS, HUB)[0].ruleset:
                    return
                await trio.sleep(0.1)


async def _first_apply() -> float:
    agent = Agent()
    asked = document(1, PAIRS)
    async with agent.running():
        return await agent.obey(asked)


async def _edit(runs: int, chance: random.Random, say: Say) -> list[tuple[float, float]]:
    """Each run adds one pair and removes another. What the kernel takes to remove one depends on where in the set it
    happens to be: any of them, then."""
    agent = Agent()
    found = []
    pairs = [*PAIRS]
    async with agent.running():
        await agent.obey(document(1, PAIRS))
        for run in range(1, runs + 1):
            pairs.insert(chance.randrange(len(pairs)), _newcomer(chance, run))
            more = document(2 * run, tuple(pairs))
            await trio.sleep(_QUIET_S)
            added_ms = await agent.obey(more)
            gone = pairs.pop(chance.randrange(len(pairs)))
            less = document(2 * run + 1, tuple(pairs))
            await trio.sleep(_QUIET_S)
            removed_ms = await agent.obey(less)
            say(f"run {run} of {runs}: added in {added_ms:.1f} ms, {gone.id} removed in {removed_ms:.1f} ms")
            found.append((added_ms, removed_ms))
    return found


async def _edit_under_way(chance: random.Random, say: Say) -> int:
    agent = Agent()
    crossed = Crossing("10.10.0.7", "10.10.0.1", "10.128.0.9", "10.128.0.1", RATE)
    asked = document(1, (*KEPT, *PAIRS))
    steps = [
        (*KEPT, *PAIRS, _newcomer(chance, 1)),
        (*KEPT, *PAIRS[1:], _newcomer(chance, 1)),
        (*KEPT, *PAIRS[MANY:]),
        (*KEPT, *PAIRS),
        (*KEPT, *PAIRS[:-MANY]),
        (*PAIRS, *KEPT),
    ]
    async with agent.running():
        await agent.obey(asked)
        with crossed.running():
            for number, pairs in enumerate(steps, start=2):
                await trio.sleep(_QUIET_S)
                await agent.obey(document(number, pairs))
            await trio.sleep(_QUIET_S)
        say(f"{len(steps)} edits: {crossed.told()}")
    crossed.close()
    return crossed.lost


async def _foreign_flush(runs: int, chance: random.Random, say: Say) -> list[float]:
    agent = Agent()
    asked = document(1, PAIRS)
    wanted = compile_dataplane(asked, HUB_LINKS, HUB)[0].ruleset
    found = []
    async with agent.running():
        await agent.obey(asked)
        for run in range(1, runs + 1):
            await trio.sleep(_QUIET_S + chance.uniform(0, 1))
            agent.firewall.applied = trio.Event()
            await trio.run_process(["nft", "flush", "ruleset"])
            began = time.perf_counter()
            with trio.fail_after(_DEADLINE_S):
                await agent.firewall.applied.wait()
                repaired = await NftablesFirewall().read()
            took, repair = (time.perf_counter() - began) * 1000, (agent.firewall.applied_at - began) * 1000
            if repaired != wanted:
                raise RuntimeError("what was put back is not what was wanted")
            say(f"run {run} of {runs}: {took:.0f} ms, {repair:.0f} of them to repair")
            found.append(took)
    return found


def _clean(sample: float, run: int, say: Say) -> float:
    say(f"run {run}: {sample:.1f}")
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    return sample


def _newcomer(chance: random.Random, number: int) -> Pair:
    branch = f"branch-{chance.randrange(BRANCHES)}"
    return pair(
        f"new-{number}",
        PEERS[branch].lans[0],
        branch,
        local=CENTRE_LAN,
        initiator="remote",
        protocol="udp",
        # Its own: a pair that another one covers puts nothing into the kernel.
        ports=(str(60_000 + number),),
    )


def branch_peer(number: int) -> Peer:
    """Branch `number`, as its hub is told of it: one LAN, two uplinks."""
    lan = ipaddress.ip_address(_BRANCH_NETS + 256 * number)
    site, *paths = (str(ipaddress.ip_address(_SITES + 4 * number + index)) for index in range(3))
    return Peer(f"branch-{number}.city", False, site, (f"{lan}/24",), path_addresses=tuple(paths))


def _pair(number: int) -> Pair:
    branch, index = f"branch-{number % BRANCHES}", number // BRANCHES
    # Servers of their own and ones for all, single ports and ranges.
    server = f"10.10.0.{10 + index}/32" if index % 2 else CENTRE_LAN
    ports = (f"{2000 + 10 * index}",) if index % 4 else (f"{2000 + 10 * index}-{2004 + 10 * index}",)
    starts = {0: "local", 1: "either"}.get(number // BRANCHES % 10, "remote")
    one = pair(f"p{number}", PEERS[branch].lans[0], branch, local=server, protocol="tcp", ports=ports)
    return msgspec.structs.replace(one, initiator=starts)


PEERS = {f"branch-{number}": branch_peer(number) for number in range(BRANCHES)}
PAIRS = tuple(_pair(number) for number in range(BRANCHES * PAIRS_EACH))
# What the packets of `edit_lost` are listed by.
KEPT = (
    pair("kept-out", "10.128.0.0/24", "branch-0", local=CENTRE_LAN, initiator="local", protocol="udp", ports=("7000",)),
    pair("kept-in", "10.128.0.0/24", "branch-0", local=CENTRE_LAN, initiator="remote", protocol="udp", ports=("7001",)),
)
# Conditions come and go by the score here; none of that is what is measured.
configure("console", "error")
