"""How do the kernel and charon come to hold what is planned, and stay so?

One loop for rules and routes, one for tunnels, so that a failover never waits for a listing of ten thousand pairs. Both
do the same: something rings, naming what it concerns; read what is there, let core compare, apply, remember how it
went. There is no other way to change the kernel. A new plan is carried out in this order: close rules, routes, tunnels,
open rules. An `EdgeError` is remembered against its target and tried again, later each time; other targets go on.
"""

from __future__ import annotations

import math
import operator
import random
import time
from collections.abc import Sequence
from contextlib import aclosing

import msgspec
import trio

from cpe_agent.core import doubled, duplicates, firewall, routes, tunnels
from cpe_agent.core.compile import with_active
from cpe_agent.core.pathmtu import with_mtus
from cpe_agent.core.return_routes import return_routes
from cpe_agent.core.stale import stale
from cpe_agent.core.wanted_ruleset import ruleset
from cpe_agent.log import get_logger
from cpe_agent.loops.bell import Bell, ring_on_change
from cpe_agent.loops.cells import Cells, Plan, TargetState
from cpe_agent.model.dataplane import MAIN, Backend, Dataplane, Route, Routes, Tunnels
from cpe_agent.model.observed import Charon, Links
from cpe_agent.model.ops import FirewallOp
from cpe_agent.ports import EdgeError, FirewallPort, RoutePort, TunnelPort

log = get_logger()

RULES = "rules"
ROUTES = "routes"
TUNNELS = "tunnels"
# Events say when something changed; this is for the event that got lost.
BACKSTOP_S = 10.0
RETRY_FIRST_S = 0.2
RETRY_MAX_S = 15.0


class Target:
    """How one target fares: in sync or not, drift, and when to try again after a refusal."""

    def __init__(self, name: str, cells: Cells) -> None:
        self.name = name
        self.retry_at = math.inf
        self._cells = cells
        self._failures = 0
        self._set(TargetState())

    @property
    def state(self) -> TargetState:
        return self._cells.targets.value[self.name]

    def succeeded(self, drifted: int) -> None:
        """All is as wanted; `drifted`: operations that somebody else's change had made necessary."""
        if self._failures:
            log.info("target_recovered", target=self.name)
        if drifted:
            log.warning("target_repaired", target=self.name, ops=drifted)
        self._failures, self.retry_at = 0, math.inf
        self._set(TargetState(True, self.state.drift_total + (drifted > 0), time.time(), ""))

    def failed(self, error: EdgeError) -> None:
        """Refused: say so once per cause, try again later."""
        if self.state.error != str(error):
            log.error("target_failed", target=self.name, op=error.op, cause=error.cause)
        self._failures += 1
        wait = min(RETRY_MAX_S, RETRY_FIRST_S * 2 ** min(self._failures, 10)) * random.uniform(0.75, 1.25)
        self.retry_at = trio.current_time() + wait
        self._set(msgspec.structs.replace(self.state, in_sync=False, error=str(error)))

    def _set(self, state: TargetState) -> None:
        self._cells.targets.set({**self._cells.targets.value, self.name: state})


