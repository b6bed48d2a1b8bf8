"""What can an operator ask of a controller, and what comes of it?

One type per command; `answering.run` does it. The same happens in the operator's own process and, over the UNIX socket,
in the controller's.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Answer(msgspec.Struct, frozen=True):
    """`lines` for people, `data` for programs, and the exit code: 0 done, 1 not so."""

    lines: tuple[str, ...]
    data: Any = None
    exit: int = 0


class _Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="command"):
    """All that a command is told; files are read and written by who asks."""


class Apply(_Command, frozen=True, tag="apply"):
    """Put a network.yaml in force. `source` is how errors call it."""

    text: str
    source: str
    allow_mass_removal: bool = False


class Plan(_Command, frozen=True, tag="plan"):
    """The same, but only as a `Change` that is still to be signed (`data`)."""

    text: str
    source: str
    allow_mass_removal: bool = False


class Diff(_Command, frozen=True, tag="diff"):
    """What applying this network.yaml would change, in words."""

    text: str
    source: str


class Import(_Command, frozen=True, tag="import"):
    """Put a signed `Change` (its JSON) in force."""

    change: str


class Token(_Command, frozen=True, tag="token"):
    """A token for a site that has no box yet."""

    site: str
    hours: int


class Revoke(_Command, frozen=True, tag="revoke"):
    """Shut a site out, everywhere."""

    site: str


class Replace(_Command, frozen=True, tag="replace"):
    """Give a site's place to a new box: the old one is shut out, and there is a token."""

    site: str
    hours: int


class Audit(_Command, frozen=True, tag="audit"):
    """The log of deeds; `check` also verifies its chain."""

    check: bool = False


Command = Apply | Plan | Diff | Import | Token | Revoke | Replace | Audit
