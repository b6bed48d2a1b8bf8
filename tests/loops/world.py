"""A simulated router in its world: the fakes, the internet between site and hubs, and agents that come and go.

What the kernel and charon hold stays when an agent ends; the next one finds it, as after a restart. Everything that is
done to charon, nftables and netlink, and everything that is logged, is told in `World.story`.
"""

from __future__ import annotations

import ipaddress
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import structlog
import trio

from cpe_agent.core.compile import Site
from cpe_agent.loops.announce import Announcer
from cpe_agent.loops.cells import Cells
from cpe_agent.loops.clock import FlooredClock
from cpe_agent.loops.confirm import InForce
from cpe_agent.loops.drill import Drills
from cpe_agent.loops.follow import Follower
from cpe_agent.loops.links import watch_links
from cpe_agent.loops.metering import Metering
from cpe_agent.loops.own_way import keep_own_way
from cpe_agent.loops.planning import keep_plan
from cpe_agent.loops.probing import Probing
from cpe_agent.loops.readiness import ReadinessKeeper
from cpe_agent.loops.reconcile import Reconciler
from cpe_agent.loops.report import Reporter
from cpe_agent.loops.services import ServiceProbing
from cpe_agent.loops.steering import steer_bundles
from cpe_agent.model.condition import Status
from cpe_agent.model.dataplane import Backend, Path, Routes, Ruleset, stem_of
from cpe_agent.model.document import Document
from cpe_agent.model.observed import Charon, IkeSa, Link, LinkAddress, Links
from cpe_agent.model.ops import FirewallOp, RouteOp, TunnelOp
from cpe_agent.model.site_report import Box
from tests.fakes.charon import Answer, FakeCharon
from tests.fakes.controller import FakeController
from tests.fakes.early import FakeEarly
from tests.fakes.firewall import FirewallFake
from tests.fakes.prober import FakeProber
from tests.fakes.records import FakeRecords
from tests.fakes.routes import FakeRoutes
from tests.fakes.store import FakeStore
from tests.loops.documents import CENTRE, CLOUD, IDENTITY, KEY_ID, POST, PUBLIC, SITE
from tests.loops.story import Noted, Story, told_route_op, told_rules, told_tunnel_op

RTT_S = {"wired": 0.02, "lte": 0.05}
PATH_ADDRESSES = {"10.255.101.2": "wired", "10.255.101.3": "lte"}
HUBS = (CENTRE, CLOUD)
BOX = Box("6f1c1a52-0000-4000-8000-000000000001", "boot-1")
START_OF_2026_S = 1767225600.0
LAN_ADDRESS = "10.101.0.1"
# Far more than any burst of events takes.
STEPS_AT_ONCE = 100_000
TUNNEL_DEVICE = Backend.USERLAND.device

LINKS = (
    Link("wired", True, (LinkAddress("203.0.113.18", 28),), ("203.0.113.17",)),
    Link("lte", True, (LinkAddress("100.64.1.10", 24),), ("100.64.1.1",)),
    Link("lan0", True, (LinkAddress("10.101.0.1", 24),)),
)


