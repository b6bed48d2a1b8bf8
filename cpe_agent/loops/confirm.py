"""Which document is in force, and is it there to stay?

The one writer of the document and standing Cells. Takes up what the controller offers if core.obey allows it, keeps it
on trial as core.confirm says, and goes back by itself. What must outlive a power cut is on the disk before it is in
force: the document on trial with the count of its attempts, the last good one until the trial is over, and those that
were given up before they are left.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import msgspec
import trio

from cpe_agent.core import confirm, obey, rejections
from cpe_agent.core.confirm import Decision, Started, TakenUp, Trial, Verdict
from cpe_agent.core.health import Track
from cpe_agent.core.wanted_tunnels import selectors
from cpe_agent.log import get_logger
from cpe_agent.loops.bell import Bell, ring_on_change
from cpe_agent.loops.cells import Cells
from cpe_agent.loops.clock import FlooredClock
from cpe_agent.loops.stored import Kept, digest, read_stored
from cpe_agent.loops.witness import Witness
from cpe_agent.model.condition import RollbackAnswer
from cpe_agent.model.confirmation import Rejection
from cpe_agent.model.dataplane import Path
from cpe_agent.model.document import Document, DocumentError
from cpe_agent.ports import EdgeError, Pending, SignedDocument, Signers, StorePort

log = get_logger()

T = TypeVar("T")

# How often a trial is looked at besides at changes: probes that go on being answered change no Cell.
LOOK_S = 0.5
# How often the controller is asked anew while a trial waits for it.
REACH_S = 1.0
# Days are meant; a clock may jump.
EXPIRY_LOOK_S = 5.0
SAVE_AGAIN_S = 60.0
Reach = Callable[[], Awaitable[bool]]


class InForce:
    """Takes documents up, keeps them or gives them up."""

    def __init__(
        self,
        cells: Cells,
        store: StorePort,
        clock: FlooredClock,
        site: str,
        roots: Mapping[str, str],
        tracks: Mapping[Path, Track],
    ) -> None:
        self._cells = cells
        self._store = store
        self._clock = clock
        self._site = site
        self._roots = dict(roots)
        self._witness = Witness(cells, tracks)
        self._bell = Bell()
        self._trial: Trial | None = None
        self._doubt: Trial | None = None  # what was given up last, while it may turn out not to be its fault
        self._attempts = 0
        self._good: Kept | None = None
        self._previous: Kept | None = None
        self._current: Kept | None = None  # as it came; what is in force may lack removed peers
        self._rejections: tuple[Rejection, ...] = ()
        self._waiting = rejections.Waiting()  # to try again what was acquitted
        self._trusted: dict[str, str] = {}
        self._made: dict[str, str] = {}
        self._highest: tuple[int, int] | None = None
        # What could not be written, why, and how it is tried again.
        self._unsaved: dict[str, tuple[str, Callable[[], None]]] = {}
        self._wake_at = math.inf
        # What is in force, with the pairs that it loses when its time has run out.
        self._whole: Document | None = None
        self._lapsed = False

    @property
    def highest(self) -> tuple[int, int] | None:
        """The highest (epoch, version) ever taken up."""
        return self._highest

    def load(self) -> None:
        """Put into force what was in force last, if it still verifies and was not tried in vain."""
        self._highest = self._stored(self._store.load_order)
        stored = read_stored(self._store, self._site, self._roots)
        for trouble in stored.troubles:
            self._tell(trouble)
        self._good, self._previous, self._rejections = stored.good, stored.previous, stored.rejections
        self._trusted, self._made = stored.trusted, stored.made
        for order in (kept.document.order for kept in (stored.good, stored.trial) if kept is not None):
            self._highest = max(self._highest or order, order)
        self._set_standing()
        if stored.trial is not None and stored.pending is not None:
            event = Started(
                stored.trial.document, stored.pending.before, stored.pending.attempts, first=stored.good is None
            )
            self._current = stored.trial
            if self._decide(*confirm.step(None, event, trio.current_time())):
                return
            self._attempts = stored.pending.attempts + 1
            self._save_pending()
            self._put_in_force(stored.trial.document)
        elif stored.good is not None:
            self._current = stored.good
            self._put_in_force(confirm.reverted_to(stored.good.document, self._rejections))
        document = self._cells.document.value
        if document is not None:
            log.info("document_loaded", epoch=document.epoch, version=document.version)

    def consider(self, signed: SignedDocument, announced: tuple[int, int] | None = None) -> None:
        """What the controller offers, announced as `announced`: take it up if that may be, or report why not."""
        sha256 = digest(signed.raw)
        try:
            obey.verify(signed.raw, signed.signature, signed.key_id, self._trusted or self._roots)
            if self._current is not None and self._current.signed.raw == signed.raw:
                self.offered_in_force()
                return
            tried = rejections.with_bytes(self._rejections, sha256)
            if tried is not None and not (tried.acquitted and self.may_try_again(tried.order)):
                return  # it was given up, for good or for now, and the condition says so
            document = obey.obey(signed.raw, self._site, self._not_newer(), self._whole, self._clock.now())
            # Bundles that contradict each other show only when they are compiled.
            selectors(document)
        except DocumentError as error:
            epoch, version = announced or (0, 0)
            self._set_standing(refused=Rejection(epoch, version, str(error), sha256=sha256))
            log.error("document_rejected", field=error.path, reason=error.reason)
            return
        self._take_up(Kept(signed, document))

    def offered_in_force(self) -> None:
        """The controller offers what is in force here: nothing that it says is refused any more."""
        self._set_standing(refused=None)

    def given_up(self, order: tuple[int, int]) -> bool:
        """Was the document of this order given up here, for good?"""
        return rejections.given_up(self._rejections, order)

    def may_try_again(self, order: tuple[int, int]) -> bool:
        """The controller is heard, and offers this: was it given up for what turned out not to be its fault, and is it
        time to try it again?"""
        current = None if self._current is None else self._current.document.order
        if not rejections.may_try_again(self._rejections, order, current):
            return False
        now = trio.current_time()
        self._waiting = rejections.heard(self._waiting, now)
        return rejections.due(self._waiting, self._witness.healthy(), now)

    def roll_back(self) -> RollbackAnswer:
        """Back to the document before, until a newer one than ever comes. Raises `EdgeError` if there is none."""
        left = self._current
        if self._trial is not None and self._good is not None:
            self._revert("an operator rolled it back")
        elif left is not None and self._previous is not None:
            self._give_up(left.document, digest(left.signed.raw), self._previous.document, "an operator rolled it back")
            good, self._previous = self._previous, None
            self._good = good
            if "rejected" not in self._unsaved:
                self._save("document", lambda: self._store.save_document(good.signed))
                self._save("previous", lambda: self._store.save_previous(None))
            self._go_back(good)
        else:
            raise EdgeError("control", "rollback", "there is no document before the one in force")
        assert left is not None and self._good is not None
        return RollbackAnswer(left.document.order, self._good.document.order, self._cells.standing.value.store_error)

    async def run(self, reach: Reach) -> None:
        """For ever: judge the document on trial. `reach` asks whether the controller answers a connection made now."""
        cells = self._cells
        facts = (cells.plan, cells.charon, cells.verdicts, cells.targets)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ring_on_change, self._bell, "facts", facts)
            nursery.start_soon(self._reach_controller, reach)
            nursery.start_soon(self._watch_expiry)
            nursery.start_soon(self._save_again)
            while True:
                look_at = trio.current_time() + LOOK_S if self._watched is not None else math.inf
                await self._bell.wait(min(look_at, self._wake_at))
                watched = self._watched
                if watched is not None:
                    self._decide(*confirm.step(watched, self._witness.see(watched), trio.current_time()))

    def stopped(self) -> None:
        """The agent ends as it was told to: that is no attempt of the document's."""
        if self._trial is not None:
            self._attempts -= 1
            self._save_pending()

    @property
    def _watched(self) -> Trial | None:
        return self._trial or self._doubt

    def _take_up(self, kept: Kept) -> None:
        document = kept.document
        event = TakenUp(document, self._witness.before(), first=self._good is None)
        self._trial, decision = confirm.step(self._watched, event, trio.current_time())
        self._doubt = None
        self._wake_at = decision.wake_at
        self._made[kept.signed.key_id] = (self._trusted or self._roots)[kept.signed.key_id]
        self._trusted = obey.signing_keys(document, self._trusted or self._roots)
        self._highest = document.order
        self._current = kept
        self._attempts = 1
        # After a crash in between, the stored document's own order and keys count as well (see `load`).
        self._save_pending()
        self._save("signers", self._save_signers)
        self._save("order", lambda: self._store.save_order(document.order))
        self._save("clock floor", lambda: self._clock.lift(document.issued_at.timestamp()))
        self._put_in_force(document)
        self._set_standing(refused=None)
        log.info("document_accepted", epoch=document.epoch, version=document.version)

    def _put_in_force(self, document: Document) -> None:
        self._witness.put_in_force()
        clock = self._clock.now()
        self._whole, self._lapsed = document, obey.lapsed(document, clock)
        self._cells.document.set(obey.in_time(document, clock))
        self._set_standing(since=time.time())
        self._bell.ring("document")

    async def _watch_expiry(self) -> None:
        while True:
            await trio.sleep(EXPIRY_LOOK_S)
            document = self._whole
            if document is not None and obey.lapsed(document, self._clock.now()) != self._lapsed:
                self._put_in_force(document)
                if self._lapsed:
                    log.error("document_expired", epoch=document.epoch, version=document.version)

    async def _reach_controller(self, reach: Reach) -> None:
        """While a trial waits for the controller, ask it over connections that are made under the document in force."""
        while True:
            await trio.sleep(REACH_S)
            trial = self._watched
            if trial is None or not trial.before.controller:
                continue
            seen = self._witness.see(trial)
            if not seen.controller and trial.before.targets <= seen.in_sync and await reach():
                self._witness.reached(trial)
                self._bell.ring("controller")

    def _decide(self, trial: Trial | None, decision: Decision) -> bool:
        """Do what core.confirm says. Returns whether the trial ended in a revert."""
        doubted, self._doubt = self._doubt, None
        self._wake_at = decision.wake_at
        match decision.verdict:
            case Verdict.REVERT:
                self._revert(decision.reason)
                self._doubt, self._wake_at = trial, decision.wake_at
                return True
            case Verdict.CONFIRM:
                self._trial = None
                self._confirm()
            case Verdict.ACQUIT if doubted is not None:
                self._acquit(doubted, decision.reason)
            case Verdict.WAIT if trial is not None and trial.doubt:
                self._doubt = trial
            case Verdict.WAIT if trial is not None:
                self._trial = trial
                self._set_standing()
        return False

    def _confirm(self) -> None:
        kept = self._current
        assert kept is not None
        before, self._good = self._good, kept
        if before is not None:
            self._previous = before
            self._save("previous", lambda: self._store.save_previous(before.signed))
        self._save("document", lambda: self._store.save_document(kept.signed))
        self._end_pending()
        # Those that were given up before it say nothing any more.
        newer = tuple(rejection for rejection in self._rejections if rejection.order > kept.document.order)
        if newer != self._rejections:
            self._remember(newer)
        self._set_standing()
        log.info("document_confirmed", epoch=kept.document.epoch, version=kept.document.version)

    def _revert(self, reason: str) -> None:
        """Give up what is on trial, for good: first on the disk, then in force."""
        kept, self._trial, self._wake_at = self._current, None, math.inf
        assert kept is not None
        self._give_up(kept.document, digest(kept.signed.raw), self._good.document if self._good else None, reason)
        self._end_pending()
        self._go_back(self._good)

    def _give_up(self, document: Document, sha256: str, back_to: Document | None, reason: str) -> None:
        removed = () if back_to is None else confirm.removed_peers(back_to, document)
        rejection = Rejection(document.epoch, document.version, reason, True, removed, sha256)
        self._remember(rejections.one_more(self._rejections, rejection))
        log.error("document_reverted", epoch=document.epoch, version=document.version, reason=reason)

    def _acquit(self, doubted: Trial, missing: str) -> None:
        """It was not its fault: what it lacked is missing without it as well."""
        told = rejections.acquitted(self._rejections, doubted.order)
        if told != self._rejections:
            self._remember(told)
            self._waiting = rejections.Waiting(doubted.before.healthy & doubted.listed)
            epoch, version = doubted.order
            log.warning("document_acquitted", epoch=epoch, version=version, reason=missing)
            self._set_standing()

    def _remember(self, told: tuple[Rejection, ...]) -> None:
        self._rejections = told
        self._save("rejected", lambda: self._store.save_rejections(told))

    def _go_back(self, good: Kept | None) -> None:
        self._current = good
        if good is not None:
            self._put_in_force(confirm.reverted_to(good.document, self._rejections))
        self._set_standing()

    def _save_pending(self) -> None:
        kept, trial = self._current, self._trial
        if kept is not None and trial is not None:
            pending = Pending(kept.signed, self._attempts, trial.before)
            self._save("pending", lambda: self._store.save_pending(pending))

    def _save_signers(self) -> None:
        kept = (self._current, self._good, self._previous)
        used = {one.signed.key_id for one in kept if one is not None}
        self._made = {key_id: key for key_id, key in self._made.items() if key_id in used}
        self._store.save_signers(Signers(self._roots, self._made, self._trusted))

    def _save(self, op: str, save: Callable[[], None]) -> None:
        """A full disk is no reason to leave a removed pair open: go on, and say that a restart would forget it."""
        known, _ = self._unsaved.pop(op, ("", save))
        try:
            save()
        except EdgeError as error:
            if error.cause != known:
                log.error("store_failed", op=op, cause=error.cause)
            self._unsaved[op] = error.cause, save
        self._set_standing(store_error=next((cause for cause, _ in self._unsaved.values()), ""))

    def _end_pending(self) -> None:
        """Nothing is on trial any more. What says so must be on the disk first: of a document that is not there as the
        good one, or as one that was given up, the pending one is all that a restart would know."""
        lacking = [self._unsaved[op] for op in ("document", "rejected") if op in self._unsaved]
        if lacking:
            self._unsaved["pending"] = lacking[0][0], self._end_pending
        else:
            self._save("pending", lambda: self._store.save_pending(None))

    async def _save_again(self) -> None:
        """A disk that was full has room again some day, and the next document may be weeks away."""
        while True:
            await trio.sleep(SAVE_AGAIN_S)
            # What says that nothing is on trial any more comes last.
            for op, (_, save) in sorted(self._unsaved.items(), key=lambda item: item[0] == "pending"):
                self._save(op, save)

    def _stored(self, load: Callable[[], T]) -> T | None:
        """What `load` finds; a damaged file is as good as none, and is written anew by the next save."""
        try:
            return load()
        except EdgeError as error:
            self._tell(error)
            return None

    @staticmethod
    def _tell(trouble: EdgeError | DocumentError) -> None:
        if isinstance(trouble, DocumentError):
            log.error("document_rejected", field=trouble.path, reason=f"stored: {trouble.reason}")
        else:
            log.error("store_failed", op=trouble.op, cause=trouble.cause)

    def _not_newer(self) -> tuple[int, int] | None:
        """The highest order that is refused. One that was taken up but is lost (a damaged disk) may come again."""
        highest = self._highest
        if highest is None or highest == (self._current.document.order if self._current else None):
            return highest
        return highest if self.given_up(highest) else (highest[0], highest[1] - 1)

    def _set_standing(self, **changes: object) -> None:
        document, trial = self._cells.document.value, self._trial
        order = document.order if document is not None else (0, 0)
        reverted = [r for r in self._rejections if r.reverted and r.order > order]
        self._cells.standing.set(
            msgspec.structs.replace(
                self._cells.standing.value,
                pending=trial is not None,
                missing=trial.missing if trial is not None else "",
                reverted=reverted[-1] if reverted else None,
                **changes,
            )
        )
