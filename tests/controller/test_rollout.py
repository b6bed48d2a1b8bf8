"""The rollout: a table of steps, and the whole of it through a store, with a crash in between."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import msgspec
import pytest

from cpe_agent.model.document_check import decode
from cpe_controller import audit, change, commands, reports, rolling, setup
from cpe_controller.commands import answering
from cpe_controller.publish import DOCUMENTS, WAITING
from cpe_controller.reports import Contact, Rejected, Report, Taken
from cpe_controller.reports import Path as PathSaid
from cpe_controller.rollout import BATCH, Phase, Rollout, Wave, resumed, step, waves
from cpe_controller.setup import SetupError
from cpe_controller.store import Store
from tests.controller.conftest import EXAMPLE

NOW = 1_000_000.0
NEW, OLD = (1, 2), (1, 1)
TARGETS = dict.fromkeys(("van-1", "centre", "cloud", "hospital-1"), NEW)
WAVES = (Wave("canary", ("van-1",)), Wave("hub", ("centre",)), Wave("hub", ("cloud",)), Wave("rest", ("hospital-1",)))
START = Rollout(TARGETS, WAVES, wait_s=210, started_at=NOW, phase=Phase.RUNNING)


def _contact(
    order: tuple[int, int] = OLD,
    at: float = NOW,
    *,
    took_at: float = 0.0,
    up: tuple[str, ...] = ("centre", "cloud"),
    rejected: Rejected | None = None,
) -> Contact:
    paths = tuple(PathSaid(f"lte.{hub}.wan", "up" if hub in up else "down") for hub in ("centre", "cloud"))
    report = Report(applied=Taken(*order), confirmed=True, paths=paths, rejected=rejected)
    return Contact(at, report, at, took=order, took_at=took_at)


EVERYBODY = {site: _contact() for site in TARGETS}
CANARY_OUT = msgspec.structs.replace(START, out=1, since=NOW)
HUB_OUT = msgspec.structs.replace(START, wave=1, out=1, since=NOW, witnesses=("hospital-1", "van-1"))
TOOK = _contact(NEW, NOW + 5, took_at=NOW + 5)


@pytest.mark.parametrize(
    ("before", "heard", "after_s", "phase", "wave", "release", "reason"),
    [
        # The wave is not out: it goes out.
        (START, {}, 0, Phase.RUNNING, 0, ("van-1",), ""),
        # Nobody has confirmed yet: wait.
        (CANARY_OUT, {}, 209, Phase.RUNNING, 0, (), ""),
        # It has: the next wave.
        (CANARY_OUT, {"van-1": TOOK}, 9, Phase.RUNNING, 1, (), ""),
        # It takes too long.
        (CANARY_OUT, {}, 210, Phase.HALTED, 0, (), "van-1 has not confirmed"),
        # It refused, or tried and went back.
        (
            CANARY_OUT,
            {"van-1": _contact(rejected=Rejected(1, 2, "no"))},
            1,
            Phase.HALTED,
            0,
            (),
            "rejected version 2: no",
        ),
        (
            CANARY_OUT,
            {"van-1": _contact(rejected=Rejected(1, 2, "lost cloud", reverted=True))},
            1,
            Phase.HALTED,
            0,
            (),
            "van-1 went back from version 2: lost cloud",
        ),
        # What it refused is long past.
        (CANARY_OUT, {"van-1": _contact(rejected=Rejected(1, 1, "old"))}, 1, Phase.RUNNING, 0, (), ""),
        # Who has nothing of this rollout yet may refuse what it wants.
        (CANARY_OUT, {"cloud": _contact(rejected=Rejected(1, 2, "odd"))}, 1, Phase.RUNNING, 0, (), ""),
        # A hub has confirmed, but its branches have not said that they are back since.
        (HUB_OUT, {"centre": TOOK}, 9, Phase.RUNNING, 1, (), ""),
        (HUB_OUT, {"centre": TOOK, "van-1": _contact(at=NOW + 6)}, 9, Phase.RUNNING, 1, (), ""),
        (HUB_OUT, {"centre": TOOK}, 210, Phase.HALTED, 1, (), "van-1 has not said that it reaches centre again"),
        (
            HUB_OUT,
            {"centre": TOOK, "van-1": _contact(at=NOW + 6), "hospital-1": _contact(at=NOW + 6, up=("cloud",))},
            9,
            Phase.RUNNING,
            1,
            (),
            "",
        ),
        # They have.
        (
            HUB_OUT,
            {"centre": TOOK, "van-1": _contact(at=NOW + 6), "hospital-1": _contact(at=NOW + 6)},
            9,
            Phase.RUNNING,
            2,
            (),
            "",
        ),
        # Paused: nothing goes out, but a bad report still halts it.
        (msgspec.structs.replace(START, phase=Phase.PAUSED), {}, 0, Phase.PAUSED, 0, (), ""),
        (
            msgspec.structs.replace(CANARY_OUT, phase=Phase.PAUSED),
            {"van-1": _contact(rejected=Rejected(1, 2, "no"))},
            1,
            Phase.HALTED,
            0,
            (),
            "rejected",
        ),
        # The end is the end.
        (msgspec.structs.replace(CANARY_OUT, phase=Phase.ABORTED), {"van-1": TOOK}, 9, Phase.ABORTED, 0, (), ""),
        (
            msgspec.structs.replace(START, wave=3, out=1, since=NOW),
            {"hospital-1": TOOK},
            9,
            Phase.DONE,
            4,
            (),
            "",
        ),
    ],
)
def test_a_step(
    before: Rollout,
    heard: dict[str, Contact],
    after_s: float,
    phase: Phase,
    wave: int,
    release: tuple[str, ...],
    reason: str,
) -> None:
    after, out = step(before, EVERYBODY | heard, NOW + after_s)
    assert (after.phase, after.wave, out) == (phase, wave, release)
    assert reason in after.reason and bool(reason) == bool(after.reason)
    # A step that is repeated, as after a crash that lost its outcome, is the same.
    assert step(before, EVERYBODY | heard, NOW + after_s) == (after, out)


def test_branches_that_are_silent_are_not_waited_for() -> None:
    rest = msgspec.structs.replace(START, wave=3)
    contacts = EVERYBODY | {"hospital-1": _contact(at=NOW - 500)}
    out, release = step(rest, contacts, NOW)
    assert release == ("hospital-1",) and out.unawaited == ("hospital-1",)
    assert step(out, contacts, NOW)[0].phase is Phase.DONE
    # A hub is: nobody else may be left without one.
    hub, _ = step(msgspec.structs.replace(START, wave=1), EVERYBODY | {"centre": _contact(at=NOW - 500)}, NOW)
    assert hub.unawaited == () and step(hub, {}, NOW + 211)[0].phase is Phase.HALTED


def test_one_that_went_on_after_a_halt_forgives_what_was_seen() -> None:
    contacts = EVERYBODY | {"van-1": _contact(rejected=Rejected(1, 2, "no"))}
    halted, _ = step(CANARY_OUT, contacts, NOW + 1)
    assert halted.phase is Phase.HALTED
    on = resumed(halted, contacts, NOW + 2)
    assert (on.phase, on.reason, on.unawaited) == (Phase.RUNNING, "", ("van-1",))
    assert step(on, contacts, NOW + 3)[0].wave == 1


def test_waves_spare_hubs() -> None:
    branches = [f"b{n}" for n in range(400)]
    heard = {site: _contact() for site in branches[100:]}
    found = waves(["centre", "cloud"], branches, (), heard, NOW)
    assert [wave.kind for wave in found] == ["canary", "hub", "hub", "rest"]
    assert found[0].sites == tuple(branches[100:110])  # ten at most, of those that are there
    assert len(found[3].sites) == 390 and not set(found[0].sites) & set(found[3].sites)
    assert waves(["centre"], branches, ("b7",), heard, NOW)[0] == Wave("canary", ("b7",))
    assert [wave.kind for wave in waves(["centre"], [], (), {}, NOW)] == ["hub"]
    assert [wave.kind for wave in waves([], ["b1"], (), heard, NOW)] == ["rest"]


def test_a_large_wave_goes_out_in_batches() -> None:
    sites = tuple(f"b{n}" for n in range(BATCH + 3))
    rollout = Rollout(dict.fromkeys(sites, NEW), (Wave("rest", sites),), 210, NOW, phase=Phase.RUNNING)
    contacts = {site: _contact() for site in sites}
    rollout, first = step(rollout, contacts, NOW)
    rollout, second = step(rollout, contacts, NOW)
    assert (*first, *second) == sites and len(first) == BATCH


class Fleet:
    """Every site, obeying at once what it is offered, unless it is told to do otherwise."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.now = dt.datetime.now(dt.UTC).timestamp()
        self.reject: set[str] = set()
        self.contacts: dict[str, Contact] = {}
        self.report()

    def report(self) -> None:
        self.now += 10
        for entry in self.store.list(DOCUMENTS).entries:
            site = entry.key.removeprefix(DOCUMENTS)
            published = change.in_force(self.store, site)
            assert published is not None
            order = (published.epoch, published.version)
            before = self.contacts.get(site)
            if site in self.reject and before is not None and before.took != order:
                rejected = Rejected(*order, "it is told to")
                self.contacts[site] = _contact(before.took or OLD, self.now, rejected=rejected)
            else:
                took_at = before.took_at if before is not None and before.took == order else self.now
                self.contacts[site] = _contact(order, self.now, took_at=took_at)
        for site, contact in self.contacts.items():
            self.store.put(reports.STATUS + site, msgspec.json.encode(contact))

    def beat(self, times: int = 1) -> list[str]:
        """Sites that got a new document, in order."""
        got: list[str] = []
        for _ in range(times):
            before = {entry.key: entry.revision for entry in self.store.list(DOCUMENTS).entries}
            rolling.advance(self.store, self.contacts, self.now)
            for entry in self.store.list(DOCUMENTS).entries:
                if before.get(entry.key) != entry.revision:
                    got.append(entry.key.removeprefix(DOCUMENTS))
            self.report()
        return got


