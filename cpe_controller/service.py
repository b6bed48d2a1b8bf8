"""How does the service manager learn that the controller serves?

By one datagram to the socket that the environment names (sd_notify(3)): a path, or "@NAME" for an abstract one. Without
one there is nobody to tell. Until then `systemctl start` waits, so that the next command finds a controller that runs.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

READY = b"READY=1\nSTATUS=serving"


def tell_ready() -> None:
    """Whoever started us and does not listen has given up, and says so itself."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if name[:1] not in ("/", "@"):
        return
    address = "\0" + name[1:] if name.startswith("@") else name
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as telling, suppress(OSError):
        telling.sendto(READY, address)
