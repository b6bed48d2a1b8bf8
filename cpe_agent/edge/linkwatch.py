"""What links does the router have, and when did anything about links or routing change?

Out: `Links`, read afresh each time (4 ms for 10 interfaces), every interface's byte counters, and an iterator that
yields after changes. What exactly changed is not taken from the messages: they may be lost, a new reading is never
wrong. But that a link was lost is told from the message itself: traffic waits for it, and a reading takes long where
there are many routes and little time.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import struct
from collections import defaultdict
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import trio

from cpe_agent.edge import routetable
from cpe_agent.edge.carrier import Carriers
from cpe_agent.model.dataplane import ROUTE_PROTOCOL
from cpe_agent.model.observed import Link, LinkAddress, LinkBytes, LinkCounters, Links
from cpe_agent.ports import EdgeError

# lo is the first interface of every network namespace.
LOOPBACK_INDEX = 1
# Another one after each boot, when all counters have begun anew.
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

# Interface flags (linux/if.h). RUNNING: the kernel's operational state is up or unknown (dormant is neither).
_USABLE = 0x1 | 0x40 | 0x10000  # UP, RUNNING, LOWER_UP
_DADFAILED, _DEPRECATED, _TENTATIVE, _TEMPORARY = 0x08, 0x20, 0x40, 0x01
_SCOPE_GLOBAL = 0

_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1
# RTNLGRP_*: links; v4 addresses, routes, rules; v6 addresses, routes, rules; v4 and v6 settings (forwarding).
_GROUPS = (1, 5, 7, 8, 9, 11, 19, 24, 25)
# A routing daemon may change thousands of routes at once; past this the kernel says ENOBUFS, and we read all the same.
_RECEIVE_BUFFER_BYTES = 1 << 20
_DATAGRAM_BYTES = 1 << 17
_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_IFLA_IFNAME = 3
_HEADER = struct.Struct("=IH10x")  # nlmsghdr: length, type
_LINK = struct.Struct("=B7xI4x")  # ifinfomsg: family, flags
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_ATTRIBUTES_AT = _HEADER.size + _LINK.size
# How long a carrier may be gone before it is noticed when the kernel does not tell. Traffic is to be elsewhere after
# 100 ms, of which the move itself takes some 20. Twenty looks a second cost half a percent of a processor.
LOOK_S = 0.05
# One yield stands for at most this many messages, so that a flood cannot hold the event loop.
_BURST = 1000


def read_links(kernel: Any) -> Links:
    """Every interface by name. `kernel` is an open pyroute2 IPRoute. Raises NetlinkError or OSError."""
    addresses = _addresses(kernel)
    gateways = _gateways()
    by_name: dict[str, Link] = {}
    for message in kernel.get_links():
        name, index = str(message.get_attr("IFLA_IFNAME")), int(message["index"])
        up = message["flags"] & _USABLE == _USABLE
        by_name[name] = Link(name, up, tuple(addresses[index]), tuple(gateways[index]))
    return Links(by_name)


def read_counters(kernel: Any) -> LinkCounters:
    """Every interface's byte counters by name. Raises NetlinkError or OSError."""
    boot = _BOOT_ID.read_text().strip()
    by_name: dict[str, LinkBytes] = {}
    for message in kernel.get_links():
        counted = message.get_attr("IFLA_STATS64")
        if counted is not None:
            name = str(message.get_attr("IFLA_IFNAME"))
            by_name[name] = LinkBytes(int(message["index"]), int(counted["rx_bytes"]), int(counted["tx_bytes"]))
    return LinkCounters(boot, by_name)


async def changes() -> AsyncGenerator[frozenset[str], None]:
    """Yields once as soon as it has subscribed, then after each burst of changes, for ever: the interfaces that were
    last told, or seen, to have no carrier, or to be gone.

    Whoever reads after each yield misses nothing: what changes during the reading yields again.
    """
    try:
        netlink = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
    except OSError as error:
        raise EdgeError("netlink", "watch", str(error.strerror)) from error
    with netlink:
        try:
            _subscribe(netlink)
        except OSError as error:
            raise EdgeError("netlink", "watch", str(error.strerror)) from error
        carriers = Carriers()
        with contextlib.closing(carriers):
            carriers.note()
            yield frozenset()
            while True:
                with trio.move_on_after(LOOK_S) as nap:
                    await trio.lowlevel.wait_readable(netlink)
                lost = carriers.lost()
                if not nap.cancelled_caught:
                    lost |= _drain(netlink)
                    carriers.note()
                elif not lost:
                    continue
                yield lost


