"""Which uplinks and LANs has a site?

In: a site's record, with what its template says. Out: its `Uplink`s and `Lan`s; what is wrong with them is noted, so
that each is told of. That LANs of several sites do not overlap is for overlaps.py.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, cast

from cpe_agent.model import document
from cpe_controller import values
from cpe_controller.fields import Field, Mistakes, Record
from cpe_controller.network import Lan, Uplink

# What tells two uplinks apart needs no more; and it is never below 0, where some would look for a special meaning.
PRIORITY_MAX = 65_535
# Less than a megabyte is no plan, but one that was written in GB.
MONTHLY_BYTES_LEAST, MONTHLY_BYTES_MOST = 1_000_000, 10**15


def ways(
    record: Record, probe: Mapping[str, document.Probing], mistakes: Mistakes
) -> tuple[tuple[Uplink, ...], tuple[Lan, ...]]:
    """A site's uplinks and LANs."""
    uplinks = mistakes.of((), _uplinks, record["uplinks"], probe, mistakes)
    lans = mistakes.of((), _lans, record["lans"], mistakes)
    mistakes.of(None, _check_interfaces, record, uplinks, lans)
    return uplinks, lans


def _uplinks(field: Field, probe: Mapping[str, document.Probing], mistakes: Mistakes) -> tuple[Uplink, ...]:
    written = field.mapping()
    if not written:
        raise field.error("lists no uplink; a site needs at least one")
    read = [
        mistakes.of(None, _uplink, name, uplink, position, probe)
        for position, (name, uplink) in enumerate(written.items(), start=1)
    ]
    return tuple(uplink for uplink in read if uplink is not None)


def _uplink(name: str, field: Field, position: int, probe: Mapping[str, document.Probing]) -> Uplink:
    values.named(field, name)
    record = field.record(("kind",), ("priority", "interface", "mtu", "monthly_bytes", "budget_day", "probe"))
    kind = cast(Literal["wired", "cellular"], record["kind"].choice("wired", "cellular"))
    return Uplink(
        name=name,
        kind=kind,
        priority=values.within_limits(record.get("priority"), position, 0, PRIORITY_MAX),
        interface=_to_the_internet(record.get("interface")),
        mtu=record["mtu"].integer() if "mtu" in record else None,
        monthly_bytes=_monthly_bytes(record.get("monthly_bytes")),
        budget_day=record.integer("budget_day", 1),
        probe=values.probing(record.get("probe"), probe[kind]),
    )


def _to_the_internet(field: Field | None) -> str | None:
    name = values.interface(field)
    if field is not None and name == "lo":
        raise field.error("lo leads nowhere; name the interface that leads to the internet")
    return name


def _monthly_bytes(field: Field | None) -> int | None:
    if field is None:
        return None
    return values.within_limits(field, 0, MONTHLY_BYTES_LEAST, MONTHLY_BYTES_MOST)


def _check_interfaces(record: Record, uplinks: tuple[Uplink, ...], lans: tuple[Lan, ...]) -> None:
    """What comes in by an uplink is the internet, and by a LAN it is not: one interface cannot be both."""
    taken = {uplink.interface or uplink.name: uplink.name for uplink in uplinks}
    for lan in lans:
        if lan.interface in taken:
            field = record["lans"].mapping()[lan.name]
            written = field.mapping().get("interface", field)
            raise written.error(
                f"{lan.interface} is uplink {taken[lan.interface]}'s; a LAN has an interface of its own"
            )


def _lans(field: Field, mistakes: Mistakes) -> tuple[Lan, ...]:
    written = field.mapping()
    read = [(mistakes.of(None, _lan, name, lan), lan) for name, lan in written.items()]
    found = [(lan, place) for lan, place in read if lan is not None]
    if len(found) < len(written):
        return tuple(lan for lan, _ in found)  # what is behind one that cannot be read is behind nothing
    direct = [lan for lan, _ in found if lan.via is None]
    return tuple(
        lan if lan.via is None else mistakes.of(lan, _behind, lan, place.mapping()["via"], direct)
        for lan, place in found
    )


def _lan(name: str, field: Field) -> Lan:
    values.named(field, name)
    record = field.record(("subnet",), ("interface", "via", "check"))
    if "interface" not in record and "via" not in record:
        raise field.error("has neither interface nor via; say which interface it is on, or which router it is behind")
    subnet = values.machines(record["subnet"])
    via, check = (values.address(record[key], subnet.version) if key in record else None for key in ("via", "check"))
    if check is not None and ipaddress.ip_address(check) not in subnet:
        raise record["check"].error(f"{check} is not in {subnet}; write a machine of this LAN that always answers")
    return Lan(name, subnet, values.interface(record.get("interface")), via, check)


def _behind(lan: Lan, via: Field, direct: list[Lan]) -> Lan:
    """The LAN with the interface on which its router is: that of the LAN which has the router's address."""
    address = ipaddress.ip_address(via.text())
    if address.is_link_local:
        if lan.interface is None:
            raise via.error(f"{address} is on every interface; write which is meant, as interface: lan0")
        return lan
    there = next((other for other in direct if address in other.subnet), None)
    if there is None:
        raise via.error(f"{address} is in no LAN that this site is on; add the LAN that the router is in")
    if lan.interface not in (None, there.interface):
        raise via.error(f"{address} is in LAN {there.name}, on {there.interface}; leave interface out")
    return replace(lan, interface=there.interface)
