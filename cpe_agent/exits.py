"""With what does a command end, and what does that tell a script?

Numbers up to 5 are answers and differ from command to command; those from 64 on say that there is none, as sysexits.h
numbers them, and mean the same everywhere. A test holds the manual page to this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# `status`: how the site fares. `verify`, `drill`, `capture` and the others have answers of their own.
HEALTHY, DEGRADED, DOWN, NOT_RUNNING, BLOCKED = 0, 1, 2, 3, 4
IN_SYNC, DIFFERS, NOT_VERIFIED = 0, 1, 3
# What `rollback` says when there is no document before the one in force.
NOTHING_BEFORE = 1
# What `enroll` says when this token lets nobody in, and `reset` when it was not wanted.
NOT_LET_IN = 1
DRILL_LOSS, DRILL_REFUSED, DRILL_EARLY, DRILL_UNMEASURED = 1, 2, 4, 5
NOTHING_CAPTURED = 1

USAGE = 64
BAD_DATA = 65
NO_INPUT = 66
UNAVAILABLE = 69
CANNOT_WRITE = 73
NO_PERMISSION = 77
CONFIGURATION = 78

# Of every command, besides its own.
COMMON: Mapping[int, str] = MappingProxyType(
    {
        USAGE: "the command line was not understood",
        BAD_DATA: "what was given is no good: the words name the file, the field and the mend",
        NO_INPUT: "a file that was named cannot be read",
        UNAVAILABLE: "it could not be done, or found out; the words say why",
        CANNOT_WRITE: "a file cannot be written",
        NO_PERMISSION: "this user may not ask: be root, or in the group of the control socket",
        CONFIGURATION: "agent.yaml is no good: the words name the field and the mend",
    }
)

# Command -> its own answers.
EXITS: Mapping[str, Mapping[int, str]] = MappingProxyType(
    {
        "run": {0: "it was told to end"},
        "status": {
            HEALTHY: "healthy",
            DEGRADED: "degraded",
            DOWN: "down",
            NOT_RUNNING: "no agent is running",
            BLOCKED: "blocked: the document has expired and says that nobody may talk then",
        },
        "check": {0: "good"},
        "plan": {0: "whatever it would change", NOT_VERIFIED: "there is no document"},
        "verify": {IN_SYNC: "in sync", DIFFERS: "with differences", NOT_VERIFIED: "it cannot be verified"},
        "enroll": {0: "this box is let in", NOT_LET_IN: "only another token helps"},
        "rollback": {
            0: "it is in force",
            NOTHING_BEFORE: "there is none to go back to",
            NOT_RUNNING: "no agent is running",
        },
        "drill": {
            0: "done and nothing lost; with --check: the records hold",
            DRILL_LOSS: "done, with a loss or not back; with --check: they were altered",
            DRILL_REFUSED: "refused",
            NOT_RUNNING: "no agent is running",
            DRILL_EARLY: "put back early, or interrupted",
            DRILL_UNMEASURED: "done, but of packets that moved nothing was measured: no probe",
        },
        "drain": {0: "drained, also if it was before", NOT_RUNNING: "no agent is running"},
        "undrain": {0: "no longer drained, also if it was not", NOT_RUNNING: "no agent is running"},
        "capture": {
            0: "both files hold packets",
            NOTHING_CAPTURED: "nothing passed, at least on one side of encryption",
            NOT_VERIFIED: "there is no document, so there is no pair",
        },
        "support-bundle": {0: "it is written, also if parts of it could not be had"},
        "boot": {0: "the router is locked"},
        "down": {0: "nothing of the agent is left"},
        "reset": {0: "this box is new", NOT_LET_IN: "it was not wanted after all"},
        "version": {0: "always"},
    }
)


def in_words(command: str) -> str:
    """For the end of a command's help."""
    return f"Exits {'; '.join(f'{code}: {meaning}' for code, meaning in EXITS[command].items())}; 64 and above: failed."
