"""Does each bundle travel where its table says?"""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpe_agent.core.health import State, Track
from cpe_agent.core.steer import GRACE_S, LONG_S, Steering, View, step
from cpe_agent.model.dataplane import Bundle, Path

A, B, C = (Path(uplink, "centre", "a") for uplink in ("wired", "lte", "spare"))
BUNDLE = Bundle("centre", "traffic-centre", (A, B, C), ("web",))
FAILBACK_S = 60.0


def good(since: float = 0.0, fell: float = -math.inf) -> Track:
    return Track(3, State.UP, since=since, stable_since=fell, ready=True, ike=1)


def heard(tracks: dict[Path, Track], now: float) -> dict[Path, Track]:
    """Those that are up with a window of the quick pace: nothing lost, 20 ms."""
    window = tuple((now - 0.1 * ago, 0.02) for ago in range(49, 0, -1))
    return {p: msgspec.structs.replace(t, window=window) if t.state is State.UP else t for p, t in tracks.items()}


NEW = Track(3)
DOWN = Track(3, State.DOWN, reason="probes", ike=1)
GONE = Track(3, State.DOWN, reason="ike")
DRAINED = Track(3, State.UP, ike=1, ready=False, unready_rounds=3)
UNASKED = Track(3, State.UP, ike=1, ready=False, unready_rounds=0)

X = Path("wired", "removed", "a")


@pytest.mark.parametrize(
    ("present", "tracks", "carrying", "now", "target", "reason", "wake_at"),
    [
        # No active path, its CHILD_SA lives on one.
        (None, {A: NEW, B: NEW, C: NEW}, B, 0.0, B, "adopted", math.inf),
        (None, {A: good(), B: good()}, A, 0.0, A, "adopted", math.inf),
        (None, {A: DOWN, B: UNASKED, C: good()}, B, 0.0, B, "adopted", math.inf),
        (None, {A: good()}, X, 0.0, A, "start", math.inf),
        # No active path.
        (None, {}, None, 0.0, None, None, math.inf),
        (None, {A: DOWN, B: DOWN}, None, 0.0, None, None, math.inf),
        (None, {A: good(), B: good()}, None, 0.0, A, "start", math.inf),
        (None, {A: NEW, B: good()}, None, 0.0, None, None, GRACE_S),
        (None, {A: NEW, B: good()}, None, GRACE_S, B, "start", math.inf),
        (None, {A: DOWN, B: good()}, None, 0.0, B, "start", math.inf),
        (None, {A: DRAINED, B: good(), C: NEW}, None, 0.0, None, None, GRACE_S),
        (None, {A: DRAINED, B: good(), C: NEW}, None, GRACE_S, A, "start", math.inf),
        # Active path is down, not ready, or no longer listed.
        (A, {A: DOWN, B: good(), C: good()}, None, 0.0, B, "path_down_probes", math.inf),
        (A, {A: GONE, B: DOWN, C: good()}, None, 0.0, C, "path_down_ike", math.inf),
        (A, {B: good()}, None, 0.0, B, "path_down", math.inf),
        (A, {A: DRAINED, B: good()}, None, 0.0, A, None, math.inf),
        (A, {A: DOWN, B: DRAINED}, None, 0.0, B, "path_down_probes", math.inf),
        (A, {A: DRAINED, B: DOWN}, None, 0.0, A, None, math.inf),
        (A, {A: DOWN, B: DOWN, C: NEW}, None, 0.0, A, None, math.inf),
        (A, {A: UNASKED, B: good()}, None, 0.0, A, None, math.inf),
        (X, {X: good(), B: good()}, None, 0.0, B, "path_removed", math.inf),
        (X, {X: good(), B: DOWN}, None, 0.0, None, "path_removed", math.inf),
        # A better path has been healthy for failback_s.
        (B, {A: good(100.0, 50.0), B: good()}, None, 159.9, B, None, 160.0),
        (B, {A: good(100.0, 50.0), B: good()}, None, 160.0, A, "failback", math.inf),
        (B, {A: good(100.0), B: good()}, None, 100.0, A, "failback", math.inf),
        (C, {A: good(100.0, 50.0), B: good(100.0), C: good()}, None, 100.0, B, "failback", 154.0),
        (C, {A: good(100.0, 50.0), B: good(90.0, 50.0), C: good()}, None, 110.0, C, None, 144.0),
        # It wakes up before that, to have the better path measured.
        # Otherwise.
        (A, {A: good(), B: good()}, None, 0.0, A, None, math.inf),
        (B, {A: DOWN, B: good(), C: good()}, None, 0.0, B, None, math.inf),
    ],
)
def test_a_row(
    present: Path | None,
    tracks: dict[Path, Track],
    carrying: Path | None,
    now: float,
    target: Path | None,
    reason: str | None,
    wake_at: float,
) -> None:
    measured = dict.fromkeys(tracks, now - LONG_S)
    steering = Steering({"centre": present}, {"centre": 0.0} if present is None else {}, measure=measured)
    view = View(heard(tracks, now), {"centre": carrying} if carrying else {})
    decision = step(steering, (BUNDLE,), view, FAILBACK_S, now)
    assert decision.steering.active == {"centre": target}
    assert [(m.source, m.target, m.reason) for m in decision.moves] == ([(present, target, reason)] if reason else [])
    assert decision.wake_at == wake_at


