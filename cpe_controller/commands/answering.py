"""How is a command done?

In: the state directory, a `Command`, and who asks. Out: an `Answer`, or an error of those in `FAILURES`, whose words
are for the operator.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from cpe_controller import audit
from cpe_controller.change import ChangeError
from cpe_controller.commands import (
    Answer,
    Apply,
    Audit,
    Command,
    Diff,
    Drain,
    Import,
    Plan,
    Replace,
    Revoke,
    Roll,
    Rollback,
    Rotate,
    Status,
    Token,
    applying,
    keys,
    looking,
    sites,
)
from cpe_controller.fields import NetworkError
from cpe_controller.files import SetupError
from cpe_controller.publish import ApplyConflict
from cpe_controller.setup import Setup, opened
from cpe_controller.store import Store, StoreError

FAILURES = (NetworkError, SetupError, StoreError, ApplyConflict, ChangeError)


def run(state_dir: Path, command: Command, by: str) -> Answer:
    with opened(state_dir) as (store, setup):
        return _run(state_dir, store, setup, command, by)


def exit_code(error: Exception) -> int:
    """2 if what was written is wrong, 1 if it could not be done."""
    return 2 if isinstance(error, NetworkError) else 1


def _run(state_dir: Path, store: Store, setup: Setup, command: Command, by: str) -> Answer:
    match command:
        case Apply():
            return applying.apply(state_dir, store, setup, command, by)
        case Plan():
            return applying.plan(state_dir, store, setup, command)
        case Diff():
            return applying.diff(state_dir, store, setup, command)
        case Import():
            return applying.take_in(state_dir, store, command, by)
        case Rollback():
            return applying.rollback(state_dir, store, setup, command, by)
        case Roll():
            return looking.roll(store, command, by)
        case Status():
            return looking.status(store, command)
        case Drain():
            return sites.drain(state_dir, store, setup, command, by)
        case Token():
            return sites.token(state_dir, store, setup, command, by)
        case Revoke():
            return sites.revoke(state_dir, store, setup, command, by)
        case Replace():
            return sites.replace(state_dir, store, setup, command, by)
        case Rotate():
            return keys.rotate(state_dir, store, setup, command, by)
        case Audit():
            return _audit(store, command)


def _audit(store: Store, command: Audit) -> Answer:
    found, newest = audit.deeds(store), audit.head(store)
    if command.check:
        if flaw := audit.flaw(found, newest):
            return Answer((f"the audit log is NOT whole: {flaw}",), {"flaw": flaw}, 1)
        said = f"the audit log is whole: {newest.number} entries, the last has the hash {newest.hash}"
        return Answer((said,), {"entries": newest.number, "hash": newest.hash})
    lines = []
    for deed in found:
        about = "; ".join(f"{name}: {value}" for name, value in deed.about.items() if value)
        lines.append(f"{deed.at.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S}  {deed.by:16}  {deed.what:10}  {about}".rstrip())
    return Answer(tuple(lines), found)
