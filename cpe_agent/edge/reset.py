"""How does a box become new again, and whose are its files?"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from cpe_agent.edge.store import CLOCK_FLOOR
from cpe_agent.edge.vici import ViciClient
from cpe_agent.edge.vici_codec import texts
from cpe_agent.ports import EdgeError

OURS = "cpe-"


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


async def end_all(vici_socket: Path) -> None:
    """End every IKE_SA of ours and unload every connection and key. A charon that is away has none."""
    client = ViciClient(vici_socket)
    try:
        names = texts(await client.request("get-conns"), "conns")
        for name in (name for name in names if name.startswith(OURS)):
            with suppress(EdgeError):  # it may have none
                await client.request("terminate", {"ike": name, "force": True, "timeout": -1})
            await client.request("unload-conn", {"name": name})
        await client.request("clear-creds")
    except EdgeError:
        return
    finally:
        client.close()
