"""How does the kernel tell of its IPsec policies and SAs, and how is it told to change them?

XFRM over netlink, as structs: pyroute2 does not speak it. Out: our block policies (`BlockPolicy`), known by their
priority; everybody's policies and ESP SAs, as `KernelIpsec`. In: one addition or deletion at a time, each idempotent.
A kernel without XFRM holds none of it. Synchronous: callers bring a worker thread.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterator

from cpe_agent.model.dataplane import BLOCK_PRIORITY, BlockPolicy
from cpe_agent.model.observed import KernelIpsec, KernelPolicy, KernelSa

# RTNLGRP-like numbers of XFRM's multicast groups.
GROUP_SA, GROUP_POLICY = 3, 4
FAMILY = 6  # NETLINK_XFRM

_TIMEOUT_S = 10.0
_DATAGRAM_BYTES = 1 << 17
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1
_HEADER = struct.Struct("=IHHII")
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_CREATE, _EXCL = 0x400, 0x200
_DUMP_INTERRUPTED = 0x10
_NEWSA, _DELSA, _GETSA, _NEWPOLICY, _DELPOLICY, _GETPOLICY = 0x10, 0x11, 0x12, 0x13, 0x14, 0x15
_UPDPOLICY, _FLUSHPOLICY = 0x19, 0x1D
_ATTR_ENCAP, _ATTR_TEMPLATES, _ATTR_POLICY, _ATTR_MARK, _ATTR_SET_MARK = 4, 5, 7, 21, 29
_DIRECTIONS = {0: "in", 1: "out", 2: "fwd"}
_DIRECTION_NUMBERS = {name: number for number, name in _DIRECTIONS.items()}
_BLOCK = 1
# struct xfrm_selector: daddr, saddr, dport, mask, sport, mask, family, prefix lengths (d, s), protocol, ifindex, user
_SELECTOR = struct.Struct("=16s16s2s2s2s2sHBBB3xiI")
_SELECTOR_BYTES, _LIFETIME_BYTES, _POLICY_BYTES, _SA_BYTES = 56, 64 + 32, 168, 224
_PRIORITY_AT = _SELECTOR_BYTES + _LIFETIME_BYTES
_SA_ID = struct.Struct("!16sIB")
_SA_SOURCE_AT, _SA_ADDED_AT, _SA_REQID_AT, _SA_FAMILY_AT = 80, 176, 208, 212
_INFINITE = 0xFFFFFFFFFFFFFFFF
_ENCAPSULATION = struct.Struct("!HH")  # behind the type
# struct xfrm_user_tmpl: id (daddr, spi, proto), family, saddr, reqid, ...
_TEMPLATE = struct.Struct("!16sIB3xH2x16sI")

_NO_XFRM = frozenset({errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.ENOENT})


def block_policies() -> frozenset[BlockPolicy]:
    """Ours. Raises OSError."""
    found = (_block_policy(body) for _, body in _dump(_GETPOLICY, only_ours=True))
    return frozenset(policy for policy in found if policy is not None)


def add_block_policy(policy: BlockPolicy) -> None:
    """One that is there is no error. Raises OSError, also if another program's is in its place."""
    body = _selector(policy) + struct.pack("=4Q4Q", *[_INFINITE] * 4, 0, 0, 0, 0) + bytes(32)
    body += struct.pack("=IIBBBB", BLOCK_PRIORITY, 0, _DIRECTION_NUMBERS[policy.direction], _BLOCK, 0, 0) + bytes(4)
    code = _ask(_NEWPOLICY, _CREATE | _EXCL, body, allowed=frozenset({errno.EEXIST}))
    # The kernel has one policy of each selector, whatever its priority.
    if code == errno.EEXIST and policy not in block_policies():
        raise OSError(errno.EEXIST, "another program has an IPsec policy in this place")


def delete_block_policy(policy: BlockPolicy) -> None:
    """One that is gone is no error. Raises OSError."""
    if policy in block_policies():
        _delete_policy(_selector(policy), policy.direction, b"")


def ipsec() -> KernelIpsec:
    """All SAs of ESP in UDP, and all policies but those of sockets. Raises OSError."""
    sas = (_sa(body) for _, body in _dump(_GETSA))
    policies = (_policy(body) for _, body in _dump(_GETPOLICY))
    return KernelIpsec(
        frozenset(sa for sa in sas if sa is not None), frozenset(policy for policy in policies if policy is not None)
    )