def _changed(text: str) -> str:
    return text.replace("failback_s: 60", "failback_s: 61")


def test_an_apply_goes_out_in_waves(state: Path, text: str) -> None:
    setup.apply(state, text)
    with setup.opened(state) as (store, _):
        fleet = Fleet(store)
        answer = answering.run(state, commands.Apply(_changed(text), "x"), "tester")
        assert "canary (hospital-1) -> hub (centre) -> hub (cloud) -> rest (van-1)" in answer.lines[-1]
        assert not rolling.settled(store)
        # Each wave is a step that puts documents in force and one that sees them confirmed.
        assert fleet.beat(12) == ["hospital-1", "centre", "cloud", "van-1"]
        rollout, _ = rolling.load(store)
        assert rollout is not None and rollout.phase is Phase.DONE and rolling.settled(store)
        assert store.list(WAITING).entries == ()
        assert answering.run(state, commands.Apply(_changed(text), "x"), "tester").data["published"] == {}


def test_the_first_bad_report_halts_it(state: Path, text: str) -> None:
    setup.apply(state, text)
    with setup.opened(state) as (store, _):
        fleet = Fleet(store)
        fleet.reject = {"centre"}
        answering.run(state, commands.Apply(_changed(text), "x"), "tester")
        assert fleet.beat(12) == ["hospital-1", "centre"]
        said = "\n".join(answering.run(state, commands.Roll("show"), "tester").lines)
        assert "halted" in said and "centre rejected version 2: it is told to" in said
        assert "rejected" in "\n".join(answering.run(state, commands.Status(), "tester").lines)
        # Back to what was there before, as a new version, and in waves as well.
        fleet.reject = set()
        answer = answering.run(state, commands.Rollback(), "tester")
        assert answer.data["published"] == {"centre": 3, "hospital-1": 3}
        fleet.beat(12)
        for site, failback in (("centre", 60), ("hospital-1", 60), ("van-1", 60)):
            published = change.in_force(store, site)
            assert published is not None and decode(published.raw).policy.failback_s == failback
        assert rolling.settled(store)


