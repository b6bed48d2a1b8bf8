"""Which network does this network.yaml describe?

In: the file's text. Out: a `Network` that holds together, or a `NetworkError` that names the line, the field and the
mend. Ranges of single numbers are left to `document_check.check`, which knows them already; compile.py puts its errors
where the file says them.
"""

from __future__ import annotations

import ipaddress
import urllib.parse
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, cast

from cpe_agent.model import document
from cpe_controller import values
from cpe_controller.fields import Field, Record, read
from cpe_controller.network import Hub, Lan, Network, Site, Subnet, Uplink
from cpe_controller.overlaps import check_overlaps
from cpe_controller.permits import ALL_BRANCHES, ALL_HUBS, permits, services

_SITE = ("uplinks", "lans")
_HUB = ("dials", "drain", "hub_nat", "management")
_TOP = (
    *("controllers", "lifetime_days", "on_expiry", "probe", "policy", "ipsec", "classes", "management"),
    *("rollout", "templates", "branches", "services", "permits"),
)
# What tells two uplinks apart needs no more; and it is never below 0, where some would look for a special meaning.
PRIORITY_MAX = 65_535
# Less than a megabyte is no plan, but one that was written in GB.
MONTHLY_BYTES_LEAST, MONTHLY_BYTES_MOST = 1_000_000, 10**15


def parse(text: str, source: str = "network.yaml") -> Network:
    """`source` is how errors call the file."""
    whole = read(text, source)
    top = whole.record(("network", "overlay", "hubs"), _TOP)
    name = values.named(top["network"], top["network"].text())
    probe = values.probings(top.get("probe"))
    management = values.management(top.get("management"), document.Management())
    templates = top.mapping("templates")
    hubs = _hubs(top["hubs"], templates, probe, management)
    branches = _branches(top, templates, probe, management, {hub.name for hub in hubs})
    overlay = values.machines(top["overlay"])
    check_overlaps(overlay, (*hubs, *branches), source, whole.lines)
    controllers = _controllers(top, overlay, branches)
    uplinks = {text for site in (*hubs, *branches) for uplink in site.uplinks for text in (uplink.name, uplink.kind)}
    classes = values.classes(top.mapping("classes"), uplinks)
    known = services(top.mapping("services"), hubs)
    on_expiry = top.get("on_expiry")
    return Network(
        name=name,
        overlay=overlay,
        controllers=controllers,
        hubs=hubs,
        branches=branches,
        services=tuple(known.values()),
        permits=permits(top.get("permits"), (*hubs, *branches), known, classes),
        classes=classes,
        ipsec=values.ipsec(top.get("ipsec")),
        policy=values.policy(top.get("policy")),
        canaries=_canaries(top.get("rollout"), branches),
        lifetime_days=values.lifetime_days(top.get("lifetime_days")),
        on_expiry=cast(Literal["keep", "block"], on_expiry.choice("keep", "block")) if on_expiry else "keep",
        source=source,
        lines=whole.lines,
    )


def _hubs(
    field: Field, templates: Mapping[str, Field], probe: Mapping[str, document.Probing], management: document.Management
) -> tuple[Hub, ...]:
    found = {name: _filled(hub, templates) for name, hub in field.mapping().items()}
    if not found:
        raise field.error("lists no hub; at least one is needed")
    for name, hub in found.items():
        _site_name(hub, name)
    records = {
        name: hub.record((*_SITE, "endpoints"), ("dials", "drain", "hub_nat", "management"))
        for name, hub in found.items()
    }
    endpoints = {name: _endpoints(record["endpoints"]) for name, record in records.items()}
    _check_endpoints(records, endpoints)
    dials = _dials(records)
    ways = {name: _ways(record, probe) for name, record in records.items()}
    return tuple(
        Hub(
            name=name,
            field=record.whole.path,
            uplinks=ways[name][0],
            lans=ways[name][1],
            management=values.management(record.get("management"), management),
            endpoints=endpoints[name],
            dials=dials[name],
            drain=record.boolean("drain"),
            hub_nat=record.boolean("hub_nat"),
        )
        for name, record in records.items()
    )


def _branches(
    top: Record,
    templates: Mapping[str, Field],
    probe: Mapping[str, document.Probing],
    management: document.Management,
    hubs: set[str],
) -> tuple[Site, ...]:
    branches = []
    for name, field in top.mapping("branches").items():
        _site_name(field, name)
        if name in hubs:
            raise field.error("is the name of a hub too; give one of them another name")
        record = _filled(field, templates).record(_SITE, ("management",))
        own = values.management(record.get("management"), management)
        branches.append(Site(name, record.whole.path, *_ways(record, probe), own))
    return tuple(branches)


def _ways(record: Record, probe: Mapping[str, document.Probing]) -> tuple[tuple[Uplink, ...], tuple[Lan, ...]]:
    """A site's uplinks and LANs."""
    uplinks, lans = _uplinks(record["uplinks"], probe), _lans(record["lans"])
    _check_interfaces(record, uplinks, lans)
    return uplinks, lans


def _canaries(field: Field | None, branches: tuple[Site, ...]) -> tuple[str, ...]:
    """The branches that get a new document before all others."""
    if field is None:
        return ()
    known = [branch.name for branch in branches]
    found = field.record(("canaries",), ())["canaries"].one_or_more()
    for item in found:
        if item.text() not in known:
            raise item.error(f"{item.text()!r} is no branch; use some of {', '.join(known[:12])}")
    return tuple(item.text() for item in found)


