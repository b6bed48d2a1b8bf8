"""Has anything happened in nftables, and to our table?

Two sources, both netlink: a subscription, which wakes whoever waits, and the generation, a number that the kernel
raises with every transaction of anybody's. While it stays, what was read is still true. Nothing here is read by
libnftables: it has no way to ask either.
"""

from __future__ import annotations

import errno
import socket
import struct
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from cpe_agent.model.dataplane import TABLE
from cpe_agent.ports import EdgeError

TARGET = "nftables"

_NETLINK_NETFILTER = 12
_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_NFNLGRP_NFTABLES = 7
_SO_RCVBUFFORCE = 33
# Holds what the kernel tells about a new table of some 10,000 elements; anything longer arrives as ENOBUFS.
_RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024
_DATAGRAM_BYTES = 256 * 1024
# Read in one go at most: somebody who never stops changing things must not keep our event loop.
_BURST_DATAGRAMS = 1000

_NLMSG_HEADER = struct.Struct("=IHHII")
_NFGENMSG_BYTES = 4
_ATTRIBUTE = struct.Struct("=HH")
_NFNL_SUBSYS_NFTABLES = 10
_NFT_MSG_NEWGEN = 15
# NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE and so on: all of them are attribute 1.
_NFTA_TABLE = 1
_NFT_MSG_GETGEN = 16
# NFTA_GEN_ID, a big-endian number.
_NFTA_GEN_ID = 1
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
_ASKED = _NLMSG_HEADER.pack(
    _NLMSG_HEADER.size + _NFGENMSG_BYTES, _NFNL_SUBSYS_NFTABLES << 8 | _NFT_MSG_GETGEN, _NLM_F_REQUEST, 1, 0
) + bytes(_NFGENMSG_BYTES)
# The kernel answers at once; this bounds a thread that nobody can cancel.
_ANSWER_TIMEOUT_S = 5.0


class Generation:
    """Asks for the generation. Not for two threads at once.

    Its socket is kept until it is collected: while nftables still frees what was deleted, the kernel lets nobody close
    one, and that takes 5 to 20 ms.
    """

    def __init__(self) -> None:
        self._asking: socket.socket | None = None

    def now(self) -> int:
        """The number of the last transaction, whosever it was and whichever table it changed. Raises `EdgeError`."""
        try:
            if self._asking is None:
                self._asking = _asking()
                weakref.finalize(self, self._asking.close)
            self._asking.send(_ASKED)
            answer = self._asking.recv(_DATAGRAM_BYTES)
        except OSError as error:
            if self._asking is not None:
                # A late answer would be taken for the next one.
                self._asking.close()
                self._asking = None
            raise EdgeError(TARGET, "ask for the generation", str(error)) from error
        length, kind, *_ = _NLMSG_HEADER.unpack_from(answer)
        found = _attribute(answer[_NLMSG_HEADER.size + _NFGENMSG_BYTES : length], _NFTA_GEN_ID)
        if kind == _NLMSG_ERROR or found is None:
            raise EdgeError(TARGET, "ask for the generation", "the kernel gives none")
        return int.from_bytes(found, "big")


def _asking() -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    opened.settimeout(_ANSWER_TIMEOUT_S)
    return opened


@contextmanager
def subscription() -> Iterator[socket.socket]:
    try:
        news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    except OSError as error:
        raise EdgeError(TARGET, "watch", str(error)) from error
    with news:
        news.setblocking(False)
        try:
            news.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
        except PermissionError:
            # Outside the initial user namespace. A smaller buffer says "everything may have changed" more often.
            news.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        try:
            news.bind((0, 0))
            news.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
        except OSError as error:
            raise EdgeError(TARGET, "watch", str(error)) from error
        yield news


def concerns_us(news: socket.socket) -> bool:
    """Take what has been told so far; was any of it about our table?"""
    ours = False
    for _ in range(_BURST_DATAGRAMS):
        try:
            datagram = news.recv(_DATAGRAM_BYTES)
        except BlockingIOError:
            break
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise EdgeError(TARGET, "watch", str(error)) from error
            ours = True  # something was lost, perhaps ours
        else:
            ours = ours or names_our_table(datagram)
    return ours


def names_our_table(datagram: bytes) -> bool:
    """Is one of the messages about our table, or not understood?"""
    offset = 0
    while offset + _NLMSG_HEADER.size <= len(datagram):
        length, kind, _, _, _ = _NLMSG_HEADER.unpack_from(datagram, offset)
        if length < _NLMSG_HEADER.size:
            return True
        # A new generation ends every transaction, whosever it was.
        if kind != _NFNL_SUBSYS_NFTABLES << 8 | _NFT_MSG_NEWGEN:
            body = datagram[offset + _NLMSG_HEADER.size + _NFGENMSG_BYTES : offset + length]
            if _table_name(body) in (TABLE, None):
                return True
        offset += length + 3 & ~3
    return False


def _table_name(attributes: bytes) -> str | None:
    found = _attribute(attributes, _NFTA_TABLE)
    return None if found is None else found.rstrip(b"\0").decode(errors="replace")


def _attribute(attributes: bytes, wanted: int) -> bytes | None:
    offset = 0
    while offset + _ATTRIBUTE.size <= len(attributes):
        length, kind = _ATTRIBUTE.unpack_from(attributes, offset)
        if length < _ATTRIBUTE.size:
            return None
        if kind == wanted:
            return attributes[offset + _ATTRIBUTE.size : offset + length]
        offset += length + 3 & ~3
    return None
