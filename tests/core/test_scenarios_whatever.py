"""What holds whatever happens to two hubs and two uplinks: random events, invariants after each."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from cpe_agent.core.budget import Budget
from cpe_agent.core.health import State
from cpe_agent.model.dataplane import Path
from cpe_agent.model.document import Class
from tests.core.play import Play
from tests.core.two_hubs import LTE, LTE2, WIRED, WIRED2, both_hubs, one

events = st.lists(
    st.tuples(
        st.sampled_from([WIRED, LTE, WIRED2, LTE2]),
        st.sampled_from(["up", "link", "ike", "ready", "loss", "slow", "failing", "taken_out", "near", "spent"]),
        st.sampled_from([0.2, 0.7, 2.0, 5.0, 15.0]),
    ),
    min_size=1,
    max_size=10,
)
NEEDS = (Class(), Class(latency_ms=60, loss_percent=1.0), Class(jitter_ms=20, metered="budget"))


def change(p: Play, path: Path, what: str) -> None:
    road = p.roads[path]
    if what in ("up", "link", "ike", "ready"):
        setattr(road, what, not getattr(road, what))
    elif what == "loss":
        road.loss = 0.0 if road.loss else 0.2
    elif what == "slow":
        road.rtt_s = 0.03 if road.rtt_s > 0.03 else 0.15
    elif what == "failing":
        p.failing = {} if p.failing else {"shared": frozenset({path.peer})}
    elif what == "taken_out":
        p.taken_out = frozenset() if p.taken_out else frozenset({path})
    else:
        p.budgets = {} if p.budgets else {"lte": Budget.NEAR if what == "near" else Budget.SPENT}


def never_on_a_dead_path_while_a_live_one_is_there(p: Play) -> None:
    for bundle in p.bundles:
        active = p.active.get(bundle.name)
        spent = {u for u, b in p.budgets.items() if b is Budget.SPENT and bundle.needs.metered != "always"}
        unwilling = {path.peer for path in bundle.paths if p.tracks[path].refuses()}
        live = [
            path
            for path in bundle.paths
            if p.tracks[path].usable() and path.peer not in unwilling and path.uplink not in spent
        ]
        if active is not None and live:
            assert p.tracks[active].state is not State.DOWN, f"{bundle.name} on {active} at {p.now}, {live} live"
            assert active.uplink not in spent
            assert active.peer not in unwilling


@settings(max_examples=30, deadline=None)
@given(events, st.sampled_from(NEEDS), st.sampled_from([0.0, 5.0, 60.0]), st.integers(0, 5))
# A path comes back, and only after some rounds its peer is known not to be willing.
@example([(WIRED, "up", 0.2), (WIRED, "ready", 0.2), (WIRED, "up", 0.7)], Class(), 0.0, 0)
def test_whatever_happens(script: list[tuple[Path, str, float]], needs: Class, failback_s: float, seed: int) -> None:
    p = Play((both_hubs(needs), one()), failback_s, seed)
    p.run(5.0)
    p.watch = never_on_a_dead_path_while_a_live_one_is_there
    for path, what, wait_s in script:
        change(p, path, what)
        p.run(p.now + wait_s)
    for bundle in p.bundles:
        made = [one for one in p.moves if one[1].bundle == bundle.name]
        for (earlier, first, _, held_until), (later, second, forced, _) in pairwise(made):
            if second.reason in ("budget_spent", "taken_out") or forced:
                continue
            # Start and drills begin no hold-down; everything else at least this one.
            least = earlier if first.reason in ("start", "adopted", "taken_out") else earlier + 3.0
            assert later >= max(least, held_until), f"moved twice: {made}"
