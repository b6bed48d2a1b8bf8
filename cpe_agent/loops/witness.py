"""How do things stand, as a document on trial is judged by them?

In: the Cells, and how each path fares. Out: `Before`, when a document is taken up, and `Seen`, when it is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping

import trio

from cpe_agent.core import confirm
from cpe_agent.core.confirm import Seen, Trial
from cpe_agent.core.health import Track
from cpe_agent.loops.cells import Cells, TargetState
from cpe_agent.model.confirmation import Before
from cpe_agent.model.dataplane import Path

# The targets that hold what a document asks of this box alone; tunnels need the other end, and are judged by peers.
LOCAL_TARGETS = ("rules", "routes")


class Witness:
    """`reached`: the trial during which the controller has answered a connection made under the document in force."""

    def __init__(self, cells: Cells, tracks: Mapping[Path, Track]) -> None:
        self._cells = cells
        self._tracks = tracks
        self._reached: Trial | None = None
        # What the targets held when the document was put in force: what is the same object since was not looked at.
        self._targets_then: Mapping[str, TargetState] = {}

    def put_in_force(self) -> None:
        """Another document is in force from now on."""
        self._targets_then = dict(self._cells.targets.value)

    def reached(self, trial: Trial) -> None:
        """The controller has answered."""
        self._reached = trial

    def before(self) -> Before:
        state = self._cells.controller.value
        # Taken by the kernel; that somebody else is in the way there is no fault of a document's.
        in_sync = {name for name in LOCAL_TARGETS if (t := self._cells.targets.value.get(name)) and not t.error}
        return Before(self.healthy(), frozenset(in_sync), state.last_contact is not None and not state.error)

    def see(self, trial: Trial) -> Seen:
        plan, targets = self._cells.plan.value, self._cells.targets.value
        if plan is None or plan.document is not self._cells.document.value:
            return Seen()
        # What a document leaves as it was is not looked at anew; by then it is in sync with this one as well.
        settled = trio.current_time() >= trial.since + confirm.SETTLE_S
        then = self._targets_then
        in_sync = frozenset(
            name
            for name in LOCAL_TARGETS
            if (now := targets.get(name)) and not now.error and (settled or now is not then.get(name))
        )
        return Seen(self.healthy(), in_sync, controller=self.has_reached(trial))

    def healthy(self) -> frozenset[str]:
        """The peers to which a path is up."""
        plan, charon = self._cells.plan.value, self._cells.charon.value
        if plan is None or charon is None:
            return frozenset()
        return confirm.healthy_peers(plan.dataplane.tunnels.connections, charon, self._tracks)

    def has_reached(self, trial: Trial) -> bool:
        reached = self._reached
        return reached is not None and (reached.order, reached.since) == (trial.order, trial.since)
