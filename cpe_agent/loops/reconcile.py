"""How do the kernel and charon come to hold what is planned, and stay so?

One loop for rules and routes, one for tunnels, so that a failover never waits for a listing of ten thousand pairs. Both
do the same: something rings, naming what it concerns; read what is there, let core compare, apply, remember how it
went. There is no other way to change the kernel. A new plan is carried out in this order: close rules, routes, tunnels,
open rules. An `EdgeError` is remembered against its target and tried again, later each time; other targets go on.

A target is in sync when what was read is what `cpe-agent verify` would find no fault with: for rules, routes and links
that is when there is nothing to do and nobody else in the way; tunnels are compared once more (core.verify_tunnels),
since the diff leaves alone what is on its way.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from contextlib import aclosing, suppress

import msgspec
import trio

from cpe_agent.core import bootstrap, doubled, duplicates, firewall, own_way, routes, silence, tunnels, verify_tunnels
from cpe_agent.core.compile import with_active
from cpe_agent.core.health import State
from cpe_agent.core.pathmtu import with_mtus
from cpe_agent.core.return_routes import return_routes
from cpe_agent.core.stale import stale
from cpe_agent.core.verify import LINKS, ROUTES, RULES, TUNNELS, hindering
from cpe_agent.core.wanted_ruleset import ruleset
from cpe_agent.log import get_logger
from cpe_agent.loops.bell import Bell, ring_on_change
from cpe_agent.loops.cells import Cells, Plan
from cpe_agent.loops.early import EarlyPackets
from cpe_agent.loops.glancing import glance_at_charon
from cpe_agent.loops.progress import Progress
from cpe_agent.loops.target import RETRY_FIRST_S, Target
from cpe_agent.model.dataplane import MAIN, Backend, Dataplane, Path, Route, Routes, Tunnels
from cpe_agent.model.observed import Charon, Links
from cpe_agent.model.ops import FirewallOp
from cpe_agent.ports import EarlyPort, EdgeError, FirewallPort, RoutePort, TunnelPort

log = get_logger()

# Events say when something changed; this is for the event that got lost.
BACKSTOP_S = 10.0


class Reconciler:
    """Rules, routes and tunnels, kept as planned."""

    def __init__(
        self,
        cells: Cells,
        firewall_port: FirewallPort,
        route_port: RoutePort,
        charon: TunnelPort,
        backend: Backend,
        early: EarlyPort,
    ) -> None:
        self.bell = Bell()
        # Set once the firewall has been seen to. Who opens connections waits for it: what was opened before the
        # kernel began to track connections has no entry, and its replies would be dropped as new.
        self.firewall_seen_to = trio.Event()
        # Of the loop of rules and routes, and of that of tunnels, by their targets' names.
        self.progress = Progress()
        self._cells = cells
        self._firewall = firewall_port
        self._routes = route_port
        self._tunnels = charon
        self._early = EarlyPackets(early)
        self._backend = backend
        self._links_target = Target(LINKS, cells)
        self._rules_target = Target(RULES, cells)
        self._routes_target = Target(ROUTES, cells)
        self._tunnels_target = Target(TUNNELS, cells)
        self.tunnels_bell, self._traffic_bell = Bell(), Bell()
        self._tunnels_lock = trio.Lock()
        self._attempts: tunnels.Attempts = {}
        # Traffic children by path, as last started.
        self._placed: Mapping[Path, frozenset[str]] = {}
        self._tunnels_wake_at = math.inf
        self._doubled = doubled.Doubled()
        self._ears: silence.Ears = {}
        # What charon carries for its diallers, as routes; None until it was asked.
        self._carried: frozenset[Route] | None = None
        # The plan whose rules and routes were seen to: tunnels follow this one, never one that nothing locks yet.
        self._locked_plan: Plan | None = None
        # Whether our table was last seen closed; a router that cannot lock its door does not forward.
        self._closed = False
        # What the last passes looked at that found nothing to do.
        self._routes_at_rest: tuple[object, ...] | None = None
        self._tunnels_at_rest: tuple[object, ...] | None = None
        # The plan whose routes and tunnels were last seen to, without a refusal.
        self._carried_out: Dataplane | None = None
        # What each target was last brought in sync with: a difference after that is somebody else's doing.
        self._settled: dict[str, object] = {}

    async def run(self) -> None:
        """For ever."""
        cells = self._cells
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ring_on_change, self.bell, "plan", (cells.plan,))
            nursery.start_soon(ring_on_change, self.bell, ROUTES, (cells.path_mtus, cells.own_uplink))
            tunnels_follow = (cells.active, cells.verdicts, cells.services, cells.broken)
            nursery.start_soon(ring_on_change, self.tunnels_bell, TUNNELS, tunnels_follow)
            nursery.start_soon(self._watch_firewall)
            nursery.start_soon(self._watch_charon)
            nursery.start_soon(glance_at_charon, cells, self._tunnels, self._tunnels_lock, self.tunnels_bell)
            nursery.start_soon(ring_on_change, self._traffic_bell, TUNNELS, (cells.active,))
            nursery.start_soon(self._keep_tunnels)
            nursery.start_soon(self._keep_traffic)
            await self._keep_rules_and_routes()

    async def _keep_rules_and_routes(self) -> None:
        self.bell.ring("plan")
        planned: Plan | None = None
        look_at = -math.inf
        while True:
            self.progress.made(RULES)
            names = await self.bell.wait(min(look_at, self._rules_target.retry_at, self._routes_target.retry_at))
            if not names or trio.current_time() >= look_at:  # news of one puts off no look at the other
                names, look_at = {*names, RULES, ROUTES}, trio.current_time() + BACKSTOP_S
            if (plan := self._cells.plan.value) is None:
                await self._close_without_document()
                self.firewall_seen_to.set()
                continue
            if plan is not planned:
                # Whatever else rang first: a new plan is carried out whole, in its order.
                names |= {"plan"}
                planned = plan
                self._rules_target.asked()
                if not self._only_rules_differ(plan):
                    self._routes_target.asked()
                    self._tunnels_target.asked()
                self._cells.in_hand.set(plan)
            self._links_target.seen(not hindering(plan.conditions))
            opening: Sequence[FirewallOp] = ()
            # Until the rules were looked at nobody knows that the door is locked, and routes would stop forwarding.
            if names & {"plan", RULES} or not self._closed:
                opening = await self._close_rules(plan)
            if ROUTES not in names and self._only_rules_differ(plan):
                # A pair more between known subnets waits for no listing of a hub's routes and IKE_SAs.
                names -= {"plan"}
                await self._open_rules(opening)
                opening = ()
            if names & {"plan", ROUTES}:
                await self._pass_routes(plan)
            if self._closed or not self._routes_target.state.error:
                # Each lock is enough alone.
                self._locked_plan = plan
            if "plan" in names and self._locked_plan is plan:
                await self._pass_tunnels(RULES)
                settled = not self._routes_target.state.error and not self._tunnels_target.state.error
                self._carried_out = plan.dataplane if settled else None
            await self._open_rules(opening)
            self.firewall_seen_to.set()

    async def _close_without_document(self) -> None:
        """Nothing was ever asked of this box: if it has no table of ours, it gets one that lets nothing through; and it
        can ask its controller by each of its links."""
        try:
            if await self._firewall.read() is None:
                await self._firewall.apply(firewall.diff(ruleset(None, self._backend), None)[0])
            self._rules_target.seen(True)
        except EdgeError as error:
            self._rules_target.failed(error)
        links = self._cells.links.value
        if links is None or self._cells.document.value is not None:
            # One that was just loaded will be compiled in a moment.
            return
        try:
            living = await self._routes.read()
            ops = routes.diff(bootstrap.routing(links, living), living)
            if ops:
                await self._routes.apply(ops)
            self._routes_target.seen(not ops)
        except EdgeError as error:
            self._routes_target.failed(error)

    async def _close_rules(self, plan: Plan) -> Sequence[FirewallOp]:
        """Apply what closes; return what opens."""
        wanted = plan.dataplane.ruleset
        try:
            closing, opening = firewall.diff(wanted, await self._firewall.read())
            self._closed = not closing
            if closing:
                await self._firewall.apply(closing)
            self._closed = True
        except EdgeError as error:
            self._rules_target.failed(error)
            return ()
        drifted = len(closing) + len(opening) if self._settled.get(RULES) == wanted else 0
        self._settled[RULES] = wanted
        if drifted or not opening:
            self._rules_target.seen(not closing and not opening, drifted)
        return opening

    def _only_rules_differ(self, plan: Plan) -> bool:
        """Is all else as in the plan that was carried out last? (What has not changed is the same object.)"""
        done, asked = self._carried_out, plan.dataplane
        return done is not None and done.routes is asked.routes and done.tunnels is asked.tunnels

    async def _open_rules(self, opening: Sequence[FirewallOp]) -> None:
        if not opening:
            return
        try:
            await self._firewall.apply(opening)
        except EdgeError as error:
            self._rules_target.failed(error)
        else:
            self._rules_target.seen(False)

    async def _pass_routes(self, plan: Plan) -> None:
        wanted = plan.dataplane.routes
        if not self._closed:
            wanted = msgspec.structs.replace(wanted, forwarding=frozenset())
        try:
            observed = await self._routes.read()
            mtus = self._cells.path_mtus.value
            own = self._cells.own_uplink.value
            looked_at = (plan, observed, mtus, self._carried, self._cells.links.value, wanted.forwarding, own)
            if self._routes_at_rest is not None and all(map(operator.is_, looked_at, self._routes_at_rest)):
                # A hub has ten thousand routes and more: what was in sync is, while nothing of it is another object.
                self._routes_target.seen(not await self._routes.strangers())
                return
            self._routes_at_rest = None
            wanted = with_mtus(wanted, plan.document, mtus, self._backend.device, observed)
            own_routes = own_way.kept(wanted, observed) if own is None else own_way.routes(wanted, plan.document, own)
            more = self._return_routes(observed) | own_routes
            wanted = msgspec.structs.replace(wanted, routes=wanted.routes | more)
            ops = routes.diff(wanted, observed)
            if ops:
                await self._routes.apply(ops)
            strangers = await self._routes.strangers()
        except EdgeError as error:
            self._routes_target.failed(error)
            return
        if wanted.forwarding != observed.forwarding:
            log.info("forwarding_changed", state=",".join(str(v) for v in sorted(wanted.forwarding)) or "off")
        drifted = len(ops) if self._settled.get(ROUTES) == wanted else 0
        self._settled[ROUTES] = wanted
        self._routes_at_rest = looked_at if not ops else None
        self._routes_target.seen(not ops and not strangers, drifted)

    def _return_routes(self, observed: Routes) -> frozenset[Route]:
        if self._carried is None:
            # Who has just started does not know yet what it carries: what is announced stays.
            return frozenset(route for route in observed.routes if route.table == MAIN)
        # As charon last told it. While it is away there may be no device to lead them into.
        links = self._cells.links.value or Links()
        return frozenset(route for route in self._carried if route.device in links.by_name)

    def _look_at_branches(self, plan: Plan, charon: Charon) -> frozenset[int]:
        """Take note of what our diallers have here; returns the IKE_SAs that they have left over."""
        now = trio.current_time()
        self._doubled = doubled.step(self._doubled, charon, now)
        self._cells.duplicates.set(duplicates.duplicates(self._doubled, plan.document, now))
        carried = return_routes(plan.document, charon, self._cells.links.value or Links(), self._backend)
        if carried != self._carried:
            self._carried = carried
            self.bell.ring(ROUTES)
        return stale(self._doubled, now)

    def _listen(self, plan: Plan, charon: Charon) -> frozenset[int]:
        """The traffic CHILD_SAs that are to be made anew because nothing comes back."""
        active, tracks = self._cells.active.value, self._cells.verdicts.value.tracks
        silent = silence.step(self._ears, plan.dataplane.bundles, active, charon, tracks, trio.current_time())
        self._ears = silent.ears
        self._cells.silent.set(silent.conditions)
        return silent.remake

    async def _keep_tunnels(self) -> None:
        while True:
            self.progress.made(TUNNELS)
            until = trio.current_time() + BACKSTOP_S
            if self._locked_plan is not None:
                until = min(until, self._tunnels_wake_at, self._tunnels_target.retry_at)
            await self.tunnels_bell.wait(until)
            if self._locked_plan is not None:
                await self._pass_tunnels(TUNNELS)

    async def _keep_traffic(self) -> None:
        """What moves is started beside the looks at charon."""
        while True:
            await self._traffic_bell.wait()
            if self._locked_plan is not None:
                await self._start_traffic(self._wanted_tunnels(self._locked_plan))

    def _wanted_tunnels(self, plan: Plan) -> Tunnels:
        bundles, barred = plan.dataplane.bundles, self._cells.steering.value.barred
        verdicts, active = self._cells.verdicts.value, self._cells.active.value
        dead, trials = verdicts.dead | self._cells.broken.value, self._cells.services.value.trials
        wanted = with_active(plan.dataplane.tunnels, bundles, active, dead, trials)
        return msgspec.structs.replace(
            wanted,
            fallen=frozenset(path for path, track in verdicts.tracks.items() if track.state is State.DOWN),
            barred=frozenset(b.child for b in bundles if b.name in barred),
        )

    async def _pass_tunnels(self, loop: str) -> None:
        with self.progress.together(loop):
            async with self._tunnels_lock:
                self.progress.made_together()
                try:
                    await self._tunnels_step()
                except EdgeError as error:
                    # When to look again was said by the last look that came to an end; from here on the retry says it.
                    self._tunnels_wake_at = math.inf
                    self._tunnels_target.failed(error)

    async def _start_traffic(self, wanted: Tunnels) -> None:
        known = self._cells.charon.value
        if known is None or wanted.active == self._placed:
            return
        self._placed = wanted.active
        start = tunnels.head_start(wanted, known, self._attempts, trio.current_time())
        self._attempts = start.attempts
        for op in start.ops:
            self._early.before(op, wanted, known)
            # What is refused is seen to, and told, by the look that follows.
            with suppress(EdgeError):
                await self._tunnels.apply(op)

    async def _tunnels_step(self) -> None:
        observed = await self._tunnels.read()
        self._early.after(observed)
        self._cells.charon.set(observed)
        # As of now: what was moved during the look and is started already must not be taken for a stray.
        plan = self._locked_plan
        assert plan is not None
        wanted = msgspec.structs.replace(
            self._wanted_tunnels(plan),
            stale=self._look_at_branches(plan, observed) | self._cells.broken.value,
            remake=self._listen(plan, observed),
        )
        looked_at = (wanted, self._cells.charon.value)
        if self._tunnels_at_rest == looked_at:
            self._tunnels_target.seen(True)
            return
        self._tunnels_at_rest = None
        step = tunnels.step(wanted, observed, self._attempts, trio.current_time())
        self._attempts = step.attempts
        self._tunnels_wake_at = math.inf if step.wake_at is None else step.wake_at
        carried = (bundle for bundle in plan.dataplane.bundles if bundle.child not in wanted.barred)
        in_sync = not any(True for _ in verify_tunnels.tunnels(wanted, carried, observed))
        settled = self._settled.get(TUNNELS) == wanted.connections
        drifted = len(tunnels.altered(wanted, observed)) if settled else 0
        refused: EdgeError | None = None
        for op in step.ops:
            self._early.before(op, wanted, observed)
            try:
                await self._tunnels.apply(op)
            except EdgeError as error:
                refused = refused or error
            self.progress.made_together()
        if refused is not None:
            raise refused
        self._settled[TUNNELS] = wanted.connections
        self._tunnels_target.seen(in_sync, drifted)
        if in_sync and not step.ops and not step.attempts and step.wake_at is None:
            self._tunnels_at_rest = looked_at
        if step.ops:
            # What was done shows in charon at once or by an event; look once more rather than wait for the event.
            self.tunnels_bell.ring(TUNNELS)

    async def _watch_firewall(self) -> None:
        while True:
            try:
                async with aclosing(self._firewall.changes()) as changes:
                    async for _ in changes:
                        self.bell.ring(RULES)
            except EdgeError as error:
                # The table is as it was; until the watch is back, the backstop looks.
                log.warning("task_retried", target=error.target, op=error.op, cause=error.cause)
            await trio.sleep(RETRY_FIRST_S)

    async def _watch_charon(self) -> None:
        """Events of charon wake the tunnels; while charon is away, it is asked for until it is back."""
        lost = False
        while True:
            try:
                if lost:
                    await self._tunnels.read()
                    log.info("charon_connected")
                    lost = False
                    self.tunnels_bell.ring(TUNNELS)
                async with aclosing(self._tunnels.events()) as events:
                    async for event in events:
                        self._early.heard(event)
                        self.tunnels_bell.ring(TUNNELS)
            except EdgeError as error:
                if not lost:
                    log.error("charon_lost", cause=error.cause)
                lost = True
                # Its IKE_SAs went with it; paths must not stay up by what was read before.
                self._cells.charon.set(Charon())
                self._tunnels_target.failed(error)
            await trio.sleep(RETRY_FIRST_S)