def delete_sa(sa: KernelSa) -> None:
    """One that is gone is no error. Raises OSError."""
    family = socket.AF_INET6 if ":" in sa.destination else socket.AF_INET
    body = struct.pack("!16sI", _address(sa.destination), sa.spi)
    body += struct.pack("=HBx", family, socket.IPPROTO_ESP)
    _ask(_DELSA, 0, body, allowed=frozenset({errno.ESRCH}))


def delete_policy(policy: KernelPolicy) -> None:
    """One that is gone is no error. Raises OSError."""
    mark = struct.pack("=HHII", 12, _ATTR_MARK, policy.mark, policy.mask) if policy.mask else b""
    _delete_policy(policy.selector, policy.direction, mark)


def subscribed(groups: tuple[int, ...]) -> socket.socket | None:
    """A socket that hears what changes, not blocking; None on a kernel without XFRM. Raises OSError."""
    try:
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, FAMILY)
    except OSError as error:
        if error.errno in _NO_XFRM:
            return None
        raise
    try:
        netlink.bind((0, 0))
        for group in groups:
            netlink.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
    except OSError:
        netlink.close()
        raise
    return netlink


def concerns_block_policies(datagram: bytes) -> bool:
    """Is one of the messages about a policy of ours, or about all?"""
    offset = 0
    while offset + _HEADER.size <= len(datagram):
        length, kind, _, _, _ = _HEADER.unpack_from(datagram, offset)
        body = datagram[offset + _HEADER.size : offset + length]
        if kind in (_NEWPOLICY, _UPDPOLICY):
            if _priority(body) == BLOCK_PRIORITY:
                return True
        elif kind == _DELPOLICY:
            # The policy itself is an attribute behind struct xfrm_userpolicy_id.
            gone = _attributes(body[64:]).get(_ATTR_POLICY, b"")
            if len(gone) < _POLICY_BYTES or _priority(gone) == BLOCK_PRIORITY:
                return True
        else:
            return True
        offset += length + 3 & ~3
    return False


def _delete_policy(selector: bytes, direction: str, mark: bytes) -> None:
    body = selector + struct.pack("=IB3x", 0, _DIRECTION_NUMBERS[direction]) + mark
    _ask(_DELPOLICY, 0, body, allowed=frozenset({errno.ENOENT, errno.ESRCH}))


def _selector(policy: BlockPolicy) -> bytes:
    source, to = ipaddress.ip_network(policy.source), ipaddress.ip_network(policy.destination)
    family = socket.AF_INET if to.version == 4 else socket.AF_INET6
    none = bytes(2)
    return _SELECTOR.pack(
        _address(str(to.network_address)), _address(str(source.network_address)), none, none, none, none,
        family, to.prefixlen, source.prefixlen, 0, 0, 0,
    )  # fmt: skip


def _block_policy(body: bytes) -> BlockPolicy | None:
    if _priority(body) != BLOCK_PRIORITY or len(body) < _POLICY_BYTES or body[_PRIORITY_AT + 9] != _BLOCK:
        return None
    direction = _DIRECTIONS.get(body[_PRIORITY_AT + 8])
    destination, source, *_ = _networks(body)
    return BlockPolicy(direction, source, destination) if direction else None


def _policy(body: bytes) -> KernelPolicy | None:
    direction = _DIRECTIONS.get(body[_PRIORITY_AT + 8]) if len(body) >= _POLICY_BYTES else None
    if direction is None:
        return None  # of a socket
    destination, source, protocol, to_port, from_port = _networks(body)
    attributes = _attributes(body[_POLICY_BYTES:])
    mark, mask = struct.unpack("=II", attributes.get(_ATTR_MARK, bytes(8)))
    template = attributes.get(_ATTR_TEMPLATES, b"")
    spi = reqid = 0
    if len(template) >= _TEMPLATE.size:
        _, spi, _, _, _, _ = _TEMPLATE.unpack_from(template)
        (reqid,) = struct.unpack_from("=I", template, 44)
    return KernelPolicy(
        direction, source, destination, protocol, from_port, to_port, _priority(body), reqid, spi, mark, mask,
        body[:_SELECTOR_BYTES],
    )  # fmt: skip


