"""A `StorePort` in memory. What a restarted agent would find: hand the same one to the next agent."""

from __future__ import annotations

from cpe_agent.model.usage import Usage
from cpe_agent.ports import EdgeError, SignedDocument


class FakeStore:
    """`refusal`, if set, is the cause with which every save raises, as a full disk does."""

    def __init__(self) -> None:
        self.document: SignedDocument | None = None
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