class World:
    """A hospital by default; `site` and `links` make it another router."""

    def __init__(self, site: str = SITE, identity: str = IDENTITY, links: tuple[Link, ...] = LINKS) -> None:
        self.story = Story()
        self.charon = _PatientCharon(self)
        self.firewall = _PatientFirewall(self)
        self.kernel_takes_s = 0.0  # to apply rules, and routes
        self.reading_takes_s = 0.0  # rules, routes, links and IKE_SAs: a long list, a busy processor
        self.routes = _PatientRoutes(self)
        self.controller = FakeController()
        self.store = FakeStore()
        self.early = FakeEarly()
        self.lan_prober = FakeProber()  # what a hub asks its LANs with
        self.unready: set[str] = set()  # hubs that answer probes but are not willing to serve
        self.blackholed: set[str] = set()  # uplinks
        self.wall: Callable[[], float] = time.time
        self.wall_offset_s = START_OF_2026_S  # what the clock on the wall is ahead of the simulated one
        self.dead_servers: set[tuple[str, str]] = set()  # (server, hub)
        self.records = FakeRecords()
        self.loss: dict[str, float] = {}  # by uplink, 0 to 1
        # Apart from the waits that the agent draws: one wait more must not lose other packets.
        self._chance = random.Random(1)
        self.rtt_s = dict(RTT_S)
        self.asked: list[tuple[float, str]] = []  # (when, uplink) of every echo request of a probe
        self.site = site
        self.identity = identity
        self.charon.applied = Noted[TunnelOp](
            lambda op: self.story.note("tunnels", told_tunnel_op(op, self.charon.ike_sas()))
        )
        self.firewall.applied = Noted[tuple[FirewallOp, ...]](lambda ops: self.story.note("rules", told_rules(ops)))
        self.routes.ops = Noted(lambda op: self.story.note("routes", told_route_op(op)))
        for link in (*links, Link(TUNNEL_DEVICE, True)):
            self.routes.set_link(link)

    def wall_clock(self) -> float:
        return self.wall_offset_s + trio.current_time()

    def publish(self, document: Document) -> None:
        """The controller has this document for the site now."""
        self.controller.put(POST.send(document), document.order)

    def blackhole(self, uplink: str) -> None:
        """Nothing comes through any more; the link stays up."""
        self.blackholed.add(uplink)
        for hub in HUBS:
            self.charon.answers[f"{uplink}.{hub.name}.wan"] = Answer.SILENT

    def heal(self, uplink: str) -> None:
        self.blackholed.discard(uplink)
        for hub in HUBS:
            self.charon.answers.pop(f"{uplink}.{hub.name}.wan", None)

    def kill_charon(self) -> None:
        """kill -9: its memory, its device and the routes into that are gone."""
        self.charon.kill()
        self.routes.remove_link(TUNNEL_DEVICE)

    def start_charon(self) -> None:
        self.charon.start()
        self.routes.set_link(Link(TUNNEL_DEVICE, True))

    def carried(self) -> dict[str, str]:
        """Traffic child -> the path whose IKE_SA has it installed, newest wins: what the traffic follows."""
        found = [
            (child.unique_id, child.name, stem_of(sa.connection))
            for sa in self.charon.ike_sas()
            for child in sa.children
            if child.installed and child.name.startswith("traffic-")
        ]
        return {name.removeprefix("traffic-"): path for _, name, path in sorted(found)}

    def serves(self, server: str) -> bool:
        """Would this server answer the router now? Its packets take the newest of the most specific children."""
        asked = ipaddress.ip_address(server)
        found = [
            (child.name.startswith("trial-"), child.unique_id, path)
            for sa in self.charon.ike_sas()
            if (path := Path.parse(stem_of(sa.connection)))
            for child in sa.children
            if child.installed
            and any(asked in ipaddress.ip_network(subnet.partition("[")[0]) for subnet in child.remote_ts)
        ]
        if not found:
            return False
        path = max(found)[2]
        return path.uplink not in self.blackholed and (server, path.peer) not in self.dead_servers

    def answers(self, source: str, target: str) -> bool:
        """Would an echo request from `source` reach the hub that has `target`, and be answered?"""
        uplink = PATH_ADDRESSES.get(source)
        hub = next((h for h in HUBS if target in (h.endpoint.probe_address, h.endpoint.ready_address)), None)
        if uplink is None or hub is None or uplink in self.blackholed or self._lost(uplink):
            return False
        if target == hub.endpoint.ready_address and hub.name in self.unready:
            return False
        return self._has_probe(f"{uplink}.{hub.name}.wan")

    def _has_probe(self, stem: str) -> bool:
        return any(self._probes(sa, stem) for sa in self.charon.ike_sas())

    def _lost(self, uplink: str) -> bool:
        loss = self.loss.get(uplink, 0.0)
        return loss > 0 and self._chance.random() < loss

    async def dataplane(self) -> tuple[Ruleset | None, Routes, tuple[IkeSa, ...]]:
        """Everything that is there, to be compared."""
        return self.firewall.table, await self.routes.read(), self.charon.ike_sas()

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[Agent]:
        """An agent for the time of the block."""
        with self._logged():
            async with trio.open_nursery() as nursery:
                spinning = _Spinning(nursery.cancel_scope)
                trio.lowlevel.add_instrument(spinning)
                try:
                    agent = Agent(self)
                    nursery.start_soon(agent.run)
                    yield agent
                finally:
                    trio.lowlevel.remove_instrument(spinning)
                    nursery.cancel_scope.cancel()
            assert not spinning.found, "a loop spins: it never waits"

    @contextmanager
    def _logged(self) -> Iterator[None]:
        before = structlog.get_config()
        structlog.configure(processors=[self.story.process], cache_logger_on_first_use=False)
        try:
            yield
        finally:
            structlog.configure(**before)

    @staticmethod
    def _probes(sa: IkeSa, stem: str) -> bool:
        has_probe = any(child.name == "probe" and child.installed for child in sa.children)
        return stem_of(sa.connection) == stem and sa.established and has_probe


