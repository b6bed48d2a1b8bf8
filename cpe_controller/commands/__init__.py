"""What can an operator ask of a controller, and what comes of it?

One type per command; `answering.run` does it. The same happens in the operator's own process and, over the UNIX socket,
in the controller's.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Answer(msgspec.Struct, frozen=True):
    """`lines` for people, `data` for programs, and the exit code: 0 done, 1 not so."""

    lines: tuple[str, ...]
    data: Any = None
    exit: int = 0


class _Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="command"):
    """All that a command is told; files are read and written by who asks."""


class Apply(_Command, frozen=True, tag="apply"):
    """Put a network.yaml in force, in waves or (`now`) at all sites at once. `source` is how errors call it."""

    text: str
    source: str
    allow_mass_removal: bool = False
    now: bool = False


class Plan(_Command, frozen=True, tag="plan"):
    """The same, but only as a `Change` that is still to be signed (`data`). `text` None is the network in force, with
    what was said of single sites since."""

    text: str | None
    source: str
    allow_mass_removal: bool = False


class Diff(_Command, frozen=True, tag="diff"):
    """What applying this network.yaml would change, in words."""

    text: str
    source: str


class Import(_Command, frozen=True, tag="import"):
    """Put a signed `Change` (its JSON) in force."""

    change: str
    now: bool = False


class Rollback(_Command, frozen=True, tag="rollback"):
    """Put an older network in force again; `number` None is the one before."""

    number: int | None = None
    now: bool = False
    list: bool = False


class Roll(_Command, frozen=True, tag="rollout"):
    """What is to become of the rollout."""

    do: Literal["show", "pause", "resume", "abort"]


class Status(_Command, frozen=True, tag="status"):
    """How these sites fare (none: all), of those in one of these states (none: in any)."""

    sites: tuple[str, ...] = ()
    states: tuple[str, ...] = ()


class Drain(_Command, frozen=True, tag="drain"):
    """Empty a hub, make-before-break; or (`back`) bring it back."""

    site: str
    back: bool = False


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


class Rotate(_Command, frozen=True, tag="rotate"):
    """Another policy key; `public` (PEM) if it is kept elsewhere. `leave_behind` gives up sites that do not know it."""

    do: Literal["start", "finish"]
    public: str | None = None
    leave_behind: bool = False


class Audit(_Command, frozen=True, tag="audit"):
    """The log of deeds; `check` also verifies its chain."""

    check: bool = False


Command = Apply | Plan | Diff | Import | Rollback | Roll | Status | Drain | Token | Revoke | Replace | Rotate | Audit
