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
        self._value = (ctypes.c_uint32 * 2)(_ETHTOOL_GLINK, 0)  # struct ethtool_value: what is asked, the answer
        self._with: dict[str, bytes] = {}  # name -> the request to ask with

    def close(self) -> None:
        self._socket.close()

    def note(self) -> None:
        """Take note of who has one now; to be called after any change of links."""
        names = [name for _, name in socket.if_nameindex()]
        address = ctypes.addressof(self._value)
        if len(names) > LINKS_MAX:
            names = []
        requests = {name: struct.pack("16sP16x", name.encode(), address) for name in names}
        self._with = {name: request for name, request in requests.items() if self._has(request)}

    def lost(self) -> frozenset[str]:
        """Those that had one when they were last noted or looked at, and have none now."""
        gone = frozenset(name for name, request in self._with.items() if not self._has(request))
        for name in gone:
            del self._with[name]
        return gone

    def _has(self, request: bytes) -> bool:
        """A device that cannot say, or is no more, has none."""
        try:
            fcntl.ioctl(self._socket, _SIOCETHTOOL, request)
        except OSError:
            return False
        return bool(self._value[1])
