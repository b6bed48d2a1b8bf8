"""What was given up stays given up, unless it was not its fault; and even that is believed only so often."""

from __future__ import annotations

from cpe_agent.core.confirm import TRIALS_MAX
from cpe_agent.core.rejections import (
    GAP_S,
    PATIENCE_S,
    Rejections,
    Waiting,
    acquitted,
    due,
    given_up,
    heard,
    may_try_again,
    one_more,
    with_bytes,
)
from cpe_agent.model.confirmation import REJECTIONS_MAX, Rejection

ORDER, BEFORE = (1, 2), (1, 1)
BAD = Rejection(1, 2, "centre did not come back", True, sha256="ab")
HUBS = frozenset({"centre", "cloud"})


def test_what_was_given_up_stays_so() -> None:
    found = one_more((), BAD)
    assert given_up(found, ORDER) and with_bytes(found, "ab") == BAD
    assert not given_up(found, (1, 3)) and with_bytes(found, "cd") is None and not may_try_again(found, ORDER, BEFORE)


def test_what_was_acquitted_may_come_again_until_it_is_there() -> None:
    found = acquitted(one_more((), BAD), ORDER)
    assert not given_up(found, ORDER)
    assert may_try_again(found, ORDER, BEFORE) and not may_try_again(found, ORDER, ORDER)
    assert not may_try_again(found, (1, 3), BEFORE)


def test_it_is_believed_only_so_often() -> None:
    found: Rejections = ()
    for trial in range(1, TRIALS_MAX + 1):
        found = one_more(found, BAD)
        assert [one.trials for one in found] == [trial] and given_up(found, ORDER)
        found = acquitted(found, ORDER)
        assert given_up(found, ORDER) is (trial == TRIALS_MAX)


def test_so_many_are_remembered() -> None:
    found: Rejections = ()
    for version in range(1, 40):
        found = one_more(found, Rejection(1, version, "", True, sha256=str(version)))
    assert [one.version for one in found] == list(range(40 - REJECTIONS_MAX, 40))


class TestWaiting:
    def test_until_all_is_back(self) -> None:
        waiting = heard(Waiting(HUBS), 1000.0)
        assert not due(waiting, frozenset({"cloud"}), 1000.0)
        assert due(waiting, HUBS | {"third"}, 1001.0)

    def test_not_for_ever_while_the_controller_is_heard(self) -> None:
        waiting = Waiting(HUBS)
        for at in range(0, int(PATIENCE_S), 10):
            waiting = heard(waiting, float(at))
            assert not due(waiting, frozenset(), float(at))
        assert due(heard(waiting, PATIENCE_S), frozenset(), PATIENCE_S)

    def test_an_outage_starts_it_anew(self) -> None:
        waiting = heard(heard(Waiting(HUBS), 0.0), 20.0)
        back_at = 20.0 + GAP_S + PATIENCE_S
        waiting = heard(waiting, back_at)
        assert not due(waiting, frozenset(), back_at + PATIENCE_S - 1)

    def test_after_a_restart_nobody_knows_what_it_was_asked_for(self) -> None:
        assert not due(heard(Waiting(), 5.0), HUBS, 5.0)
