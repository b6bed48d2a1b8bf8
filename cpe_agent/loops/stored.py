"""Which document is in force by what is on the disk?

In: the store, who we are, and the keys of the settings. Out: `Stored`: the last good document and the one on trial,
both verified again, and those that were given up. The daemon starts from it, and the commands that compare without a
daemon ask it. Nothing is written here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from cpe_agent.core import confirm, obey
from cpe_agent.model.confirmation import Rejection
from cpe_agent.model.document import Document, DocumentError
from cpe_agent.ports import EdgeError, Pending, SignedDocument, Signers, StorePort

T = TypeVar("T")

# Its age speaks neither for nor against a document that is in force.
NO_CLOCK = obey.Clock(0.0, trusted=False)


class Kept(msgspec.Struct, frozen=True):
    """A verified document, as it travelled and decoded."""

    signed: SignedDocument
    document: Document


class Stored(msgspec.Struct, frozen=True):
    """What the disk says. `troubles`: files that could not be read or documents that are not to be believed."""

    good: Kept | None
    previous: Kept | None
    trial: Kept | None
    pending: Pending | None
    rejections: tuple[Rejection, ...]
    trusted: dict[str, str]
    made: dict[str, str]
    troubles: tuple[EdgeError | DocumentError, ...] = ()

    def in_force(self) -> Document | None:
        """The document on trial, unless its attempts are used up; else what is left of the last good one."""
        if self.trial is not None and self.pending is not None and self.pending.attempts < confirm.ATTEMPTS_MAX:
            return self.trial.document
        return None if self.good is None else confirm.reverted_to(self.good.document, self.rejections)


def read_stored(store: StorePort, site: str, roots: Mapping[str, str]) -> Stored:
    """What is stored; raises nothing. `roots`: the keys that agent.yaml, or enrolment, trusts."""
    troubles: list[EdgeError | DocumentError] = []

    def load(what: Callable[[], T]) -> T | None:
        try:
            return what()
        except EdgeError as error:
            troubles.append(error)
            return None

    signers = load(store.load_signers)
    if signers is None or signers.roots != dict(roots):
        # Keys that came in documents follow from the roots; under others they count for nothing.
        signers = Signers(dict(roots), {}, {})
    keys = {**signers.made, **roots}

    def keep(signed: SignedDocument | None) -> Kept | None:
        if signed is None:
            return None
        try:
            obey.verify(signed.raw, signed.signature, signed.key_id, keys)
            return Kept(signed, obey.obey(signed.raw, site, None, None, NO_CLOCK, stored=True))
        except DocumentError as error:
            troubles.append(error)
            return None

    rejections = load(store.load_rejections) or ()
    given_up = {rejection.sha256 for rejection in rejections if not rejection.acquitted}
    good = keep(load(store.load_document))
    previous = keep(load(store.load_previous))
    if good is not None and digest(good.signed.raw) in given_up and previous is not None:
        # A rollback that was cut short.
        good, previous = previous, None
    if good is not None and previous is not None and previous.signed == good.signed:
        # Cut short between the two writes of a confirmation or a rollback: that is no document before this one.
        previous = None
    pending = load(store.load_pending)
    trial = keep(pending.signed if pending else None)
    if trial is None or digest(trial.signed.raw) in given_up or (good is not None and good.signed == trial.signed):
        # Given up, or confirmed, and cut short before that was tidied away.
        pending = trial = None
    trusted = signers.trusted or obey.signing_keys(good.document if good else None, roots)
    if trial is not None:
        # It says who may sign the next one, also if the power went before that was noted.
        trusted = obey.signing_keys(trial.document, trusted)
    return Stored(good, previous, trial, pending, rejections, dict(trusted), dict(signers.made), tuple(troubles))


def digest(raw: bytes) -> str:
    """By what a document's bytes are known again."""
    return hashlib.sha256(raw).hexdigest()
