"""Does status say what is wrong with paths that are up, and what to do, and only of those that matter?"""

from __future__ import annotations

from cpe_agent.core.damping import Damping
from cpe_agent.core.health import State, Track
from cpe_agent.core.path_conditions import path_conditions
from cpe_agent.core.quality import Breach, Grade
from cpe_agent.core.steer import Steering
from cpe_agent.model.dataplane import Bundle, Path

A, B, C = (Path(uplink, "centre", "a") for uplink in ("wired", "lte", "spare"))
BUNDLE = Bundle("web", "traffic-web", (A, B, C), ("web",))
UP = Track(3, State.UP, ready=True, ike=1)
BAD = Grade(True, worst=Breach("loss", 12.0, 5.0, "%"))


def told(active: Path, degraded: Path, track: Track = UP) -> list[tuple[str, str, str]]:
    steering = Steering({"web": active}, grades={("web", degraded): BAD})
    found = path_conditions(steering, (BUNDLE,), {A: UP, B: UP, C: UP, degraded: track}, 60.0, 100.0)
    return [(one.type, one.subject, one.reason) for one in found]


def test_the_active_path_and_a_better_one_that_was_left_are_told_of() -> None:
    ((type_, subject, reason),) = told(A, A)
    assert (type_, subject) == ("PathDegraded", str(A))
    assert reason.startswith("loss is 12 %, 5 % are allowed for web, and no other path") and "provider" in reason
    ((_, subject, reason),) = told(B, A)
    assert subject == str(A) and "which went elsewhere" in reason


def test_a_standby_of_lower_rank_and_a_path_that_is_down_are_not() -> None:
    assert told(A, B) == []
    assert told(B, A, Track(3, State.DOWN, reason="probes")) == []


def test_a_path_that_falls_again_and_again_is_told_of_until_it_is_forgotten() -> None:
    for count, at, types in ((1.0, 100.0, []), (3.0, 100.0, ["PathFlapping"]), (3.0, -900.0, [])):
        track = Track(3, State.UP, ready=True, ike=1, falls=Damping(count, at))
        found = path_conditions(Steering({"web": A}), (BUNDLE,), {A: track}, 60.0, 100.0)
        assert [one.type for one in found] == types
        assert all("fell 3 times" in one.reason and "for 240 s" in one.reason for one in found)