def test_pause_resume_abort_and_now(state: Path, text: str) -> None:
    setup.apply(state, text)
    with setup.opened(state) as (store, _):
        fleet = Fleet(store)
        with pytest.raises(SetupError, match="no rollout"):
            answering.run(state, commands.Roll("pause"), "tester")
        answering.run(state, commands.Apply(_changed(text), "x"), "tester")
        answering.run(state, commands.Roll("pause"), "tester")
        assert fleet.beat(5) == []
        answering.run(state, commands.Roll("resume"), "tester")
        assert fleet.beat(3) == ["hospital-1", "centre"]
        answering.run(state, commands.Roll("abort"), "tester")
        assert fleet.beat(5) == []
        # What is applied next starts from what each site has.
        again = answering.run(state, commands.Apply(_changed(text), "x", now=True), "tester")
        assert again.data["published"] == {"cloud": 2, "van-1": 2} and again.data["waves"] == []
        assert rolling.settled(store)


def test_what_is_said_of_single_sites_meanwhile_spreads_nothing_else(state: Path, text: str) -> None:
    """A stolen van is shut out in the middle of a rollout: no site gets the rollout's content by that."""
    setup.apply(state, text)
    with setup.opened(state) as (store, _):
        fleet = Fleet(store)
        answering.run(state, commands.Apply(_changed(text), "x"), "tester")
        assert fleet.beat(3) == ["hospital-1", "centre"]
        answer = answering.run(state, commands.Revoke("van-1"), "tester")
        assert "rollout was aborted" in "\n".join(answer.lines)
        found = {site: change.in_force(store, site) for site in ("centre", "cloud", "hospital-1", "van-1")}
        assert found["van-1"] is None
        for site, failback in (("centre", 61), ("cloud", 60)):
            document = decode(found[site].raw)  # type: ignore[union-attr]
            assert "van-1" not in document.peers and document.policy.failback_s == failback
        answer = answering.run(state, commands.Drain("cloud"), "tester")
        assert answer.data["published"] == {"cloud": 3}
        assert not rolling.settled(store)
        assert answering.run(state, commands.Apply(text, "x", now=True), "tester").data["published"] == {
            "centre": 4,
            "hospital-1": 3,
        }


