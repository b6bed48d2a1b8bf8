"""Where does each bundle travel, and how long was it away? Steps core.steer and core.outages at every verdict, when
steering asked to be asked again, and a few times a second, since how good a path is shows in samples that ring no bell.
"""

from __future__ import annotations

import math

import trio

from cpe_agent.core import outages
from cpe_agent.core.carried import carrying
from cpe_agent.core.steer import Steering, View, step
from cpe_agent.log import get_logger
from cpe_agent.loops.bell import Bell, ring_on_change
from cpe_agent.loops.cells import Cells

log = get_logger()

# A brownout must have been left five seconds after it began, measuring and all.
LOOK_S = 0.25


async def steer_bundles(cells: Cells) -> None:
    """For ever: the active Cell follows the verdicts."""
    bell = Bell()
    steering = Steering()
    watch = outages.Watch()
    wake_at = math.inf
    facts = (cells.plan, cells.verdicts, cells.charon, cells.budgets, cells.services, cells.taken_out)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ring_on_change, bell, "verdict", facts)
        while True:
            await bell.wait(wake_at)
            wake_at = math.inf
            plan, charon = cells.plan.value, cells.charon.value
            # Before charon was asked nobody knows what it carries: deciding now could move what need not move.
            if plan is None or charon is None:
                continue
            bundles, tracks = plan.dataplane.bundles, cells.verdicts.value.tracks
            carried = carrying(bundles, charon)
            watch = outages.step(watch, (bundle.name for bundle in bundles), carried, tracks, trio.current_time())
            cells.outages.set(watch.seen)
            decision = step(
                steering,
                bundles,
                View(
                    tracks,
                    carried,
                    cells.budgets.value,
                    cells.services.value.failing,
                    cells.taken_out.value,
                ),
                plan.document.policy.failback_s,
                trio.current_time(),
            )
            steering, wake_at = decision.steering, decision.wake_at
            if any(len(bundle.paths) > 1 for bundle in bundles):
                wake_at = min(wake_at, trio.current_time() + LOOK_S)
            moves = dict(cells.moves.value)
            for move in decision.moves:
                moves[move.bundle, move.reason] = moves.get((move.bundle, move.reason), 0) + 1
                log.info(
                    "bundle_moved",
                    bundle=move.bundle,
                    from_path=str(move.source) if move.source else None,
                    to_path=str(move.target) if move.target else None,
                    reason=move.reason,
                )
            cells.moves.set(moves)
            cells.steering.set(steering)
            cells.active.set(steering.active)
            cells.measure.set(frozenset(steering.measure))
