"""May our routes, rules and addresses have changed since they were last read?

A hub has tens of thousands of routes of ours, and routing has no generation to compare, as nftables has; but the kernel
tells of every change. While nothing is told that could concern us, what was read is still true. What could:

- a route with our protocol number, or one that was put in the place of another (nobody tells whose that was);
- an IPsec policy of ours, or the loss of all;
- any link (routes over one that goes down go without a word), any address, any rule;
- anything that was lost or is not understood.

Routes of others, which a routing daemon may change all day, do not.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import weakref
from collections.abc import Callable

from cpe_agent.edge import xfrm
from cpe_agent.model.dataplane import ROUTE_PROTOCOL

_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1
_SO_RCVBUFFORCE = 33
# RTNLGRP_*: links; v4 addresses, routes, rules; v6 addresses, routes, rules.
_GROUPS = (1, 5, 7, 8, 9, 11, 19)
_RECEIVE_BUFFER_BYTES = 1 << 20
_DATAGRAM_BYTES = 1 << 17
# More than that is read anew rather than read through.
_BURST = 1000

_HEADER = struct.Struct("=IHHII")
_RTM_NEWROUTE, _RTM_DELROUTE = 24, 25
_NLM_F_REPLACE = 0x100
_PROTOCOL_AT = _HEADER.size + 5  # rtmsg: family, two lengths, TOS, table, protocol
_RTMSG_BYTES = 12


class RouteNews:
    """Subscribed from its first use until it is collected. Not for two threads at once."""

    def __init__(self) -> None:
        self._netlink: socket.socket | None = None
        self._policies: socket.socket | None = None

    def heard(self) -> bool:
        """Something that may concern us, since the last call? Yes, at the first. Raises OSError."""
        if self._netlink is None:
            self._netlink = _subscribed()
            # The socket outlives no owner, and goes without a warning.
            weakref.finalize(self, self._netlink.close)
            self._policies = xfrm.subscribed((xfrm.GROUP_POLICY,))
            if self._policies is not None:
                weakref.finalize(self, self._policies.close)
            return True
        found = _heard(self._netlink, concerns_us)
        if self._policies is not None:
            found = _heard(self._policies, xfrm.concerns_block_policies) or found
        return found


def _heard(netlink: socket.socket, concerns: Callable[[bytes], bool]) -> bool:
    found = False
    for _ in range(_BURST):
        try:
            datagram = netlink.recv(_DATAGRAM_BYTES)
        except BlockingIOError:
            return found
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            found = True
        else:
            found = found or concerns(datagram)
    return True


def concerns_us(datagram: bytes) -> bool:
    """Is one of the messages more than somebody else's route?"""
    offset = 0
    while offset + _HEADER.size <= len(datagram):
        length, kind, flags, _, _ = _HEADER.unpack_from(datagram, offset)
        if kind not in (_RTM_NEWROUTE, _RTM_DELROUTE) or length < _HEADER.size + _RTMSG_BYTES:
            return True
        if flags & _NLM_F_REPLACE or datagram[offset + _PROTOCOL_AT] == ROUTE_PROTOCOL:
            return True
        offset += length + 3 & ~3
    return False


def _subscribed() -> socket.socket:
    netlink = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
    )
    try:
        netlink.bind((0, 0))
        with contextlib.suppress(PermissionError):
            netlink.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
        for group in _GROUPS:
            netlink.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
    except OSError:
        netlink.close()
        raise
    return netlink
