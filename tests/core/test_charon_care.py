"""When is charon's restart wished for, how often, and what is an operator told?"""

from __future__ import annotations

from itertools import pairwise

import pytest

from cpe_agent.core.charon_care import PATIENCE_S, WELL_S, Care, conditions, step
from cpe_agent.model.condition import Severity
from cpe_agent.model.observed import CharonSigns

WELL = CharonSigns(True, True)
SILENT = CharonSigns(False, True)
LOOK_S = 5.0
# What root's unit grants: five starts in 300 s.
GRANTED, WITHIN_S = 5, 300.0


class Played:
    """Looks every five seconds."""

    def __init__(self) -> None:
        self.care = Care()
        self.now = 0.0
        self.wished: list[float] = []

    def see(self, signs: CharonSigns, seconds: float, device_missing: str = "") -> None:
        until = self.now + seconds
        while self.now < until:
            self.care, wish = step(self.care, signs, device_missing, self.now)
            self.wished += [self.now] if wish else []
            self.now += LOOK_S

    @property
    def types(self) -> list[str]:
        return [condition.type for condition in conditions(self.care, self.now - LOOK_S)]


@pytest.mark.parametrize(
    ("signs", "missing", "words"),
    [
        (SILENT, "", "does not answer"),
        (CharonSigns(False, False), "ipsec0", "does not answer"),
        (WELL, "ipsec0", "has lost ipsec0"),
        (CharonSigns(True, False), "", "runs without UDP 4500"),
    ],
)
def test_that_one_that_is_of_no_use_is_started_anew(signs: CharonSigns, missing: str, words: str) -> None:
    played = Played()
    played.see(WELL, 100)
    played.see(signs, PATIENCE_S, missing)
    assert played.wished == [] and played.types == []
    played.see(signs, 2 * LOOK_S, missing)
    assert played.wished == [100 + PATIENCE_S] and played.types == ["CharonFailed"]
    (told,) = conditions(played.care, played.now)
    assert words in told.reason and "asked for once" in told.reason and "journalctl" in told.reason
    assert told.severity is Severity.DOWN
    played.see(WELL, LOOK_S)
    assert played.types == []


def test_that_what_systemd_mends_by_itself_is_left_to_it() -> None:
    played = Played()
    for _ in range(100):
        played.see(WELL, 60)
        played.see(CharonSigns(False, False), PATIENCE_S - LOOK_S)
    assert played.wished == []


def test_that_a_start_without_charon_waits_as_well() -> None:
    played = Played()
    played.see(SILENT, PATIENCE_S)
    assert played.wished == []
    played.see(SILENT, LOOK_S)
    assert played.wished == [PATIENCE_S]


def test_that_wishes_that_come_to_nothing_grow_rare_and_are_never_more_than_root_grants() -> None:
    played = Played()
    played.see(SILENT, 86_400)
    pauses = [round(later - earlier) for earlier, later in pairwise(played.wished)]
    assert pauses[:5] == [60, 120, 240, 480, 900] and set(pauses[5:]) == {900}
    for began in played.wished:
        assert sum(began <= at < began + WITHIN_S for at in played.wished) < GRANTED


def test_that_one_that_fails_again_and_again_is_not_restarted_in_a_tight_loop() -> None:
    played = Played()
    for _ in range(40):  # well for a minute after each restart
        played.see(SILENT, PATIENCE_S + LOOK_S)
        played.see(WELL, 60)
    for began in played.wished:
        assert sum(began <= at < began + WITHIN_S for at in played.wished) < GRANTED


def test_that_after_a_good_time_the_next_trouble_is_a_first_one() -> None:
    played = Played()
    played.see(SILENT, 1000)
    played.see(WELL, WELL_S + LOOK_S)
    before = len(played.wished)
    began = played.now
    played.see(SILENT, 100)
    assert played.wished[before:][:2] == [began + PATIENCE_S, began + PATIENCE_S + 60]


@pytest.mark.parametrize(
    ("strangers", "unit"),
    [
        (("UDP 500", "/run/charon.vici"), "strongswan.service"),
        (("UDP 500", "/run/charon.ctl", "/run/charon.vici"), "strongswan-starter.service strongswan.service"),
        (("UDP 500", "/run/pluto/pluto.ctl"), "ipsec.service"),
        (("UDP 500",), "strongswan.service"),
    ],
)
def test_that_somebody_else_in_its_place_is_told_and_not_fought(strangers: tuple[str, ...], unit: str) -> None:
    played = Played()
    played.see(CharonSigns(True, True, strangers), 3600)
    assert played.wished == [] and played.types == ["CharonConflict"]
    (told,) = conditions(played.care, played.now)
    assert f"`systemctl disable --now {unit}`" in told.reason and strangers[0] in told.reason
    played.see(CharonSigns(False, True, strangers), 3600)
    assert played.wished == [] and played.types == ["CharonConflict"]


def test_that_once_the_other_is_gone_ours_gets_its_port_by_a_restart() -> None:
    played = Played()
    played.see(CharonSigns(True, True, ("UDP 500",)), 600)
    began = played.now
    played.see(CharonSigns(True, False), 60)
    assert played.wished == [began + PATIENCE_S]
