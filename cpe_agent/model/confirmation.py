"""What is remembered of a document on trial, and of those that were given up?

Frozen data that outlives a restart: the store keeps it, core.confirm decides by it.
"""

from __future__ import annotations

import msgspec

# Documents that were given up, and are still remembered.
REJECTIONS_MAX = 16


class Before(msgspec.Struct, frozen=True):
    """How the site fared when it took up a document that is still to be confirmed: the peers that were healthy, the
    targets that were in sync, and whether the controller answered. All of that it must have again."""

    healthy: frozenset[str] = frozenset()
    targets: frozenset[str] = frozenset()
    controller: bool = False


class Rejection(msgspec.Struct, frozen=True):
    """A document that is not obeyed, and why. `reverted`: it was in force for a while, and was given up for good.

    `removed`: the peers that it had taken away from the document before it; a revert does not give them back. `sha256`:
    of its bytes, by which it is known when it is offered again. `trials`: how often it was given up. `acquitted`: what
    it was given up for was missing without it too, so it may be taken up again.
    """

    epoch: int
    version: int
    reason: str
    reverted: bool = False
    removed: tuple[str, ...] = ()
    sha256: str = ""
    trials: int = 1
    acquitted: bool = False

    @property
    def order(self) -> tuple[int, int]:
        return (self.epoch, self.version)
