"""Which routes does the kernel hold?

In: a family, and what to leave out (the kernel filters by protocol or table). Out: `KernelRoute`s. Written out because
a router may hold many thousands of routes, and is asked for its default routes at every netlink event: 1,000 foreign
routes cost 1 ms here, and 50 ms where each message is decoded in full.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

UNICAST, UNREACHABLE = 1, 7
MAIN_TABLE = 254

# A dump that changed under way is started again; one that never comes to rest is refused.
_ATTEMPTS = 5
# The kernel answers a dump at once; this bounds a thread that nobody can cancel.
_TIMEOUT_S = 5.0
_RECEIVE_BYTES = 1 << 17

_RTM_GETROUTE = 26
_NLM_F_REQUEST_DUMP = 0x1 | 0x300
_NLM_F_DUMP_INTR = 0x10
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_SOL_NETLINK, _NETLINK_GET_STRICT_CHK = 270, 12
_RTM_F_CLONED = 0x200
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_METRICS, _RTA_MULTIPATH = 1, 4, 5, 6, 8, 9
_RTA_TABLE, _RTA_VIA = 15, 18
_RTAX_MTU = 2
# No such table, or a kernel without this family: nothing there.
_NOTHING = frozenset({errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT})

_HEADER = struct.Struct("=IHHII")
_ROUTE = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_NEXTHOP = struct.Struct("=HBBi")


class Hop(NamedTuple):
    """Where a route leads: interface index (0 for none) and gateway ("" for none)."""

    interface: int
    gateway: str


class KernelRoute(NamedTuple):
    """A route as the kernel holds it. `version` is 4 or 6; `special`: it asks for a source prefix or a TOS too.
    `mtu` 0: the device's."""

    version: int
    type: int
    table: int
    protocol: int
    destination: str
    metric: int
    hops: tuple[Hop, ...]
    special: bool
    mtu: int


def dump(version: int, *, protocol: int = 0, table: int = 0, defaults_only: bool = False) -> list[KernelRoute]:
    """Routes of IP `version`, of one protocol or table if these are not 0.

    Raises OSError when the kernel refuses, or changes its routes faster than they can be listed.
    """
    for _ in range(_ATTEMPTS):
        routes, interrupted = _dump_once(version, protocol, table, defaults_only)
        if not interrupted:
            return routes
    raise OSError(errno.EAGAIN, "routes change while they are listed")


def table_of(message: bytes) -> int:
    """Which table a route message (without its netlink header) is about."""
    return _number(_attributes(message, _ROUTE.size).get(_RTA_TABLE)) or message[4]


def _dump_once(version: int, protocol: int, table: int, defaults_only: bool) -> tuple[list[KernelRoute], bool]:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    attributes = _ATTRIBUTE.pack(8, _RTA_TABLE) + struct.pack("=I", table) if table else b""
    body = _ROUTE.pack(family, 0, 0, 0, 0, protocol, 0, 0, 0) + attributes
    request = _HEADER.pack(_HEADER.size + len(body), _RTM_GETROUTE, _NLM_F_REQUEST_DUMP, 1, 0) + body
    routes: list[KernelRoute] = []
    interrupted = False
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as netlink:
        netlink.settimeout(_TIMEOUT_S)
        netlink.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        netlink.send(request)
        while True:
            for kind, flags, message in _messages(netlink.recv(_RECEIVE_BYTES)):
                interrupted = interrupted or bool(flags & _NLM_F_DUMP_INTR)
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    code = -int(struct.unpack_from("=i", message)[0]) if len(message) >= 4 else 0
                    if code and code not in _NOTHING:
                        raise OSError(code, os.strerror(code))
                    return routes, interrupted
                # A kernel without this family answers for all families; one that ignores the filter, for all routes.
                if message[0] != family or (defaults_only and message[1]):
                    continue
                route = _parse(version, message)
                if route is not None and protocol in (0, route.protocol) and table in (0, route.table):
                    routes.append(route)


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, _, _ = _HEADER.unpack_from(data, offset)
        yield kind, flags, data[offset + _HEADER.size : offset + length]
        offset += (max(length, _HEADER.size) + 3) & ~3


def _attributes(data: bytes, offset: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        found[kind] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += (max(length, _ATTRIBUTE.size) + 3) & ~3
    return found


def _parse(version: int, message: bytes) -> KernelRoute | None:
    family, length, source_length, tos, table, protocol, _, kind, flags = _ROUTE.unpack_from(message)
    if flags & _RTM_F_CLONED:
        return None  # the kernel's note about one destination, no route of anybody's
    found = _attributes(message, _ROUTE.size)
    network = found.get(_RTA_DST, bytes(4 if version == 4 else 16))
    if _RTA_MULTIPATH in found:
        hops = tuple(_nexthops(family, found[_RTA_MULTIPATH]))
    else:
        hops = (_hop(family, _number(found.get(_RTA_OIF)), found),)
    return KernelRoute(
        version,
        kind,
        _number(found.get(_RTA_TABLE)) or table,
        protocol,
        f"{socket.inet_ntop(family, network)}/{length}",
        _number(found.get(_RTA_PRIORITY)),
        hops,
        bool(source_length or tos),
        _number(_attributes(found[_RTA_METRICS], 0).get(_RTAX_MTU)) if _RTA_METRICS in found else 0,
    )


def _nexthops(family: int, data: bytes) -> Iterator[Hop]:
    offset = 0
    while offset + _NEXTHOP.size <= len(data):
        length, _, _, index = _NEXTHOP.unpack_from(data, offset)
        yield _hop(family, index, _attributes(data[: offset + length], offset + _NEXTHOP.size))
        offset += (max(length, _NEXTHOP.size) + 3) & ~3


def _hop(family: int, index: int, found: dict[int, bytes]) -> Hop:
    if _RTA_GATEWAY in found:
        return Hop(index, socket.inet_ntop(family, found[_RTA_GATEWAY]))
    if _RTA_VIA in found:  # a gateway of the other family
        via = found[_RTA_VIA]
        return Hop(index, socket.inet_ntop(int(struct.unpack_from("=H", via)[0]), via[2:]))
    return Hop(index, "")


def _number(data: bytes | None) -> int:
    return int(struct.unpack("=I", data)[0]) if data else 0
