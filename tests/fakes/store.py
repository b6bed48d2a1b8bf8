"""A `StorePort` in memory. What a restarted agent would find: hand the same one to the next agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cpe_agent.model.confirmation import Rejection
from cpe_agent.model.enrolment import Enrolment
from cpe_agent.model.usage import Usage
from cpe_agent.ports import EdgeError, Pending, SignedDocument, Signers


class FakeStore:
    """`refusal`, if set, is the cause with which every save raises, as a full disk does."""

    def __init__(self) -> None:
        self.document: SignedDocument | None = None
        self.previous: SignedDocument | None = None
        self.pending: Pending | None = None
        self.rejections: tuple[Rejection, ...] = ()
        self.signers: Signers | None = None
        self.addresses: dict[str, tuple[str, ...]] = {}
        self.enrolment: Enrolment | None = None
        self.instance = ""
        self.order: tuple[int, int] | None = None
        self.clock_floor_s = 0.0
        self.drained = False
        self.usages: dict[str, Usage] = {}
        self.usages_saved = 0
        self.refusal: str | None = None

    def load_document(self) -> SignedDocument | None:
        return self.document

    def save_document(self, document: SignedDocument) -> None:
        self._refuse()
        self.document = document

    def load_previous(self) -> SignedDocument | None:
        return self.previous

    def save_previous(self, document: SignedDocument | None) -> None:
        self._refuse()
        self.previous = document

    def load_pending(self) -> Pending | None:
        return self.pending

    def save_pending(self, pending: Pending | None) -> None:
        self._refuse()
        self.pending = pending

    def load_rejections(self) -> tuple[Rejection, ...]:
        return self.rejections

    def save_rejections(self, rejections: Sequence[Rejection]) -> None:
        self._refuse()
        self.rejections = tuple(rejections)

    def load_signers(self) -> Signers | None:
        return self.signers

    def save_signers(self, signers: Signers) -> None:
        self._refuse()
        self.signers = signers

    def load_order(self) -> tuple[int, int] | None:
        return self.order

    def save_order(self, order: tuple[int, int]) -> None:
        self._refuse()
        self.order = order

    def load_clock_floor(self) -> float:
        return self.clock_floor_s

    def save_clock_floor(self, wall_s: float) -> None:
        self._refuse()
        self.clock_floor_s = wall_s

    def load_enrolment(self) -> Enrolment | None:
        return self.enrolment

    def save_enrolment(self, enrolment: Enrolment) -> None:
        self._refuse()
        self.enrolment = enrolment

    def load_instance(self) -> str:
        return self.instance

    def save_instance(self, instance: str) -> None:
        self._refuse()
        self.instance = instance

    def load_addresses(self) -> Mapping[str, tuple[str, ...]]:
        return self.addresses

    def save_addresses(self, addresses: Mapping[str, tuple[str, ...]]) -> None:
        self._refuse()
        self.addresses = dict(addresses)

    def load_drained(self) -> bool:
        return self.drained

    def save_drained(self, drained: bool) -> None:
        self._refuse()
        self.drained = drained

    def load_usages(self) -> dict[str, Usage]:
        return dict(self.usages)

    def save_usages(self, usages: dict[str, Usage]) -> None:
        self._refuse()
        self.usages = dict(usages)
        self.usages_saved += 1

    def _refuse(self) -> None:
        if self.refusal is not None:
            raise EdgeError("store", "save", self.refusal)
