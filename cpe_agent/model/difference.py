"""Where does the living system differ from what the signed document asks for?

Found by `core.verify`, printed by `cpe-agent verify`.
"""

from __future__ import annotations

from enum import Enum

import msgspec


class Kind(Enum):
    """What is wrong with a thing: it is not there, nobody asked for it, or it is there and not as asked."""

    MISSING = "missing"
    FOREIGN = "foreign"
    ALTERED = "altered"


class Difference(msgspec.Struct, frozen=True):
    """`target` is links, rules, routes or tunnels; `what` is the thing in words."""

    target: str
    kind: Kind
    what: str


class Verification(msgspec.Struct, frozen=True):
    """All that differs from this document, at the moment it was looked at."""

    site: str
    document_epoch: int
    document_version: int
    in_sync: bool
    differences: tuple[Difference, ...]
