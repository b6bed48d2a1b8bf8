"""Which machine is this? The name that it has given itself for ever, and the boot that it is in."""

from __future__ import annotations

import uuid
from contextlib import suppress
from pathlib import Path

from cpe_agent.model.site_report import Box
from cpe_agent.ports import EdgeError, StorePort

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def box(store: StorePort) -> Box:
    """This one. A name that cannot be kept lasts until the agent ends."""
    instance = ""
    with suppress(EdgeError):
        instance = store.load_instance()
    if not instance:
        instance = str(uuid.uuid4())
        with suppress(EdgeError):
            store.save_instance(instance)
    try:
        boot_id = BOOT_ID.read_text().strip()
    except OSError:
        boot_id = ""
    return Box(instance, boot_id)