class Reconciler:
    """Rules, routes and tunnels, kept as planned."""

    def __init__(
        self,
        cells: Cells,
        firewall_port: FirewallPort,
        route_port: RoutePort,
        charon: TunnelPort,
        backend: Backend,
    ) -> None:
        self.bell = Bell()
        # Set once the firewall has been seen to. Who opens connections waits for it: what was opened before the
        # kernel began to track connections has no entry, and its replies would be dropped as new.
        self.firewall_seen_to = trio.Event()
        self._cells = cells
        self._firewall = firewall_port
        self._routes = route_port
        self._tunnels = charon
        self._backend = backend
        self._rules_target = Target(RULES, cells)
        self._routes_target = Target(ROUTES, cells)
        self._tunnels_target = Target(TUNNELS, cells)
        self.tunnels_bell = Bell()
        self._tunnels_lock = trio.Lock()
        self._attempts: tunnels.Attempts = {}
        self._tunnels_wake_at = math.inf
        self._doubled = doubled.Doubled()
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
            nursery.start_soon(ring_on_change, self.bell, ROUTES, (cells.path_mtus,))
            nursery.start_soon(ring_on_change, self.tunnels_bell, TUNNELS, (cells.active, cells.verdicts, cells.broken))
            nursery.start_soon(self._watch_firewall)
            nursery.start_soon(self._watch_charon)
            nursery.start_soon(self._keep_tunnels)
            await self._keep_rules_and_routes()

    async def _keep_rules_and_routes(self) -> None:
        self.bell.ring("plan")
        while True:
            until = min(trio.current_time() + BACKSTOP_S, self._rules_target.retry_at, self._routes_target.retry_at)
            names = await self.bell.wait(until) or {RULES, ROUTES}
            plan = self._cells.plan.value
            if plan is None:
                await self._close_without_document()
                self.firewall_seen_to.set()
                continue
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
                await self._pass_tunnels()
                settled = not self._routes_target.state.error and not self._tunnels_target.state.error
                self._carried_out = plan.dataplane if settled else None
            await self._open_rules(opening)
            self.firewall_seen_to.set()

    async def _close_without_document(self) -> None:
        """Nothing was ever asked of this box: if it has no table of ours, it gets one that lets nothing through."""
        try:
            if await self._firewall.read() is None:
                await self._firewall.apply(firewall.diff(ruleset(None, self._backend), None)[0])
            self._rules_target.succeeded(0)
        except EdgeError as error:
            self._rules_target.failed(error)

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
            self._rules_target.succeeded(drifted)
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
            self._rules_target.succeeded(0)

    async def _pass_routes(self, plan: Plan) -> None:
        wanted = plan.dataplane.routes
        if not self._closed:
            wanted = msgspec.structs.replace(wanted, forwarding=frozenset())
        try:
            observed = await self._routes.read()
            mtus = self._cells.path_mtus.value
            looked_at = (plan, observed, mtus, self._carried, self._cells.links.value, wanted.forwarding)
            if self._routes_at_rest is not None and all(map(operator.is_, looked_at, self._routes_at_rest)):
                # A hub has ten thousand routes and more: what was in sync is, while nothing of it is another object.
                self._routes_target.succeeded(0)
                return
            self._routes_at_rest = None
            wanted = with_mtus(wanted, plan.document, mtus, self._backend.device, observed)
            wanted = msgspec.structs.replace(wanted, routes=wanted.routes | self._return_routes(observed))
            ops = routes.diff(wanted, observed)
            if ops:
                await self._routes.apply(ops)
        except EdgeError as error:
            self._routes_target.failed(error)
            return
        if wanted.forwarding != observed.forwarding:
            log.info("forwarding_changed", state=",".join(str(v) for v in sorted(wanted.forwarding)) or "off")
        drifted = len(ops) if self._settled.get(ROUTES) == wanted else 0
        self._settled[ROUTES] = wanted
        self._routes_at_rest = looked_at if not ops else None
        self._routes_target.succeeded(drifted)

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

    async def _keep_tunnels(self) -> None:
        while True:
            until = min(trio.current_time() + BACKSTOP_S, self._tunnels_wake_at, self._tunnels_target.retry_at)
            await self.tunnels_bell.wait(until)
            if self._locked_plan is not None:
                await self._pass_tunnels()

    async def _pass_tunnels(self) -> None:
        async with self._tunnels_lock:
            plan = self._locked_plan
            assert plan is not None
            wanted = with_active(
                plan.dataplane.tunnels,
                plan.dataplane.bundles,
                self._cells.active.value,
                self._cells.verdicts.value.dead | self._cells.broken.value,
            )
            try:
                await self._tunnels_step(plan, wanted)
            except EdgeError as error:
                self._tunnels_target.failed(error)

    async def _tunnels_step(self, plan: Plan, wanted: Tunnels) -> None:
        observed = await self._tunnels.read()
        self._cells.charon.set(observed)
        wanted = msgspec.structs.replace(
            wanted, stale=self._look_at_branches(plan, observed) | self._cells.broken.value
        )
        looked_at = (wanted, self._cells.charon.value)
        if self._tunnels_at_rest == looked_at:
            self._tunnels_target.succeeded(0)
            return
        self._tunnels_at_rest = None
        step = tunnels.step(wanted, observed, self._attempts, trio.current_time())
        self._attempts = step.attempts
        self._tunnels_wake_at = math.inf if step.wake_at is None else step.wake_at
        drifted = tunnels.missing(wanted, observed) if self._settled.get(TUNNELS) == wanted.connections else ()
        refused: EdgeError | None = None
        for op in step.ops:
            try:
                await self._tunnels.apply(op)
            except EdgeError as error:
                refused = refused or error
        if refused is not None:
            raise refused
        self._settled[TUNNELS] = wanted.connections
        self._tunnels_target.succeeded(len(drifted))
        if not step.ops and not step.attempts and step.wake_at is None:
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
                    async for _ in events:
                        self.tunnels_bell.ring(TUNNELS)
            except EdgeError as error:
                if not lost:
                    log.error("charon_lost", cause=error.cause)
                lost = True
                # Its IKE_SAs went with it; paths must not stay up by what was read before.
                self._cells.charon.set(Charon())
                self._tunnels_target.failed(error)
            await trio.sleep(RETRY_FIRST_S)