def lost_links(datagram: bytes) -> dict[str, bool]:
    """Interface -> whether it is lost, of those that these messages are about. What is not understood is left out."""
    told: dict[str, bool] = {}
    offset = 0
    while offset + _HEADER.size <= len(datagram):
        length, kind = _HEADER.unpack_from(datagram, offset)
        message = datagram[offset : offset + length]
        if kind in (_RTM_NEWLINK, _RTM_DELLINK) and len(message) >= _ATTRIBUTES_AT:
            family, flags = _LINK.unpack_from(message, _HEADER.size)
            name = _interface(message)
            # Bridges tell of their ports under another family: a port that leaves one is not gone.
            if name is not None and family == socket.AF_UNSPEC:
                told[name] = kind == _RTM_DELLINK or flags & _USABLE != _USABLE
        offset += max(_HEADER.size, length + 3 & ~3)
    return told


def _subscribe(netlink: socket.socket) -> None:
    netlink.bind((0, 0))
    # SO_RCVBUFFORCE (33) needs privilege; without it the buffer is the system's default, and ENOBUFS comes sooner.
    with contextlib.suppress(PermissionError):
        netlink.setsockopt(socket.SOL_SOCKET, 33, _RECEIVE_BUFFER_BYTES)
    for group in _GROUPS:
        netlink.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)


def _drain(netlink: socket.socket) -> frozenset[str]:
    told: dict[str, bool] = {}
    for _ in range(_BURST):
        try:
            told |= lost_links(netlink.recv(_DATAGRAM_BYTES))
        except BlockingIOError:
            break
        except OSError as error:
            # ENOBUFS: messages were lost, which is a change like any other.
            if error.errno != errno.ENOBUFS:
                raise EdgeError("netlink", "watch", str(error.strerror)) from error
    return frozenset(name for name, lost in told.items() if lost)


def _interface(message: bytes) -> str | None:
    offset = _ATTRIBUTES_AT
    while offset + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, offset)
        if kind == _IFLA_IFNAME:
            return message[offset + _ATTRIBUTE.size : offset + length].rstrip(b"\0").decode(errors="replace")
        offset += max(_ATTRIBUTE.size, length + 3 & ~3)
    return None


def _addresses(kernel: Any) -> defaultdict[int, list[LinkAddress]]:
    """Addresses that a path may be pinned to, by interface: v4 before v6, lasting before temporary."""
    found: list[tuple[int, bool, int, LinkAddress]] = []
    for message in kernel.get_addr():
        flags = message.get_attr("IFA_FLAGS") or message["flags"]
        index, version = int(message["index"]), 4 if message["family"] == socket.AF_INET else 6
        if index == LOOPBACK_INDEX and message.get_attr("IFA_PROTO") == ROUTE_PROTOCOL:
            continue
        if message["scope"] != _SCOPE_GLOBAL or flags & (_DADFAILED | _DEPRECATED | _TENTATIVE):
            continue
        # On a point-to-point link IFA_ADDRESS is the peer's.
        text = str(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"))
        # DHCP clients give 169.254.0.0/16 a global scope when no server answers.
        if ipaddress.ip_address(text).is_link_local:
            continue
        temporary = version == 6 and bool(flags & _TEMPORARY)
        found.append((version, temporary, index, LinkAddress(text, int(message["prefixlen"]))))
    addresses: defaultdict[int, list[LinkAddress]] = defaultdict(list)
    for _, _, index, address in sorted(found, key=lambda entry: entry[:2]):
        addresses[index].append(address)
    return addresses


def _gateways() -> defaultdict[int, list[str]]:
    """Gateways of the main table's default routes by interface, best metric first. Never ours."""
    found: list[tuple[int, int, routetable.Hop]] = []
    for version in (4, 6):
        for route in routetable.dump(version, table=routetable.MAIN_TABLE, defaults_only=True):
            if route.type == routetable.UNICAST and route.protocol != ROUTE_PROTOCOL and not route.special:
                found += [(route.metric, version, hop) for hop in route.hops]
    gateways: defaultdict[int, list[str]] = defaultdict(list)
    for _, _, hop in sorted(found, key=lambda entry: entry[:2]):
        if hop.gateway not in gateways[hop.interface]:
            gateways[hop.interface].append(hop.gateway)
    return gateways