def test_an_apply_that_was_cut_short_does_not_go_on_half(state: Path, text: str) -> None:
    setup.apply(state, text)
    with setup.opened(state) as (store, _):
        fleet = Fleet(store)
        answering.run(state, commands.Apply(_changed(text), "x"), "tester")
        rolling.change(store, lambda rollout: msgspec.structs.replace(rollout, phase=Phase.PREPARING))
        assert fleet.beat(3) == []
        for do in ("pause", "resume"):
            with pytest.raises(SetupError, match="cut short"):
                answering.run(state, commands.Roll(do), "tester")
        answering.run(state, commands.Apply(_changed(text), "x"), "tester")
        assert fleet.beat(12) == ["hospital-1", "centre", "cloud", "van-1"]


def test_who_never_called_needs_no_wave(state: Path, text: str) -> None:
    """A network that is still being written, before the first box is there."""
    setup.apply(state, text)
    assert answering.run(state, commands.Apply(_changed(text), "x"), "tester").data["waves"] == []
    with setup.opened(state) as (store, _):
        assert rolling.settled(store)
        published = change.in_force(store, "centre")
        assert published is not None and published.version == 2


def test_drain_and_undrain(state: Path, text: str) -> None:
    setup.apply(state, text)
    answer = answering.run(state, commands.Drain("centre"), "tester")
    assert answer.data["published"] == {"centre": 2}
    with setup.opened(state) as (store, _):
        published = change.in_force(store, "centre")
        assert published is not None and decode(published.raw).drain
    assert setup.apply(state, EXAMPLE).published == {}  # it stays drained
    with pytest.raises(SetupError, match="last hub"):
        answering.run(state, commands.Drain("cloud"), "tester")
    with pytest.raises(SetupError, match="no hub"):
        answering.run(state, commands.Drain("van-1"), "tester")
    assert answering.run(state, commands.Drain("centre", back=True), "tester").data["published"] == {"centre": 3}
    with setup.opened(state) as (store, _):
        published = change.in_force(store, "centre")
        assert published is not None and not decode(published.raw).drain


def test_rollback_knows_every_network(state: Path, text: str) -> None:
    for failback in (60, 61, 62):
        answering.run(
            state, commands.Apply(text.replace("failback_s: 60", f"failback_s: {failback}"), "x", now=True), "eve"
        )
    listed = answering.run(state, commands.Rollback(list=True), "tester")
    assert len(listed.lines) == 4 and "eve" in listed.lines[1]
    answering.run(state, commands.Rollback(number=1, now=True), "tester")
    with setup.opened(state) as (store, _):
        published = change.in_force(store, "van-1")
        assert published is not None and decode(published.raw).policy.failback_s == 60
        assert published.version == 4
    with pytest.raises(SetupError, match="no network number 9"):
        answering.run(state, commands.Rollback(number=9), "tester")


def test_the_list_says_what_one_can_go_back_to(state: Path, text: str) -> None:
    assert answering.run(state, commands.Rollback(list=True), "tester").lines == ("no network was applied here yet",)
    with pytest.raises(SetupError, match="no network was applied"):
        answering.run(state, commands.Rollback(), "tester")
    answering.run(state, commands.Apply(text, "x", now=True), "eve")
    answering.run(state, commands.Drain("centre"), "eve")
    with pytest.raises(SetupError, match=r"no other network .*undrain"):
        answering.run(state, commands.Rollback(), "tester")
    answering.run(state, commands.Apply(text.replace("mtu: 1400", "x"), "x", now=True), "eve")
    answering.run(state, commands.Apply(text.replace("failback_s: 60", "failback_s: 61"), "x", now=True), "eve")
    answering.run(state, commands.Rollback(now=True), "adam")
    rows = [line.split() for line in answering.run(state, commands.Rollback(list=True), "tester").lines]
    assert [" ".join(row[3:]) for row in rows[1:]] == [
        "eve apply 4 the same network",
        "eve drain centre 1 the same network",
        "eve apply 0 the same network",
        "eve apply 4",
        "adam rollback to 3 4 in force",
    ]


def test_what_is_refused_is_no_deed(state: Path, text: str) -> None:
    """Also when a rollout was through long ago."""
    for _ in range(2):
        for do in ("pause", "resume", "abort"):
            with pytest.raises(SetupError, match="no rollout that is under way"):
                answering.run(state, commands.Roll(do), "tester")
        with setup.opened(state) as (store, _):
            assert not [deed for deed in audit.deeds(store) if deed.what.startswith("rollout")]
        answering.run(state, commands.Apply(text, "x"), "tester")
