"""May our routes, rules and addresses have changed since they were last read, or what stands in their way?

A hub has tens of thousands of routes of ours, and routing has no generation to compare, as nftables has; but the kernel
tells of every change. While nothing is told that could concern us, what was read is still true. What could:

| told                                            | ours may have changed | so may what stands in the way  |
|-------------------------------------------------|-----------------------|--------------------------------|
| a route with our protocol number                | yes                   | if of a kind that we never add |
| one put in another's place (nobody tells whose) | yes                   | if it is in our tables         |
| any other route                                 | no                    | if it is in our tables         |
| an address on lo; any that goes                 | yes                   | no                             |
| one elsewhere that comes, or is prolonged       | no                    | no                             |
| an IPsec policy of ours, or the loss of all     | yes                   | no                             |
| a link (its routes go without a word), a rule   | yes                   | yes                            |
| anything that was lost or is not understood     | yes                   | yes                            |

A link's last address takes routes along when it goes, without a word. One that comes takes nothing: an advertising
router prolongs its hosts' addresses every few seconds. Nor do routes of others elsewhere concern us, which a routing
daemon may change all day.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import weakref
from collections.abc import Callable
from typing import NamedTuple

from cpe_agent.edge import routetable, xfrm
from cpe_agent.edge.linkwatch import LOOPBACK_INDEX
from cpe_agent.edge.strangers import TABLES
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
_RTM_NEWADDR, _RTM_DELADDR = 20, 21
_RTM_NEWROUTE, _RTM_DELROUTE = 24, 25
_NLM_F_REPLACE = 0x100
# rtmsg: family, two lengths, TOS, table, protocol, scope, type, flags.
_PROTOCOL_AT, _TYPE_AT = 5, 7
_RTMSG_BYTES = 12
_ADDRESS = struct.Struct("=4xI")  # ifaddrmsg: the interface's index


class News(NamedTuple):
    """What may have changed: what is `ours`, and what `others` have put in our way."""

    ours: bool
    others: bool


class RouteNews:
    """Subscribed from its first use until it is collected. Not for two threads at once."""

    def __init__(self) -> None:
        self._netlink: socket.socket | None = None
        self._policies: socket.socket | None = None

    def heard(self) -> News:
        """Since the last call. Everything, at the first. Raises OSError."""
        if self._netlink is None:
            self._netlink = _subscribed()
            # The socket outlives no owner, and goes without a warning.
            weakref.finalize(self, self._netlink.close)
            self._policies = xfrm.subscribed((xfrm.GROUP_POLICY,))
            if self._policies is not None:
                weakref.finalize(self, self._policies.close)
            return News(True, True)
        news = _heard(self._netlink, told)
        if self._policies is not None:
            news = _together(news, _heard(self._policies, _told_of_policies))
        return news


def _heard(netlink: socket.socket, said: Callable[[bytes], News]) -> News:
    news = News(False, False)
    for _ in range(_BURST):
        try:
            datagram = netlink.recv(_DATAGRAM_BYTES)
        except BlockingIOError:
            return news
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            news = News(True, True)
        else:
            news = _together(news, said(datagram))
    return News(True, True)


def _together(one: News, other: News) -> News:
    return News(one.ours or other.ours, one.others or other.others)


def _told_of_policies(datagram: bytes) -> News:
    return News(xfrm.concerns_block_policies(datagram), False)


def told(datagram: bytes) -> News:
    """What its messages say, together."""
    ours = others = False
    offset = 0
    while offset + _HEADER.size <= len(datagram):
        length, kind, flags, _, _ = _HEADER.unpack_from(datagram, offset)
        message = datagram[offset + _HEADER.size : offset + length]
        if kind in (_RTM_NEWADDR, _RTM_DELADDR):
            ours = ours or kind == _RTM_DELADDR or not _is_elsewhere(message)
        elif kind not in (_RTM_NEWROUTE, _RTM_DELROUTE) or len(message) < _RTMSG_BYTES:
            return News(True, True)
        else:
            replaces, is_ours = bool(flags & _NLM_F_REPLACE), message[_PROTOCOL_AT] == ROUTE_PROTOCOL
            odd = message[_TYPE_AT] not in (routetable.UNICAST, routetable.UNREACHABLE)
            ours = ours or is_ours or replaces
            others = others or ((replaces or odd or not is_ours) and routetable.table_of(message) in TABLES)
        offset += length + 3 & ~3
    return News(ours, others)


def _is_elsewhere(address: bytes) -> bool:
    """Not on lo, where ours are."""
    return len(address) >= _ADDRESS.size and _ADDRESS.unpack_from(address)[0] != LOOPBACK_INDEX


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
