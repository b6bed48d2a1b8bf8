"""Which documents were given up here, and may one of them be taken up again?

Pure. In: the rejections so far, and what becomes of one more document. Out: the rejections then.

An acquitted one is tried again while the controller is heard, so that at least that can fail: as soon as all that it
was asked for works under the document before, or after `PATIENCE_S` with what works by then. A hub that is gone for
good, or has moved to where only the newer document looks for it, must not hold that up for ever.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from cpe_agent.core.confirm import TRIALS_MAX
from cpe_agent.model.confirmation import REJECTIONS_MAX, Rejection

PATIENCE_S = 300.0
# The controller is heard every 10 s.
GAP_S = 45.0

Rejections = tuple[Rejection, ...]
Order = tuple[int, int]


class Waiting(msgspec.Struct, frozen=True):
    """For when an acquitted document may be tried again. `awaited`: the peers that it was asked for (None: nobody
    remembers); `since`: the controller has been heard without a gap, `heard_at` being the last time."""

    awaited: frozenset[str] | None = None
    since: float = -math.inf
    heard_at: float = -math.inf


def heard(waiting: Waiting, now: float) -> Waiting:
    """The controller is heard now."""
    since = waiting.since if now - waiting.heard_at <= GAP_S else now
    return Waiting(waiting.awaited, since, now)


def due(waiting: Waiting, healthy: frozenset[str], now: float) -> bool:
    """Is an acquitted document to be tried again now?"""
    whole = waiting.awaited is not None and waiting.awaited <= healthy
    return whole or now - waiting.since >= PATIENCE_S


def given_up(rejections: Sequence[Rejection], order: Order) -> bool:
    """Was the document of this order given up for good?"""
    return any(one.order == order and not one.acquitted for one in rejections)


def with_bytes(rejections: Sequence[Rejection], sha256: str) -> Rejection | None:
    """That of the document with these bytes, if it was given up."""
    return next((one for one in rejections if one.sha256 == sha256), None)


def may_try_again(rejections: Sequence[Rejection], order: Order, current: Order | None) -> bool:
    """Was it given up for what turned out not to be its fault, and is not in force again (`current`) yet?"""
    return order != current and any(one.order == order and one.acquitted for one in rejections)


def one_more(rejections: Rejections, rejection: Rejection) -> Rejections:
    """`rejection` is the newest; it counts how often its document was given up."""
    earlier = [one for one in rejections if one.sha256 == rejection.sha256]
    counted = msgspec.structs.replace(rejection, trials=1 + sum(one.trials for one in earlier))
    return (*(one for one in rejections if one not in earlier), counted)[-REJECTIONS_MAX:]


def acquitted(rejections: Rejections, order: Order) -> Rejections:
    """That document's fault it was not; unless that was said too often already."""
    return tuple(
        msgspec.structs.replace(one, acquitted=True) if one.order == order and one.trials < TRIALS_MAX else one
        for one in rejections
    )
