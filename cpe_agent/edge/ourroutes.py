"""Which addresses, rules and routes of the kernel are ours?

Those with our protocol number, in the canonical form of `model.dataplane`, so that they compare with what is wanted.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cpe_agent.edge import routetable, xfrm
from cpe_agent.edge.linkwatch import LOOPBACK_INDEX
from cpe_agent.edge.rtnetlink import NetlinkError
from cpe_agent.model.dataplane import ROUTE_PROTOCOL, Backend, Route, Routes, Rule

DEVICE = Backend.KERNEL.device
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
# /proc/sys/net shows the network namespace of whoever reads it.
FORWARDING = {4: Path("/proc/sys/net/ipv4/ip_forward"), 6: Path("/proc/sys/net/ipv6/conf/all/forwarding")}
LENIENT = Path("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal")

_IFF_UP = 0x1
_TO_TABLE = 1  # a rule's action: look in a table
_NO_SUCH_FAMILY = frozenset({errno.EAFNOSUPPORT, errno.EOPNOTSUPP})


def read(kernel: Any) -> Routes:
    """All of it. `kernel` is an open pyroute2 IPRoute, here and below. Raises NetlinkError or OSError."""
    names = Names()
    ours = (raw for version in (4, 6) for raw in routetable.dump(version, protocol=ROUTE_PROTOCOL))
    return Routes(
        addresses=frozenset(addresses(kernel)),
        rules=frozenset(rule for version in (4, 6) for rule in rules(kernel, version)),
        routes=frozenset(route for raw in ours for route in routes(raw, names)),
        devices=frozenset({DEVICE} if _is_up_dummy(kernel, DEVICE) else ()),
        forwarding=forwarding(),
        policies=xfrm.block_policies(),
        lenient=lenient(),
    )


def forwarding() -> frozenset[int]:
    """IP versions that this network namespace forwards."""
    return frozenset(version for version in (4, 6) if _forwards(version))


def lenient() -> bool:
    """Does connection tracking take up TCP flows that it has not seen all of? Not where there is none."""
    try:
        return LENIENT.read_text().strip() != "0"
    except FileNotFoundError:
        return False


def addresses(kernel: Any) -> set[str]:
    """Our addresses on lo, as "10.255.0.1/32"."""
    return {
        f"{message.get_attr('IFA_LOCAL') or message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}"
        for message in kernel.get_addr()
        if message["index"] == LOOPBACK_INDEX and message.get_attr("IFA_PROTO") == ROUTE_PROTOCOL
    }


def rules(kernel: Any, version: int) -> Iterator[Rule]:
    """Our rules of one IP version; none if the kernel has no such version."""
    try:
        messages = kernel.get_rules(family=FAMILIES[version])
    except NetlinkError as error:
        if error.code not in _NO_SUCH_FAMILY:
            raise
        return
    for message in messages:
        if message["family"] != FAMILIES[version] or message["action"] != _TO_TABLE:
            continue
        if message.get_attr("FRA_PROTOCOL") != ROUTE_PROTOCOL:
            continue
        source = message.get_attr("FRA_SRC") or ""
        if source and message["src_len"] != (32 if version == 4 else 128):
            source = f"{source}/{message['src_len']}"
        yield Rule(
            version,
            int(message.get_attr("FRA_PRIORITY") or 0),
            int(message.get_attr("FRA_TABLE") or message["table"]),
            str(message.get_attr("FRA_IIFNAME") or ""),
            str(source),
            message.get_attr("FRA_SUPPRESS_PREFIXLEN") == 0,
        )


class Names:
    """Interface names by index, asked of the kernel once each. None if the interface has just gone."""

    def __init__(self) -> None:
        self._known: dict[int, str | None] = {}

    def of(self, index: int) -> str | None:
        if index not in self._known:
            try:
                self._known[index] = socket.if_indextoname(index)
            except OSError:
                self._known[index] = None
        return self._known[index]


def routes(raw: routetable.KernelRoute, names: Names) -> Iterator[Route]:
    """`raw` in the shape of what we ask for; nothing if it has no such shape, one for each hop if it has several."""
    if raw.special:
        return
    if raw.type == routetable.UNREACHABLE:  # v6 says "dev lo" here
        yield Route(raw.table, raw.destination, metric=raw.metric)
    elif raw.type == routetable.UNICAST:
        for hop in raw.hops:
            device = names.of(hop.interface)
            if device is not None:
                yield Route(raw.table, raw.destination, device, hop.gateway, raw.metric, raw.mtu)


def is_dummy(message: Any) -> bool:
    """`message` describes a dummy device."""
    return bool(message.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") == "dummy")


def _is_up_dummy(kernel: Any, name: str) -> bool:
    try:
        (message,) = kernel.link("get", ifname=name)
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise
        return False
    return is_dummy(message) and bool(message["flags"] & _IFF_UP)


def _forwards(version: int) -> bool:
    try:
        return FORWARDING[version].read_text().strip() != "0"
    except FileNotFoundError:
        return False  # a kernel without this version