def _filled(field: Field, templates: Mapping[str, Field]) -> Field:
    """The site with what its template says of it."""
    named = field.mapping().get("template")
    if named is None:
        return field
    template = templates.get(named.text())
    if template is None:
        known = ", ".join(templates) or "one that is under templates"
        raise named.error(f"{named.text()!r} is no template; use {known}")
    nested = template.mapping().get("template")
    if nested is not None:
        raise nested.error("a template is not made from another; write here what it says")
    return field.without("template").over(template)


def _site_name(field: Field, name: str) -> None:
    for group, means in ((ALL_BRANCHES, "branch"), (ALL_HUBS, "hub")):
        if name == group:
            raise field.error(f"{group!r} means every {means} in permits; give the site another name")
    values.named(field, name)


def _endpoints(field: Field) -> tuple[tuple[str, str], ...]:
    endpoints = []
    for name, endpoint in field.mapping().items():
        values.named(endpoint, name)
        endpoints.append((name, values.public_host(endpoint.record(("address",), ())["address"])))
    if not endpoints:
        raise field.error("lists no endpoint; branches need at least one to dial")
    return tuple(endpoints)


def _check_endpoints(records: Mapping[str, Record], endpoints: Mapping[str, tuple[tuple[str, str], ...]]) -> None:
    taken: dict[str, str] = {}
    for hub, listed in endpoints.items():
        for name, address in listed:
            field = records[hub]["endpoints"].mapping()[name]
            if address in taken:
                raise field.error(f"{address} is the address of {taken[address]} already; every endpoint has its own")
            taken[address] = field.path


def _dials(records: Mapping[str, Record]) -> dict[str, tuple[str, ...]]:
    """Of two hubs one dials: as `dials` says, or else the later in the file dials the earlier."""
    says: dict[str, set[str] | None] = {}
    for name, record in records.items():
        field = record.get("dials")
        says[name] = None if field is None else {item.text() for item in field.one_or_more()}
        for item in [] if field is None else field.one_or_more():
            if item.text() not in records or item.text() == name:
                others = ", ".join(other for other in records if other != name)
                raise item.error(f"{item.text()!r} is no other hub; use {others or 'no name at all'}")
    dials: dict[str, list[str]] = {name: [] for name in records}
    names = list(records)
    for index, later in enumerate(names):
        for earlier in names[:index]:
            up = None if (said := says[later]) is None else earlier in said
            down = None if (said := says[earlier]) is None else later in said
            if up is None:
                up = not down
            elif down is None:
                down = not up
            if up == bool(down):
                problem = "dial each other" if up else "do not dial each other"
                field = records[later]["dials"]
                raise field.error(f"{earlier} and {later} {problem}; exactly one of two hubs lists the other")
            dialler, answerer = (later, earlier) if up else (earlier, later)
            dials[dialler].append(answerer)
    return {name: tuple(listed) for name, listed in dials.items()}


def _uplinks(field: Field, probe: Mapping[str, document.Probing]) -> tuple[Uplink, ...]:
    uplinks = []
    for position, (name, uplink) in enumerate(field.mapping().items(), start=1):
        values.named(uplink, name)
        record = uplink.record(("kind",), ("priority", "interface", "mtu", "monthly_bytes", "budget_day", "probe"))
        kind = cast(Literal["wired", "cellular"], record["kind"].choice("wired", "cellular"))
        uplinks.append(
            Uplink(
                name=name,
                kind=kind,
                priority=values.within_limits(record.get("priority"), position, 0, PRIORITY_MAX),
                interface=_to_the_internet(record.get("interface")),
                mtu=record["mtu"].integer() if "mtu" in record else None,
                monthly_bytes=_monthly_bytes(record.get("monthly_bytes")),
                budget_day=record.integer("budget_day", 1),
                probe=values.probing(record.get("probe"), probe[kind]),
            )
        )
    if not uplinks:
        raise field.error("lists no uplink; a site needs at least one")
    return tuple(uplinks)


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


def _controllers(top: Record, overlay: Subnet, branches: tuple[Site, ...]) -> tuple[str, ...]:
    """Sites reach it by their uplinks: never through a tunnel, so an address of a tunnel's far end is nobody's."""
    inside = [(overlay, "overlay"), *((lan.subnet, f"{b.field}.lans.{lan.name}") for b in branches for lan in b.lans)]
    for field in top.items("controllers"):
        try:
            address = ipaddress.ip_address(urllib.parse.urlsplit(values.url(field)).hostname or "")
        except ValueError:
            continue  # a host name
        for subnet, whose in inside:
            if address.version == subnet.version and address in subnet:
                raise field.error(
                    f"{address} is inside {subnet} of {whose}; write the address that all sites can reach"
                )
    return tuple(values.url(field) for field in top.items("controllers"))


def _lans(field: Field) -> tuple[Lan, ...]:
    lans: list[Lan] = []
    behind: list[tuple[int, Field]] = []
    for name, lan in field.mapping().items():
        values.named(lan, name)
        record = lan.record(("subnet",), ("interface", "via", "check"))
        if "interface" not in record and "via" not in record:
            raise lan.error("has neither interface nor via; say which interface it is on, or which router it is behind")
        subnet = values.machines(record["subnet"])
        via, check = (
            values.address(record[key], subnet.version) if key in record else None for key in ("via", "check")
        )
        if check is not None and ipaddress.ip_address(check) not in subnet:
            raise record["check"].error(f"{check} is not in {subnet}; write a machine of this LAN that always answers")
        if via is not None:
            behind.append((len(lans), record["via"]))
        lans.append(Lan(name, subnet, values.interface(record.get("interface")), via, check))
    direct = [lan for lan in lans if lan.via is None]
    for position, field_of_via in behind:
        lans[position] = _behind(lans[position], field_of_via, direct)
    return tuple(lans)


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
