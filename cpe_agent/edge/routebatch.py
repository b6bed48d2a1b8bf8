"""How are thousands of routes given to the kernel at once?

In: routes to add. Out: those that the kernel did not take as they are, for somebody to look at one by one. The messages
are written out and sent by the hundred: a hub of 2,000 branches has 16,000 routes, which take 0.5 ms each where every
message is encoded, sent and answered by itself, and then are most of what its first start takes.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence

from cpe_agent.edge import routetable
from cpe_agent.model.dataplane import ROUTE_PROTOCOL, Route

TOGETHER = 200

_RTM_NEWROUTE = 24
# Request; of the last also an answer if it was taken. Refusals are answered anyway.
_NLM_F_ADD, _NLM_F_ACK = 0x1 | 0x200 | 0x400, 0x4
_NLMSG_ERROR = 2
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_METRICS, _RTA_TABLE = 1, 4, 5, 6, 8, 15
_RTAX_MTU = 2
_SOL_NETLINK, _NETLINK_CAP_ACK = 270, 10
_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER_BYTES = 1 << 20
_RECEIVE_BYTES = 1 << 17
# The kernel answers at once; this bounds a thread that nobody can cancel.
_TIMEOUT_S = 5.0

_HEADER = struct.Struct("=IHHII")
_ROUTE = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE = struct.Struct("=HH")


def add(routes: Sequence[Route]) -> list[Route]:
    """Add at most `TOGETHER` routes, in order; returns those that were refused, for whatever reason. Raises OSError."""
    indexes: dict[str, int] = {}
    sendable = [route for route in routes if not route.device or _index(route.device, indexes)]
    refused = [route for route in routes if route.device and not indexes[route.device]]
    if not sendable:
        return refused
    messages = [_message(number, route, indexes) for number, route in enumerate(sendable, 1)]
    messages[-1] = _message(len(sendable), sendable[-1], indexes, _NLM_F_ACK)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(_TIMEOUT_S)
        netlink.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        try:
            netlink.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
        except PermissionError:
            netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        netlink.send(b"".join(messages))
        answered = 0
        while answered != len(sendable):
            for answered, code in _answers(netlink.recv(_RECEIVE_BYTES)):
                if code:
                    refused.append(sendable[answered - 1])
    return refused


def _answers(data: bytes) -> Iterator[tuple[int, int]]:
    """(which message, error code or 0)."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, number, _ = _HEADER.unpack_from(data, offset)
        if kind == _NLMSG_ERROR:
            yield number, -struct.unpack_from("=i", data, offset + _HEADER.size)[0]
        offset += (max(length, _HEADER.size) + 3) & ~3


def _index(device: str, indexes: dict[str, int]) -> int:
    """0: there is no such device."""
    if device not in indexes:
        try:
            indexes[device] = socket.if_nametoindex(device)
        except OSError:
            indexes[device] = 0
    return indexes[device]


def _message(number: int, route: Route, indexes: dict[str, int], flags: int = 0) -> bytes:
    address, _, length = route.destination.partition("/")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # Other routes' gateways may only be looked up among routes of link scope (v6 has no scopes).
    near = family == socket.AF_INET and route.device and not route.gateway
    scope = _SCOPE_LINK if near else _SCOPE_UNIVERSE
    kind = routetable.UNICAST if route.device else routetable.UNREACHABLE
    body = _ROUTE.pack(family, int(length), 0, 0, 0, ROUTE_PROTOCOL, scope, kind, 0)
    body += _attribute(_RTA_DST, socket.inet_pton(family, address))
    body += _attribute(_RTA_TABLE, struct.pack("=I", route.table))
    body += _attribute(_RTA_PRIORITY, struct.pack("=I", route.metric))
    if route.device:
        body += _attribute(_RTA_OIF, struct.pack("=I", indexes[route.device]))
    if route.gateway:
        body += _attribute(_RTA_GATEWAY, socket.inet_pton(family, route.gateway))
    if route.mtu:
        body += _attribute(_RTA_METRICS, _attribute(_RTAX_MTU, struct.pack("=I", route.mtu)))
    return _HEADER.pack(_HEADER.size + len(body), _RTM_NEWROUTE, _NLM_F_ADD | flags, number, 0) + body


def _attribute(kind: int, data: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(data), kind) + data + bytes(-len(data) % 4)
