"""Does a TCP port answer, asked from one of our own addresses?

In: source, server, port, patience. Out: yes or no. A connection that is accepted is closed at once; one that is refused
is no answer: the machine lives, the service does not.
"""

from __future__ import annotations

import ipaddress
import socket

import trio


class TcpConnector:
    """A `ConnectPort`. Needs no privilege."""

    async def connects(self, source: str, server: str, port: int, within_s: float) -> bool:
        """Never raises: whatever stands in the way is a no."""
        version = ipaddress.ip_address(server).version
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        with trio.move_on_after(within_s):
            try:
                with trio.socket.socket(family, socket.SOCK_STREAM) as asking:
                    await asking.bind((source, 0))
                    await asking.connect((server, port))
            except OSError:
                return False
            return True
        return False