def test_bundles_that_are_gone_are_forgotten() -> None:
    decision = step(Steering({"old": A}, {"older": 0.0}), (), View({A: good()}), FAILBACK_S, 0.0)
    assert decision.steering == Steering() and decision.moves == ()


def test_grace_counts_from_when_there_was_a_path_to_take() -> None:
    """However long nothing answered: the better of two that come up together is given its chance."""
    decision = step(Steering(), (BUNDLE,), View({A: NEW}), FAILBACK_S, 10.0)
    for now in (100.0, 100.0 + GRACE_S / 2):
        decision = step(decision.steering, (BUNDLE,), View({A: NEW, B: good()}), FAILBACK_S, now)
        assert decision.moves == () and decision.wake_at == 100.0 + GRACE_S
    decision = step(decision.steering, (BUNDLE,), View({A: NEW, B: good()}), FAILBACK_S, 100.0 + GRACE_S)
    assert decision.steering.active["centre"] == B


tracks_of_any_kind = st.builds(
    lambda state, ready, unready, since, fell: Track(
        3,
        state,
        since=since,
        stable_since=min(fell, since),
        ready=ready,
        unready_rounds=unready,
        ike=1,
        reason="probes",
    ),
    st.sampled_from(State),
    st.booleans(),
    st.sampled_from([0, 3]),
    st.floats(0, 100),
    st.one_of(st.just(-math.inf), st.floats(0, 100)),
)


@settings(max_examples=400, deadline=None)
@given(
    present=st.sampled_from([None, A, B, C, X]),
    tracks=st.dictionaries(st.sampled_from([A, B, C, X]), tracks_of_any_kind),
    carrying=st.sampled_from([None, A, B, X]),
    waited=st.floats(0, 5),
    now=st.floats(100, 300),
)
def test_whatever_happens(
    present: Path | None, tracks: dict[Path, Track], carrying: Path | None, waited: float, now: float
) -> None:
    steering = Steering({"centre": present}, {"centre": now - waited})
    at = {"centre": carrying} if carrying else {}
    decision = step(steering, (BUNDLE,), View(tracks, at), FAILBACK_S, now)
    chosen = decision.steering.active["centre"]
    up = [path for path in BUNDLE.paths if path in tracks and tracks[path].state is State.UP]
    unwilling = any(not tracks[path].ready and tracks[path].unready_rounds >= 3 for path in up)
    usable = [path for path in up if tracks[path].ready and not unwilling]
    # Never on a dead path while a usable one is there; never on one that is not the bundle's.
    if chosen is not None:
        assert chosen in BUNDLE.paths
        assert not usable or (chosen in tracks and tracks[chosen].state is not State.DOWN)
    # Never nowhere for long.
    assert chosen is not None or not usable or decision.wake_at <= now + GRACE_S
    # No move without a reason, none to a path that is not usable (but for adoption), none to itself.
    for move in decision.moves:
        assert move.reason and move.source != move.target
        assert move.reason == "adopted" or move.target is None or move.target in (up if unwilling else usable)
    assert decision.wake_at > now
    # At rest: the same facts again move nothing.
    again = step(decision.steering, (BUNDLE,), View(tracks, at), FAILBACK_S, now)
    assert again.moves == () or [m.reason for m in again.moves] == ["failback"] or chosen is None
    if chosen is not None and not [m for m in again.moves if m.reason == "failback"]:
        assert again.steering.active == decision.steering.active


@given(
    tracks=st.dictionaries(st.sampled_from([A, B, C]), st.sampled_from([NEW, good(5.0, 4.0), UNASKED, DOWN])),
    carrying=st.sampled_from([A, B, C]),
)
def test_adoption_moves_nothing_that_works(tracks: dict[Path, Track], carrying: Path) -> None:
    """Just after a restart: what the CHILD_SA lives on is only left if it is known to be down."""
    decision = step(Steering(), (BUNDLE,), View(tracks, {"centre": carrying}), FAILBACK_S, 6.0)
    track = tracks.get(carrying)
    if track is not None and track.state is not State.DOWN:
        assert decision.steering.active["centre"] == carrying
        assert [m.reason for m in decision.moves] == ["adopted"]
