"""Do the probed servers answer? Asks them as core.services says, and publishes which hubs bundles should leave.

One echo prober of its own: a sequence number is a question, so an answer that comes too late belongs to nobody.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import trio

from cpe_agent.core import services
from cpe_agent.core.health import State, Track
from cpe_agent.core.services import Ask, Facts
from cpe_agent.log import get_logger
from cpe_agent.loops.bell import Bell, ring_on_change
from cpe_agent.loops.cells import Cells, Services
from cpe_agent.model.condition import ServiceReport
from cpe_agent.model.dataplane import TRIAL_CHILD, Bundle, Path, stem_of
from cpe_agent.model.observed import Charon
from cpe_agent.ports import ConnectPort, ProbePort

log = get_logger()


class ServiceProbing:
    """The one writer of the services Cell."""

    def __init__(self, cells: Cells, echo: ProbePort, connector: ConnectPort) -> None:
        self._cells = cells
        self._echo = echo
        self._connector = connector
        self._state = services.State()
        self._sequence = 0
        self._awaited: dict[int, trio.Event] = {}
        self._bell = Bell()

    async def run(self) -> None:
        """For ever."""
        cells = self._cells
        facts = (cells.plan, cells.active, cells.charon, cells.verdicts)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ring_on_change, self._bell, "facts", facts)
            nursery.start_soon(self._receive)
            wake_at = math.inf
            while True:
                await self._bell.wait(wake_at)
                plan, charon = cells.plan.value, cells.charon.value
                if plan is None or charon is None:
                    continue
                step = services.step(self._state, self._facts(charon), trio.current_time())
                self._state, wake_at = step.state, step.wake_at
                for ask in step.ask:
                    nursery.start_soon(self._ask, ask)
                self._publish()

    def _facts(self, charon: Charon) -> Facts:
        plan = self._cells.plan.value
        assert plan is not None
        tracks = self._cells.verdicts.value.tracks
        active = {
            name: path
            for name, path in self._cells.active.value.items()
            if path is not None and path in tracks and tracks[path].state is State.UP
        }
        usable = {bundle.name: _usable(bundle, tracks) for bundle in plan.dataplane.bundles}
        return Facts(plan.dataplane.services, active, usable, _tried(charon))

    async def _ask(self, ask: Ask) -> None:
        service = ask.service
        if service.port:
            source, server, port = service.source, service.server, service.port
            came = await self._connector.connects(source, server, port, services.ANSWER_S)
        else:
            came = await self._echoes(service.source, service.server)
        now = trio.current_time()
        self._state = (services.answered if came else services.unanswered)(self._state, ask, now)
        self._bell.ring("answer")

    async def _echoes(self, source: str, server: str) -> bool:
        self._sequence += 1
        event = self._awaited[self._sequence] = trio.Event()
        sequence = self._sequence
        self._echo.send(source, server, sequence)
        with trio.move_on_after(services.ANSWER_S):
            await event.wait()
        del self._awaited[sequence]
        return event.is_set()

    async def _receive(self) -> None:
        while True:
            for reply in await self._echo.replies():
                if reply.sequence in self._awaited:
                    self._awaited[reply.sequence].set()

    def _publish(self) -> None:
        before = self._cells.services.value
        failing, trials = services.failing(self._state), services.trials(self._state)
        for bundle, path in trials.items():
            if before.trials.get(bundle) != path:
                log.info("servers_tried", bundle=bundle, path=str(path))
        for bundle in failing.keys() | before.failing.keys():
            hubs = failing.get(bundle, frozenset())
            if hubs != before.failing.get(bundle, frozenset()):
                log.warning("servers_judged", bundle=bundle, state=",".join(sorted(hubs)) or "answering")
        active = self._cells.active.value
        reports = tuple(
            ServiceReport(
                service.pair,
                service.bundle,
                service.asked,
                "unknown" if server.silent is None else "silent" if server.silent else "answering",
                carrier.peer if (carrier := active.get(service.bundle)) else None,
            )
            for service, server in sorted(self._state.servers.items())
        )
        self._cells.services.set(Services(failing, trials, reports))


def _usable(bundle: Bundle, tracks: Mapping[Path, Track]) -> tuple[Path, ...]:
    return tuple(path for path in bundle.paths if path in tracks and tracks[path].usable())


def _tried(charon: Charon) -> dict[str, Path]:
    """Bundles whose trial CHILD_SA is installed, and where."""
    found: dict[str, Path] = {}
    for sa in charon.ike_sas:
        path = Path.parse(stem_of(sa.connection))
        for child in sa.children if path else ():
            if child.installed and child.name.startswith(f"{TRIAL_CHILD}-") and path is not None:
                found[child.name.removeprefix(f"{TRIAL_CHILD}-")] = path
    return found
