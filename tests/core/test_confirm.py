"""Is a document on trial kept or given up? Core.confirm's table, row by row, and what a revert gives back."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpe_agent.core import confirm
from cpe_agent.core.compile import compile_dataplane
from cpe_agent.core.confirm import (
    CRASHED,
    DOUBT_S,
    SETTLE_S,
    Decision,
    Seen,
    Started,
    TakenUp,
    Trial,
    Verdict,
    healthy_peers,
    reverted_to,
    step,
    without_peers,
)
from cpe_agent.core.health import State, Track
from cpe_agent.model.confirmation import Before, Rejection
from cpe_agent.model.dataplane import Connection, Path
from cpe_agent.model.document import Document, Peer, Policy
from cpe_agent.model.document_check import check
from cpe_agent.model.observed import Charon, ChildSa, IkeSa
from tests.core.documents import BRANCH, HOSPITAL, HUB, LINKS, branch, hub

CONFIRM_S = 20
ALL = Before(frozenset({"centre", "cloud"}), frozenset({"rules", "routes"}), controller=True)
BACK = Seen(ALL.healthy, ALL.targets, controller=True)


def document(**changes: object) -> Document:
    return msgspec.structs.replace(branch(), policy=Policy(confirm_s=CONFIRM_S), **changes)


def taken_up(before: Before = ALL, **changes: object) -> Trial:
    trial, decision = step(None, TakenUp(document(**changes), before, first=False), 0.0)
    assert trial is not None and decision.verdict is Verdict.WAIT
    return trial


def without(seen: Seen, what: str) -> Seen:
    return {
        "centre": msgspec.structs.replace(seen, healthy=seen.healthy - {"centre"}),
        "routes": msgspec.structs.replace(seen, in_sync=seen.in_sync - {"routes"}),
        "controller": msgspec.structs.replace(seen, controller=False),
    }[what]


def test_all_is_back() -> None:
    trial = taken_up()
    waiting, decision = step(trial, BACK, SETTLE_S - 0.1)
    assert waiting is not None and decision == Decision(Verdict.WAIT, "", SETTLE_S)
    assert step(trial, BACK, SETTLE_S) == (None, Decision(Verdict.CONFIRM))


@pytest.mark.parametrize("what", ["centre", "routes", "controller"])
def test_something_is_missing(what: str) -> None:
    trial = taken_up()
    waiting, decision = step(trial, without(BACK, what), CONFIRM_S - 0.1)
    assert decision.verdict is Verdict.WAIT and decision.wake_at == CONFIRM_S
    assert waiting is not None and what in waiting.missing
    # At the last moment.
    assert step(waiting, BACK, CONFIRM_S)[1].verdict is Verdict.CONFIRM
    doubted, decision = step(waiting, without(BACK, what), CONFIRM_S)
    assert doubted is not None and doubted.doubt and decision.verdict is Verdict.REVERT
    assert what in decision.reason and f"within {CONFIRM_S} s" in decision.reason


class TestDoubt:
    """What is missing without the document too was not its doing."""

    def doubted(self) -> Trial:
        doubted, decision = step(taken_up(), without(BACK, "centre"), CONFIRM_S)
        assert doubted is not None and decision.wake_at == CONFIRM_S + DOUBT_S
        return doubted

    def test_what_comes_back_was_its_doing(self) -> None:
        waiting, decision = step(self.doubted(), without(BACK, "centre"), CONFIRM_S + 1)
        assert waiting is not None and decision.verdict is Verdict.WAIT
        assert step(waiting, BACK, CONFIRM_S + 2) == (None, Decision(Verdict.BLAME))

    def test_what_stays_away_was_not(self) -> None:
        late = CONFIRM_S + DOUBT_S
        assert step(self.doubted(), without(BACK, "centre"), late - 0.1)[1].verdict is Verdict.WAIT
        settled, decision = step(self.doubted(), without(BACK, "centre"), late)
        assert settled is None and decision == Decision(Verdict.ACQUIT, "centre did not come back")

    def test_something_else_that_is_missing_by_then_does_not_clear_its_name(self) -> None:
        """Its own fault is mended, and the other hub has failed by chance: that it is tried once more costs little."""
        waiting, _ = step(self.doubted(), Seen(frozenset({"centre"}), ALL.targets, controller=True), CONFIRM_S + 1)
        assert waiting is not None and waiting.doubt

    def test_a_newer_one_is_asked_for_all_that_worked(self) -> None:
        only_cloud = Before(frozenset({"cloud"}), ALL.targets, controller=True)
        trial, _ = step(self.doubted(), TakenUp(document(version=9), only_cloud, first=False), CONFIRM_S + 5)
        assert trial is not None and not trial.doubt and trial.before == ALL


@pytest.mark.parametrize("what", ["centre", "routes", "controller"])
def test_what_did_not_work_before_is_not_asked_for(what: str) -> None:
    before = {
        "centre": msgspec.structs.replace(ALL, healthy=frozenset({"cloud"})),
        "routes": msgspec.structs.replace(ALL, targets=frozenset({"rules"})),
        "controller": msgspec.structs.replace(ALL, controller=False),
    }[what]
    assert step(taken_up(before), without(BACK, what), SETTLE_S)[1].verdict is Verdict.CONFIRM


def test_a_peer_that_is_listed_no_more_has_not_failed() -> None:
    only_cloud = without_peers(branch(), ["centre"])
    trial = taken_up(peers=only_cloud.peers, pairs=only_cloud.pairs)
    assert step(trial, without(BACK, "centre"), SETTLE_S)[1].verdict is Verdict.CONFIRM


@pytest.mark.parametrize(("branches", "may_be_missing"), [(1, 0), (9, 0), (10, 1), (19, 1), (20, 2), (1000, 100)])
def test_a_hub_needs_nine_of_ten(branches: int, may_be_missing: int) -> None:
    names = [f"branch-{n}" for n in range(branches)]
    peers = dict.fromkeys(names, HOSPITAL)
    asked = msgspec.structs.replace(hub(), peers=peers, pairs=(), policy=Policy(confirm_s=CONFIRM_S))
    trial, _ = step(None, TakenUp(asked, Before(frozenset(names)), first=False), 0.0)
    enough = Seen(frozenset(names[may_be_missing:]))
    assert step(trial, enough, SETTLE_S)[1].verdict is Verdict.CONFIRM
    too_few = Seen(frozenset(names[may_be_missing + 1 :]))
    assert step(trial, too_few, CONFIRM_S)[1].verdict is Verdict.REVERT


def test_a_newer_document_must_bring_back_what_the_one_on_trial_has_broken() -> None:
    broken = taken_up()
    now_healthy = Before(frozenset({"cloud"}), ALL.targets, controller=True)
    trial, decision = step(broken, TakenUp(document(version=9), now_healthy, first=False), 10.0)
    assert trial is not None and trial.before == ALL and decision.verdict is Verdict.WAIT
    assert trial.deadline == 10.0 + CONFIRM_S
    assert step(trial, without(BACK, "centre"), 10.0 + CONFIRM_S)[1].verdict is Verdict.REVERT


@pytest.mark.parametrize("attempts", [0, 1, 2, 3])
def test_starts_are_attempts(attempts: int) -> None:
    trial, decision = step(None, Started(document(), ALL, attempts, first=False), 100.0)
    if attempts >= 2:
        assert (trial, decision) == (None, Decision(Verdict.REVERT, CRASHED))
    else:
        assert trial is not None and trial.attempts == attempts + 1
        assert (trial.since, trial.deadline, trial.before) == (100.0, 100.0 + CONFIRM_S, ALL)


def test_the_first_document_of_a_box_has_none_to_go_back_to() -> None:
    trial, _ = step(None, TakenUp(document(), ALL, first=True), 0.0)
    assert trial is not None and trial.deadline == math.inf
    assert step(trial, Seen(), 1e9)[1].verdict is Verdict.WAIT
    assert step(trial, BACK, 1e9)[1].verdict is Verdict.CONFIRM
    # But what crashes the agent is given up.
    assert step(None, Started(document(), Before(), 2, first=True), 0.0)[1].verdict is Verdict.REVERT


def test_nothing_on_trial() -> None:
    assert step(None, Seen(), 5.0) == (None, Decision(Verdict.WAIT))


def test_a_mistyped_time_is_bounded_both_ways() -> None:
    long = msgspec.structs.replace(branch(), policy=Policy(confirm_s=315_360_000))
    trial, _ = step(None, TakenUp(long, ALL, first=False), 0.0)
    assert trial is not None and trial.deadline == confirm.CONFIRM_MAX_S
    short = msgspec.structs.replace(branch(), policy=Policy(confirm_s=1))
    trial, _ = step(None, TakenUp(short, ALL, first=False), 0.0)
    assert step(trial, BACK, 1.0)[1].verdict is Verdict.CONFIRM


class TestHealthyPeers:
    connections = compile_dataplane(branch(), LINKS, BRANCH)[0].tunnels.connections

    def dialled(self, peer: str) -> tuple[Connection, Path]:
        return next((c, c.path) for c in self.connections if c.path is not None and c.path.peer == peer)

    def test_a_path_that_is_up_under_these_settings(self) -> None:
        connection, path = self.dialled("centre")
        charon = Charon(ike_sas=(_sa(connection.name, 7),))
        up = Track(3, State.UP, ike=7, answered_in_row=1)
        assert healthy_peers(self.connections, charon, {path: up}) == {"centre"}
        for track in (
            msgspec.structs.replace(up, state=State.DOWN),
            msgspec.structs.replace(up, answered_in_row=0),
            msgspec.structs.replace(up, ike=6),
        ):
            assert healthy_peers(self.connections, charon, {path: track}) == frozenset()

    def test_an_ike_sa_made_under_other_settings_proves_nothing(self) -> None:
        connection, path = self.dialled("centre")
        charon = Charon(ike_sas=(_sa(f"cpe-{connection.stem}-00000000", 7),))
        up = Track(3, State.UP, ike=7, answered_in_row=50)
        assert healthy_peers(self.connections, charon, {path: up}) == frozenset()

    def test_a_branch_that_dials_a_hub(self) -> None:
        answering = compile_dataplane(hub(), LINKS, HUB)[0].tunnels.connections
        [connection] = [c for c in answering if c.stem == "hospital-1"]
        for sa, healthy in (
            (_sa(connection.name, 1), True),
            (_sa(connection.name, 1, state="CONNECTING"), False),
            (msgspec.structs.replace(_sa(connection.name, 1), children=()), False),
        ):
            found = healthy_peers(answering, Charon(ike_sas=(sa,)), {})
            assert ("hospital-1" in found) is healthy


class TestRevert:
    def test_a_removed_peer_stays_away(self) -> None:
        newer = without_peers(branch(), ["centre"])
        removed = confirm.removed_peers(branch(), newer)
        assert removed == ("centre",)
        given_up = Rejection(1, 9, "no", reverted=True, removed=removed)
        left = reverted_to(branch(), [given_up])
        assert set(left.peers) == {"cloud"}
        assert {pair.id: pair.peers for pair in left.pairs} == {"cloud": ("cloud",), "shared": ("cloud",)}
        check(left)

    def test_what_was_given_up_before_says_nothing_of_a_newer_one(self) -> None:
        given_up = Rejection(1, 3, "no", reverted=True, removed=("centre",))
        newer = msgspec.structs.replace(branch(), version=4)
        assert reverted_to(newer, [given_up]) is newer

    def test_a_document_that_was_only_refused_removes_nobody(self) -> None:
        assert reverted_to(branch(), [Rejection(9, 9, "bad", removed=("centre",))]) == branch()

    @given(removed=st.sets(st.sampled_from(["centre", "cloud", "nobody"])))
    def test_what_is_left_holds_together(self, removed: set[str]) -> None:
        left = without_peers(branch(), removed)
        check(left)
        assert not left.peers.keys() & removed
        assert all(pair.peers for pair in left.pairs)
        assert all(isinstance(peer, Peer) for peer in left.peers.values())


def _sa(connection: str, unique_id: int, state: str = "ESTABLISHED") -> IkeSa:
    child = ChildSa("probe", 1, "INSTALLED", (), ())
    return IkeSa(connection, unique_id, state, True, children=(child,))
