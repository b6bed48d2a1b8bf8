"""When do servers count as silent, when is a hub tried, and when does a bundle leave or come back?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import msgspec

from cpe_agent.core import services
from cpe_agent.core.services import ANSWER_S, MISSES, QUICK_S, ROUND_S, TRIAL_FIRST_S, Ask, Facts, State
from cpe_agent.model.dataplane import Path, Service

SHARED = Service("shared", "hospital>shared", "10.101.0.1", "10.50.0.10")
SECOND = Service("shared", "hospital>shared-2", "10.101.0.1", "10.50.0.11", 443)
WIRED, LTE = Path("wired", "centre", "a"), Path("lte", "centre", "a")
CLOUD = Path("wired", "cloud", "a")
PATHS = (WIRED, LTE, CLOUD)


class Site:
    """A site whose servers answer but for the dead ones, whose charon brings a trial's tunnel up in 50 ms, and whose
    steering leaves failing hubs."""

    def __init__(self, *asked: Service) -> None:
        self.services = asked or (SHARED,)
        self.state = State()
        self.now = 0.0
        self.usable: tuple[Path, ...] = PATHS
        self.tried: dict[str, Path] = {}
        self.asked: list[tuple[float, str, str]] = []
        self.dead: set[tuple[str, str]] = set()  # (server, hub)
        self.obeys = True
        self.active: Path | None = WIRED
        self._due: list[tuple[float, Ask]] = []

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        end = self.now + seconds
        while self.now <= end:
            if until():
                return True
            self._steer()
            active = {"shared": self.active} if self.active else {}
            step = services.step(
                self.state, Facts(self.services, active, {"shared": self.usable}, self.tried), self.now
            )
            self.state = step.state
            for ask in step.ask:
                self.asked.append((self.now, ask.service.server, ask.path.peer))
                lives = (ask.service.server, ask.path.peer) not in self.dead
                self._due.append((self.now + (0.02 if lives else ANSWER_S), ask))
            trials = services.trials(self.state)
            moments = [step.wake_at, *(at for at, _ in self._due)]
            if trials != self.tried:
                moments.append(self.now + 0.05)
            self.now = max(self.now, min(moments)) if min(moments) < math.inf else end + 1
            if trials != self.tried:
                self.tried = dict(trials)
            for at, ask in [due for due in self._due if due[0] <= self.now]:
                self._due.remove((at, ask))
                lives = (ask.service.server, ask.path.peer) not in self.dead
                judge = services.answered if lives else services.unanswered
                self.state = judge(self.state, ask, self.now)
        return until()

    def failing(self) -> Mapping[str, frozenset[str]]:
        return services.failing(self.state)

    def silent(self, service: Service = SHARED) -> bool | None:
        return self.state.servers[service].silent

    def _steer(self) -> None:
        avoided = self.failing().get("shared", frozenset())
        if self.obeys and self.active is not None:
            self.active = next((p for p in self.usable if p.peer not in avoided), self.active)


def test_that_a_server_is_asked_every_round_while_it_answers() -> None:
    site = Site()
    site.run(61)
    assert [round(at) for at, _, _ in site.asked] == [0, 10, 20, 30, 40, 50, 60]
    assert {hub for _, _, hub in site.asked} == {"centre"}
    assert site.silent() is False and not site.failing()


def test_that_a_miss_is_followed_up_quickly_and_one_answer_ends_it() -> None:
    site = Site()
    site.run(5)
    site.dead = {("10.50.0.10", "centre")}
    site.run(ROUND_S, until=lambda: len(site.asked) == 3)
    site.dead = set()
    site.run(ROUND_S)
    assert site.asked[2][0] - site.asked[1][0] < ANSWER_S + QUICK_S + 0.1
    assert site.silent() is False and not services.trials(site.state)


def test_that_a_bundle_leaves_when_its_servers_answer_elsewhere() -> None:
    site = Site()
    site.run(5)
    site.dead = {("10.50.0.10", "centre")}
    assert site.run(ROUND_S + MISSES * (ANSWER_S + QUICK_S) + 1, until=lambda: site.active == CLOUD)
    assert site.failing() == {"shared": frozenset({"centre"})}
    assert not services.trials(site.state), "the trial is over"


def test_that_nothing_is_tried_while_one_of_them_answers_here() -> None:
    site = Site(SHARED, SECOND)
    site.dead = {("10.50.0.10", "centre")}
    site.run(600)
    assert {hub for _, _, hub in site.asked} == {"centre"} and site.silent() is True and site.silent(SECOND) is False
    assert not site.failing()


def test_that_servers_dead_everywhere_move_nothing_and_are_tried_ever_more_rarely() -> None:
    site = Site()
    site.dead = {("10.50.0.10", "centre"), ("10.50.0.10", "cloud")}
    site.run(3600)
    there = [at for at, _, hub in site.asked if hub == "cloud"]
    assert not site.failing() and site.active == WIRED
    starts = [at for i, at in enumerate(there) if i % MISSES == 0]
    waits = [after - before for before, after in pairwise(starts)]
    assert all(after > 1.5 * before for before, after in pairwise(waits)), waits
    assert waits[0] > TRIAL_FIRST_S and len(there) < 40


def test_that_it_comes_back_when_the_servers_of_the_hub_it_left_answer_again() -> None:
    site = Site()
    site.dead = {("10.50.0.10", "centre")}
    assert site.run(60, until=lambda: site.active == CLOUD)
    site.run(60)
    assert site.active == CLOUD, "it stays away"
    site.dead = set()
    assert site.run(130, until=lambda: site.active == WIRED)
    assert not site.failing()


def test_that_a_hub_that_had_to_be_left_often_is_trusted_later_each_time() -> None:
    site = Site()
    away: list[float] = []
    for _ in range(4):
        site.dead = {("10.50.0.10", "centre")}
        assert site.run(120, until=lambda: site.active == CLOUD)
        left_at, site.dead = site.now, set()
        assert site.run(4000, until=lambda: site.active == WIRED)
        away.append(site.now - left_at)
    assert all(after > 1.5 * before for before, after in pairwise(away)), away


def test_that_an_answer_by_the_old_way_proves_nothing_of_the_new_one() -> None:
    site = Site()
    site.dead = {("10.50.0.10", "centre")}
    assert site.run(60, until=lambda: bool(site.tried))
    late = services.answered(site.state, Ask(SHARED, WIRED), site.now)
    assert late == site.state


def test_that_nobody_is_asked_and_nothing_concluded_while_the_path_is_down() -> None:
    site = Site()
    site.run(5)
    asked = len(site.asked)
    site.active = None
    site.run(120)
    assert len(site.asked) == asked and site.silent() is False


def test_that_no_hub_is_tried_that_is_not_usable() -> None:
    site = Site()
    site.usable = (WIRED, LTE)
    site.dead = {("10.50.0.10", "centre")}
    site.run(120)
    assert not services.trials(site.state) and site.silent() is True


def test_that_a_trial_ends_when_its_path_fails_and_proves_nothing() -> None:
    site = Site()
    site.dead = {("10.50.0.10", "centre")}
    assert site.run(60, until=lambda: bool(services.trials(site.state)))
    site.usable = (WIRED, LTE)
    site.run(1)
    assert not services.trials(site.state) and not site.failing()
    site.usable = PATHS
    assert site.run(5, until=lambda: bool(services.trials(site.state))), "it is due at once"


def test_that_a_trial_whose_tunnel_never_comes_ends() -> None:
    site = Site()
    site.dead = {("10.50.0.10", "centre")}
    assert site.run(60, until=lambda: bool(services.trials(site.state)))
    facts = Facts((SHARED,), {"shared": WIRED}, {"shared": PATHS})
    step = services.step(site.state, facts, site.now)
    assert step.ask == () and step.wake_at < math.inf
    after = services.step(step.state, facts, step.wake_at)
    assert not services.trials(after.state)


def test_that_what_steering_falls_back_to_is_forgiven_when_it_answers() -> None:
    site = Site()
    site.dead = {("10.50.0.10", "centre")}
    assert site.run(60, until=lambda: site.active == CLOUD)
    site.dead = set()
    # The other hub died: steering had to come back.
    site.usable, site.obeys = (WIRED, LTE), False
    site.active = WIRED
    assert site.run(30, until=lambda: not site.failing())


def test_that_a_bundle_without_probed_servers_is_nobody_s_matter() -> None:
    state = services.step(State(), Facts((), {"shared": WIRED}, {"shared": PATHS}), 0.0)
    assert state == msgspec.structs.replace(state, ask=(), wake_at=math.inf) and not state.state.bundles
