"""How does a drill go? Takes an uplink or a hub out, watches, puts it back, and writes down what happened.

The one writer of the taken_out Cell. One drill at a time. Whatever ends it early (an alternative that fails, SIGTERM, a
crash) puts back: the Cell lives in memory, so an agent that starts has nothing taken out, and writes down that the
drill before it was interrupted. The test stream is echoes at `RATE` to each moving bundle's probed servers, from the
address that the services' probes use: through the bundle's tunnel, the hub, its LAN and back, as people's packets go.
A bundle without a probed server that answers echo has no stream, and the record says so.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable

import msgspec
import trio

from cpe_agent.core import drill
from cpe_agent.core.carried import carrying
from cpe_agent.core.drill import Kind, Outage, Refused
from cpe_agent.log import get_logger
from cpe_agent.loops.cells import Cells, Plan
from cpe_agent.model.dataplane import Path, Service
from cpe_agent.model.document import Document
from cpe_agent.model.drill import DrillMove, DrillProgress, DrillRecord, Stream
from cpe_agent.model.observed import Charon
from cpe_agent.ports import EdgeError, ProbePort, RecordPort

log = get_logger()

RATE = 50
# Undisturbed traffic before, with everything taken out, and after.
STEADY_S = 1.0
HOLD_S = 5.0
LEAVE_S = 15.0
LOOK_S = 0.02


class Drills:
    """Starts drills, tells how far one is, and keeps their records."""

    def __init__(self, cells: Cells, echo: ProbePort, store: RecordPort, site: str) -> None:
        self._cells = cells
        self._echo = echo
        self._store = store
        self._site = site
        self._progress = DrillProgress(False)
        self._asked: tuple[Kind, str, Outage] | None = None
        self._wake = trio.Event()
        self._sequence = 0
        self._answers: dict[int, float] = {}

    def load(self) -> None:
        """If the agent was stopped in the middle of a drill, write that down: nothing is taken out any more."""
        try:
            begun = drill.unfinished(self._store.lines())
            if begun is not None:
                words = "the agent was stopped in the middle; it started again with nothing taken out"
                self._write(msgspec.structs.replace(begun, outcome="interrupted", words=words))
        except EdgeError as error:
            log.error("store_failed", op=error.op, cause=error.cause)

    def start(self, kind: Kind, name: str) -> DrillProgress:
        """Begin. Raises `EdgeError` with the reason if it cannot or should not."""
        plan = self._cells.plan.value
        if self._asked is not None or self._progress.running:
            raise EdgeError("control", "refuse", "a drill is running already: one at a time")
        if plan is None:
            raise EdgeError("control", "refuse", "this site has no document yet")
        if plan.document.role != "branch":
            reason = "this is a hub: drill from a branch, or `cpe-agent drain` this hub and `undrain` it"
            raise EdgeError("control", "refuse", reason)
        try:
            outage = drill.plan(
                kind,
                name,
                plan.dataplane.bundles,
                self._cells.verdicts.value.tracks,
                self._cells.active.value,
                self._cells.services.value.failing,
            )
        except Refused as refused:
            raise EdgeError("control", "refuse", f"no drill: {refused}") from None
        self._progress = DrillProgress(True)
        self._asked = (kind, name, outage)
        self._wake.set()
        return self._progress

    def progress(self) -> DrillProgress:
        return self._progress

    async def run(self) -> None:
        """For ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive)
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                if self._asked is None:
                    continue
                kind, name, outage = self._asked
                self._asked = None
                try:
                    await self._drill(kind, name, outage)
                except EdgeError as error:
                    # It could not be written down: then it is not done.
                    self._say(f"no drill: {error.cause}")
                    log.error("store_failed", op=error.op, cause=error.cause)
                finally:
                    self._cells.taken_out.set(frozenset())
                self._progress = msgspec.structs.replace(self._progress, running=False)

    async def _drill(self, kind: Kind, name: str, outage: Outage) -> None:
        plan = self._cells.plan.value
        assert plan is not None
        begun = self._record(kind, name, plan.document, outage)
        self._write(begun)
        log.info("drill_began", subject=f"{kind} {name}")
        ended = msgspec.structs.replace(begun, outcome="interrupted", words="the agent was told to stop; put back")
        try:
            ended = await self._measure(begun, plan, outage)
        finally:
            self._cells.taken_out.set(frozenset())
            self._write(ended)
            log.info("drill_ended", subject=f"{kind} {name}", state=ended.outcome)

    async def _measure(self, begun: DrillRecord, plan: Plan, outage: Outage) -> DrillRecord:
        services = [s for s in plan.dataplane.services if s.bundle in outage.moving and not s.port]
        unmeasured = tuple(sorted(set(outage.moving) - {service.bundle for service in services}))
        sent: dict[Service, list[tuple[int, float]]] = {service: [] for service in services}
        if services:
            self._say(f"asking {', '.join(s.server for s in services)} {RATE} times a second through the tunnels")
        if unmeasured:
            why = "no pair of it has an echo probe; give a service of it a `probe` of kind icmp in network.yaml"
            self._say(f"nothing can be told of packets of {', '.join(unmeasured)}: {why}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stream, sent)
            await trio.sleep(STEADY_S)
            moves, words = await self._take_out(begun, plan, outage)
            await trio.sleep(STEADY_S)
            nursery.cancel_scope.cancel()
        await trio.sleep(STEADY_S)
        streams = tuple(self._stream_of(service, numbers) for service, numbers in sent.items())
        for stream in streams:
            longest = f"longest outage {stream.outage_ms:g} ms"
            self._say(f"{stream.bundle}: {stream.lost} of {stream.sent} echoes lost, {longest}")
        self._answers.clear()
        return msgspec.structs.replace(
            begun,
            outcome="aborted" if words else "done",
            words=words,
            moves=moves,
            streams=streams,
            unmeasured=unmeasured,
        )

    async def _take_out(self, begun: DrillRecord, plan: Plan, outage: Outage) -> tuple[tuple[DrillMove, ...], str]:
        """The moves, and why it was put back early ("" if it was not)."""
        before = {name: path for name in outage.moving if (path := self._cells.active.value.get(name)) is not None}
        if not before:
            return (), f"{', '.join(outage.moving)} is carried by no path any more: the document or the links changed"
        self._say(f"taking out {begun.kind} {begun.name}: {', '.join(outage.moving)} must leave")
        taken_at = trio.current_time()
        self._cells.taken_out.set(outage.paths)
        left = await self._until(plan, set(before), lambda _, path: path not in outage.paths, LEAVE_S)
        words = ""
        there = {name: path for name in before if (path := self._carried(plan).get(name)) not in outage.paths and path}
        if len(left) < len(before):
            words = f"{', '.join(sorted(set(before) - set(left)))} did not leave within {LEAVE_S:g} s"
        else:
            self._say(f"all have left, the last after {max(left.values()) - taken_at:.2f} s")
            words = await self._hold(plan, outage)
        self._say(f"put back{f' early: {words}' if words else ''}")
        back_at = trio.current_time()
        self._cells.taken_out.set(frozenset())
        patience_s = plan.document.policy.failback_s + LEAVE_S
        back = await self._until(plan, set(before), lambda name, path: path == before[name], patience_s)
        for name in sorted(set(before) - set(back)):
            self._say(f"{name} is not back on {before[name]} within {patience_s:g} s")
        moves = tuple(
            DrillMove(
                name,
                str(before[name]),
                str(there[name]) if name in there else None,
                round(left[name] - taken_at, 3) if name in left else None,
                round(back[name] - back_at, 3) if name in back else None,
            )
            for name in sorted(before)
        )
        return moves, words

    async def _hold(self, plan: Plan, outage: Outage) -> str:
        """Wait; what fails meanwhile ends it."""
        until = trio.current_time() + HOLD_S
        while trio.current_time() < until:
            await trio.sleep(LOOK_S)
            for name in outage.moving:
                if self._carried(plan).get(name) in outage.paths:
                    return f"{name} came back by itself: its alternative is not healthy any more"
        return ""

    async def _until(
        self, plan: Plan, names: set[str], there: Callable[[str, Path], bool], within_s: float
    ) -> dict[str, float]:
        """When each of these bundles was carried where it should be; those that never were are left out."""
        found: dict[str, float] = {}
        until = trio.current_time() + within_s
        while len(found) < len(names) and trio.current_time() < until:
            for name, path in self._carried(plan).items():
                if name in names - found.keys() and there(name, path):
                    found[name] = trio.current_time()
            await trio.sleep(LOOK_S)
        return found

    def _carried(self, plan: Plan) -> dict[str, Path]:
        return carrying(plan.dataplane.bundles, self._cells.charon.value or Charon())

    async def _stream(self, sent: dict[Service, list[tuple[int, float]]]) -> None:
        """Each echo leaves at start + n / RATE, however late the one before was."""
        start, count = trio.current_time(), 0
        while True:
            for service, numbers in sent.items():
                self._sequence += 1
                numbers.append((self._sequence, trio.current_time()))
                self._echo.send(service.source, service.server, self._sequence)
            count += 1
            await trio.sleep_until(start + count / RATE)

    async def _receive(self) -> None:
        while True:
            for reply in await self._echo.replies():
                self._answers[reply.sequence] = trio.current_time()

    def _stream_of(self, service: Service, numbers: list[tuple[int, float]]) -> Stream:
        answered = {i: self._answers[n] for i, (n, _) in enumerate(numbers) if n in self._answers}
        return drill.measured(service.bundle, service.asked, [at for _, at in numbers], answered)

    def _record(self, kind: Kind, name: str, document: Document, outage: Outage) -> DrillRecord:
        order = f"{document.epoch}.{document.version}"
        return DrillRecord(0, "", 0.0, "", self._site, kind, name, "began", order, staying=outage.staying)

    def _write(self, record: DrillRecord) -> None:
        number, previous = drill.following(self._store.lines())
        now = time.time()
        date = dt.datetime.fromtimestamp(now, dt.UTC).isoformat(timespec="seconds")
        whole = msgspec.structs.replace(record, number=number, previous=previous, at=now, date=date)
        self._store.append(drill.line(whole))
        self._progress = msgspec.structs.replace(self._progress, record=whole)

    def _say(self, words: str) -> None:
        self._progress = msgspec.structs.replace(self._progress, said=(*self._progress.said, words))