class Agent:
    """The loops, wired as `cpe_agent.app` does it, over a world's fakes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.cells = Cells()
        self.probing = Probing(self.cells, Internet(world))
        self.reconciler = Reconciler(
            self.cells, world.firewall, world.routes, world.charon, Backend.USERLAND, world.early
        )
        self.reporter = Reporter(self.cells, self.probing, world.firewall, world.site, Backend.USERLAND)
        self.readiness = ReadinessKeeper(self.cells, world.lan_prober, world.firewall, world.store)
        self.clock = FlooredClock(world.store, world.wall)
        self.in_force = InForce(self.cells, world.store, self.clock, world.site, {KEY_ID: PUBLIC}, self.probing.tracks)
        self.follower = Follower(self.cells, world.controller, self.in_force)
        self.announcer = Announcer(
            self.cells, world.controller, self.reporter, BOX, self.follower.ways, self.follower.asked
        )
        self.metering = Metering(self.cells, world.routes, world.store, world.wall_clock)
        self.services = ServiceProbing(self.cells, Servers(world), ServersByTcp(world))
        self.drills = Drills(self.cells, Servers(world), world.records, world.site)

    async def run(self) -> None:
        self.readiness.load()
        self.drills.load()
        self.clock.load()
        self.in_force.load()
        self.metering.load()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_links, self.cells, self.world.routes, self.reconciler.bell)
            nursery.start_soon(self.readiness.run)
            nursery.start_soon(keep_plan, self.cells, Site(self.world.identity, Backend.USERLAND))
            nursery.start_soon(self.probing.run)
            nursery.start_soon(steer_bundles, self.cells)
            nursery.start_soon(self.metering.run)
            nursery.start_soon(keep_own_way, self.cells)
            nursery.start_soon(self.services.run)
            nursery.start_soon(self.drills.run)
            nursery.start_soon(self.reconciler.run)
            nursery.start_soon(self.reporter.run)
            await self.reconciler.firewall_seen_to.wait()
            nursery.start_soon(self.follower.run)
            nursery.start_soon(self.announcer.run)
            nursery.start_soon(self.clock.run, self.cells)
            nursery.start_soon(self.in_force.run, self.follower.reach)

    async def status(self) -> Status:
        return await self.reporter.status()

    async def conditions(self) -> dict[str, str]:
        """Type and subject -> reason."""
        return {f"{c.type} {c.subject}".strip(): c.reason for c in (await self.status()).conditions}


class _Spinning(trio.abc.Instrument):
    """Ends an agent that would keep the simulated clock from ever going on."""

    def __init__(self, scope: trio.CancelScope) -> None:
        self.found = False
        self._scope = scope
        self._at_s = -1.0
        self._steps = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        now = trio.current_time()
        self._steps = self._steps + 1 if now == self._at_s else 0
        self._at_s = now
        if self._steps > STEPS_AT_ONCE and not self.found:
            self.found = True
            self._scope.cancel()


class _PatientCharon(FakeCharon):
    """Lists as slowly as the world says."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    async def read(self) -> Charon:
        await trio.sleep(self._world.reading_takes_s)
        return await super().read()


class _PatientFirewall(FirewallFake):
    """Takes as long as the world says, as nftables does for a document with many pairs."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    async def read(self) -> Ruleset | None:
        await trio.sleep(self._world.reading_takes_s)
        return await super().read()

    async def apply(self, ops: Sequence[FirewallOp]) -> None:
        await trio.sleep(self._world.kernel_takes_s)
        await super().apply(ops)


class _PatientRoutes(FakeRoutes):
    """Likewise."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    async def read(self) -> Routes:
        await trio.sleep(self._world.reading_takes_s)
        return await super().read()

    async def links(self) -> Links:
        """As they were when the reading began."""
        found = await super().links()
        await trio.sleep(self._world.reading_takes_s)
        return found

    async def apply(self, ops: Sequence[RouteOp]) -> None:
        await trio.sleep(self._world.kernel_takes_s)
        await super().apply(ops)


class Servers(FakeProber):
    """What is behind the hubs, asked from the router's address in its LAN."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self.addresses = {LAN_ADDRESS}

    def send(self, source: str, target: str, sequence: int, size: int = 0) -> bool:
        self.rtt_s.pop((source, target), None)
        if self._world.serves(target):
            self.rtt_s[source, target] = 0.02
        return super().send(source, target, sequence, size)


class ServersByTcp:
    """Likewise, over TCP."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def connects(self, source: str, server: str, port: int, within_s: float) -> bool:
        if source == LAN_ADDRESS and self._world.serves(server):
            await trio.sleep(0.02)
            return True
        await trio.sleep(within_s)
        return False


class Internet(FakeProber):
    """Answers a probe if it would get through the world as it is when it is sent."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self.addresses = set(PATH_ADDRESSES)

    def send(self, source: str, target: str, sequence: int, size: int = 0) -> bool:
        self.rtt_s.pop((source, target), None)
        self._world.asked.append((trio.current_time(), PATH_ADDRESSES[source]))
        if self._world.answers(source, target):
            self.rtt_s[source, target] = self._world.rtt_s[PATH_ADDRESSES[source]]
        return super().send(source, target, sequence, size)
