"""What do others hold in the kernel where it could undo our routing?

Out: in words, what is not ours (or has a shape that we never give it) and stands in one of our tables, and rules that
are looked at before ours. None of it is ever touched, since it is somebody's; but whoever asks whether the router does
what its document says must be told.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from cpe_agent.edge import ourroutes, routetable
from cpe_agent.model.dataplane import (
    INBOUND,
    INBOUND_SHUT,
    OVERLAY,
    OVERLAY_SHUT,
    OWN,
    PRIORITY_UPLINK_FROM,
    ROUTE_PROTOCOL,
    UPLINK_TABLES,
)

# No router has more uplinks.
_UPLINKS_MAX = 32
_SHARED = (OVERLAY, OVERLAY_SHUT, INBOUND, INBOUND_SHUT, OWN)
TABLES = (*_SHARED, *range(UPLINK_TABLES, UPLINK_TABLES + _UPLINKS_MAX))
_LOCAL_TABLE = 255
_TO_TABLE = 1
# None, or of default routes, which is compared with what is wanted.
_SUPPRESSIONS = (0, 0xFFFFFFFF)
# What a rule of ours says. Anything else that one says makes it match less, or more, than it seems to.
_SAID = frozenset(
    {"FRA_PRIORITY", "FRA_TABLE", "FRA_IIFNAME", "FRA_SRC", "FRA_PROTOCOL", "FRA_SUPPRESS_PREFIXLEN", "FRA_UNSPEC"}
)
_INVERTED = 0x2


def read(kernel: Any) -> tuple[str, ...]:
    """Each in words, sorted. `kernel` is an open pyroute2 IPRoute. Raises NetlinkError or OSError."""
    return tuple(sorted({what for version in (4, 6) for what in (*_routes(version), *_rules(kernel, version))}))


def _routes(version: int) -> Iterator[str]:
    for table in TABLES:
        for raw in routetable.dump(version, table=table):
            ours = raw.protocol == ROUTE_PROTOCOL
            if ours and raw.type in (routetable.UNICAST, routetable.UNREACHABLE) and not raw.special:
                continue
            why = "is not of a kind that the agent makes" if ours else f"is somebody else's (protocol {raw.protocol})"
            yield f"route {raw.destination} table {raw.table} metric {raw.metric} {why}"


def _rules(kernel: Any, version: int) -> Iterator[str]:
    try:
        messages = kernel.get_rules(family=ourroutes.FAMILIES[version])
    except NetlinkError:
        return  # a kernel without this version; another refusal has been told by who reads our own rules
    for message in messages:
        if message["family"] != ourroutes.FAMILIES[version]:
            continue
        priority = int(message.get_attr("FRA_PRIORITY") or 0)
        table = int(message.get_attr("FRA_TABLE") or message["table"])
        words = f"v{version} rule {priority} table {table}"
        if message.get_attr("FRA_PROTOCOL") == ROUTE_PROTOCOL:
            if more := _unlike_ours(message):
                yield f"{words} says more than the agent's do ({', '.join(more)})"
        elif priority <= PRIORITY_UPLINK_FROM and table != _LOCAL_TABLE:
            yield f"{words} is somebody else's and comes before ours"


def _unlike_ours(message: Any) -> list[str]:
    said = dict(message["attrs"])
    more = sorted(name.removeprefix("FRA_").lower() for name in set(said) - _SAID)
    if said.get("FRA_SUPPRESS_PREFIXLEN", 0) not in _SUPPRESSIONS:
        more.append("suppress_prefixlen")
    if message["flags"] & _INVERTED:
        more.append("not")
    if message["action"] != _TO_TABLE:
        more.append("action")
    if message["tos"]:
        more.append("tos")
    return more
