"""What does it cost a hub of 2,000 branches with two uplinks each to see that nothing has happened?

Real nftables (10,000 pairs), real netlink (routes for all that lies behind the branches) and a real charon that holds
the 2,000 connections; no IKE_SA lives. A pass looks at rules, routes and tunnels, as the loops do at each slow tick.
"""

from __future__ import annotations

import ctypes
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import trio

from cpe_agent.core.verify import ROUTES, RULES, TUNNELS
from cpe_agent.edge.charon import READS_UNTIL_CONTENTS, CharonTunnels
from cpe_agent.edge.netlink import Netlink
from cpe_agent.edge.nftables import NftablesFirewall
from cpe_agent.loops.bell import Bell
from cpe_agent.loops.cells import Cells, Readiness
from cpe_agent.loops.links import watch_links
from cpe_agent.loops.planning import keep_plan
from cpe_agent.loops.reconcile import Reconciler
from cpe_agent.model.dataplane import Backend
from cpe_agent.model.document import encode
from cpe_agent.model.document_check import decode
from tests.bench.pairs import BRANCHES, PAIRS, branch_peer
from tests.core.documents import HUB, hub
from tests.edge.charon_bed import Host, authority
from tests.fakes.early import FakeEarly

HUB_BRANCHES = 2000
_CLONE_NEWNET = 0x40000000
_SYNC_S = 180.0  # thousands of routes and connections, one by one
_SETTLE_S = 3.0
_PASS_S = 0.5  # long enough for a pass, far from the next slow tick
_LINKS = (("wan", "198.51.100.10/29"), ("lan0", "10.10.0.1/24"), ("lan1", "10.50.0.1/24"))


def idle_pass(runs: int, chance: random.Random, say: Callable[[str], None]) -> list[float]:
    """ms of processor time of a pass, each the mean over as many passes as it takes to read all contents again."""
    with tempfile.TemporaryDirectory() as directory:
        host = Host("hub", Path(directory))
        try:
            for name, address in _LINKS:
                host.run("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}-peer")
                host.run("ip", "address", "add", address, "dev", name)
                host.run("ip", "link", "set", name, "up")
                host.run("ip", "link", "set", f"{name}-peer", "up")
            host.run("ip", "route", "add", "default", "via", "198.51.100.9")
            host.start_charon()
            _enter(host)
            return trio.run(_measure, host, runs, say)
        finally:
            host.close()


async def _measure(host: Host, runs: int, say: Callable[[str], None]) -> list[float]:
    identity = authority().issue(HUB.identity)
    charon = CharonTunnels(host.vici, identity.certificate_pem, identity.key_pem, authority().pem, Backend.USERLAND)
    cells, firewall, netlink = Cells(), NftablesFirewall(), Netlink()
    cells.readiness.set(Readiness(True))
    reconciler = Reconciler(cells, firewall, netlink, charon, Backend.USERLAND, FakeEarly())
    peers = {f"branch-{number}": branch_peer(number) for number in range(HUB_BRANCHES)}
    assert HUB_BRANCHES >= BRANCHES
    asked = decode(encode(hub(peers=peers, pairs=PAIRS)))
    samples = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_links, cells, netlink, reconciler.bell)
        nursery.start_soon(keep_plan, cells, HUB)
        nursery.start_soon(reconciler.run)
        began = time.perf_counter()
        cells.document.set(asked)
        with trio.fail_after(_SYNC_S):
            while not await _in_sync(cells, firewall, netlink, charon):  # noqa: ASYNC110 - the kernel rings no Event
                await trio.sleep(_SETTLE_S)
        say(f"all in place {time.perf_counter() - began:.0f} s after the document")
        await trio.sleep(_SETTLE_S)
        for run in range(1, runs + 1):
            costs = [await _cost(reconciler.bell, reconciler.tunnels_bell) for _ in range(READS_UNTIL_CONTENTS)]
            samples.append(sum(costs) / len(costs))
            say(f"run {run} of {runs}: {samples[-1]:.1f} ms a pass (from {min(costs):.1f} to {max(costs):.1f})")
        nursery.cancel_scope.cancel()
    charon.close()
    return samples


async def _cost(*bells: Bell) -> float:
    began = time.process_time()
    for bell in bells:
        bell.ring(RULES, ROUTES, TUNNELS)
    await trio.sleep(_PASS_S)
    return (time.process_time() - began) * 1000


async def _in_sync(cells: Cells, firewall: NftablesFirewall, netlink: Netlink, charon: CharonTunnels) -> bool:
    plan = cells.plan.value
    if plan is None:
        return False
    wanted = plan.dataplane
    names = {connection.name for connection in wanted.tunnels.connections}
    return (
        await firewall.read() == wanted.ruleset
        and (await netlink.read()).routes >= wanted.routes.routes
        and set((await charon.read()).connections) == names
    )


def _enter(host: Host) -> None:
    """This process goes where its charon is. Nothing has a thread yet."""
    with open(f"/proc/{host.pid}/ns/net") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}")