def _sa(body: bytes) -> KernelSa | None:
    if len(body) < _SA_BYTES:
        return None
    destination, spi, protocol = _SA_ID.unpack_from(body, _SELECTOR_BYTES)
    attributes = _attributes(body[_SA_BYTES:])
    encapsulation = attributes.get(_ATTR_ENCAP, b"")
    if protocol != socket.IPPROTO_ESP or len(encapsulation) < 6:
        return None  # also an SPI that is only reserved
    from_port, to_port = _ENCAPSULATION.unpack_from(encapsulation, 2)
    (added,) = struct.unpack_from("=Q", body, _SA_ADDED_AT)
    (reqid,) = struct.unpack_from("=I", body, _SA_REQID_AT)
    (family,) = struct.unpack_from("=H", body, _SA_FAMILY_AT)
    (mark,) = struct.unpack_from("=I", attributes.get(_ATTR_SET_MARK, bytes(4)))
    source, to = _text(family, body[_SA_SOURCE_AT : _SA_SOURCE_AT + 16]), _text(family, destination)
    return KernelSa(source, to, spi, reqid, from_port, to_port, float(added), mark)


def _networks(body: bytes) -> tuple[str, str, int, int, int]:
    """Destination, source, protocol, destination port, source port (0: any)."""
    to, source, to_port, _, from_port, _, family, to_bits, source_bits, protocol, _, _ = _SELECTOR.unpack_from(body)
    ports = (int.from_bytes(port, "big") for port in (to_port, from_port))
    return (f"{_text(family, to)}/{to_bits}", f"{_text(family, source)}/{source_bits}", protocol, *ports)


def _text(family: int, address: bytes) -> str:
    if family == socket.AF_INET6:
        return str(ipaddress.IPv6Address(address))
    return str(ipaddress.IPv4Address(address[:4]))


def _address(text: str) -> bytes:
    return ipaddress.ip_address(text).packed.ljust(16, b"\0")


def _priority(body: bytes) -> int:
    return int(struct.unpack_from("=I", body, _PRIORITY_AT)[0]) if len(body) >= _PRIORITY_AT + 4 else 0


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            break
        found[kind] = data[offset + 4 : offset + length]
        offset += length + 3 & ~3
    return found


def _dump(kind: int, only_ours: bool = False) -> Iterator[tuple[int, bytes]]:
    """(message type, body) of everything the kernel lists; nothing on a kernel without XFRM. What has changed while it
    was listed is listed again."""
    for _ in range(5):
        try:
            with _opened() as netlink:
                netlink.send(_HEADER.pack(_HEADER.size, kind, _REQUEST | _DUMP, 1, 0))
                listed = _listed(netlink, only_ours)
        except OSError as error:
            if error.errno in _NO_XFRM:
                return
            raise
        if listed is not None:
            yield from listed
            return
    raise OSError(errno.EAGAIN, "the kernel's lists change while they are read")


def _listed(netlink: socket.socket, only_ours: bool) -> list[tuple[int, bytes]] | None:
    found: list[tuple[int, bytes]] = []
    whole = True
    while True:
        datagram = netlink.recv(_DATAGRAM_BYTES)
        offset = 0
        while offset + _HEADER.size <= len(datagram):
            length, kind, flags, _, _ = _HEADER.unpack_from(datagram, offset)
            body = datagram[offset + _HEADER.size : offset + length]
            whole = whole and not flags & _DUMP_INTERRUPTED
            if kind == _NLMSG_DONE:
                return found if whole else None
            if kind == _NLMSG_ERROR:
                code = -int(struct.unpack_from("=i", body)[0])
                raise OSError(code, "the kernel does not list its IPsec")
            if not only_ours or _priority(body) == BLOCK_PRIORITY:
                found.append((kind, body))
            offset += length + 3 & ~3


def _ask(kind: int, flags: int, body: bytes, allowed: frozenset[int]) -> int:
    """0, or the one of `allowed` that the kernel says."""
    with _opened() as netlink:
        netlink.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | _ACK | flags, 1, 0) + body)
        answer = netlink.recv(_DATAGRAM_BYTES)
    code = -int(struct.unpack_from("=i", answer, _HEADER.size)[0])
    if code and code not in allowed:
        raise OSError(code, f"{errno.errorcode.get(code, code)} from the kernel's IPsec")
    return code


def _opened() -> socket.socket:
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, FAMILY)
    netlink.settimeout(_TIMEOUT_S)
    netlink.bind((0, 0))
    return netlink
