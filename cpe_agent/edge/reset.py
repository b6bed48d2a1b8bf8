"""How does a box forget who it is, and whose are its files?"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from cpe_agent.edge.store import CLOCK_FLOOR
from cpe_agent.ports import EdgeError


def forget(state_dir: Path) -> None:
    """Remove all that was learned; that time has passed stays true. Raises EdgeError."""
    try:
        for path in sorted(state_dir.iterdir()) if state_dir.exists() else ():
            if path.name == CLOCK_FLOOR:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    except OSError as error:
        raise EdgeError("store", "forget", f"{error.filename} cannot be removed: {error.strerror}") from None


def give_to_owner(state_dir: Path) -> None:
    """What root has written there belongs to the agent's own user, as the directory does."""
    if os.geteuid() != 0 or not state_dir.exists():
        return
    owner = state_dir.stat()
    for path in state_dir.rglob("*"):
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
