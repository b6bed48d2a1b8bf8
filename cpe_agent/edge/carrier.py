"""Which links have lost their carrier since somebody last looked?

The kernel tells of a carrier that goes, but at most once a second for all links together: a router that loses two
cables with one switch hears of the second up to a second late. Who asks is told at once. A question costs some
microseconds, and nothing is sent.
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct

# More links than a router with uplinks has: on such a machine the kernel's own word must do.
LINKS_MAX = 32

_SIOCETHTOOL = 0x8946
_ETHTOOL_GLINK = 0x0000000A


class Carriers:
    """The links that have a carrier, as of the last look. Needs no privilege."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._question = ctypes.create_string_buffer(8)  # struct ethtool_value: command, data
        self._with: frozenset[str] = frozenset()

    def close(self) -> None:
        self._socket.close()

    def note(self) -> None:
        """Take note of who has one now; to be called after any change of links."""
        names = [name for _, name in socket.if_nameindex()]
        self._with = frozenset(name for name in names if self._has(name)) if len(names) <= LINKS_MAX else frozenset()

    def lost(self) -> frozenset[str]:
        """Those that had one when they were last noted or looked at, and have none now."""
        gone = frozenset(name for name in self._with if not self._has(name))
        self._with -= gone
        return gone

    def _has(self, name: str) -> bool:
        """A device that cannot say, or is no more, has none."""
        struct.pack_into("=II", self._question, 0, _ETHTOOL_GLINK, 0)
        request = struct.pack("16sP16x", name.encode(), ctypes.addressof(self._question))
        try:
            fcntl.ioctl(self._socket, _SIOCETHTOOL, request)
        except OSError:
            return False
        return bool(struct.unpack_from("=II", self._question)[1])
