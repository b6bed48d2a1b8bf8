"""Which network does this network.yaml describe?

In: the file's text. Out: a `Network` that holds together, or a `NetworkError` that names the line, the field and the
mend. Ranges of single numbers are left to `document.check`, which knows them already; compile.py puts its errors where
the file says them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

from cpe_agent.model import document
from cpe_controller import values
from cpe_controller.fields import Field, Record, read
from cpe_controller.network import Hub, Lan, Network, Permit, Service, Site, Uplink
from cpe_controller.overlaps import check_overlaps

# In `permits`: every branch, also those that are added later. No site may have this name.
ALL_BRANCHES = "branches"

_SITE = ("uplinks", "lans")
_TOP = (
    *("controllers", "lifetime_days", "on_expiry", "probe", "policy", "ipsec", "classes", "management"),
    *("branches", "services", "permits"),
)


def parse(text: str, source: str = "network.yaml") -> Network:
    """`source` is how errors call the file."""
    whole = read(text, source)
    top = whole.record(("network", "overlay", "hubs"), _TOP)
    name = values.named(top["network"], top["network"].text())
    probe = values.probing(top.get("probe"), document.Probing())
    hubs = _hubs(top["hubs"], probe)
    branches = _branches(top, probe, {hub.name for hub in hubs})
    overlay = values.subnet(top["overlay"])
    check_overlaps(overlay, (*hubs, *branches), source, whole.lines)
    classes = values.classes(top.mapping("classes"))
    services = _services(top, hubs)
    on_expiry = top.get("on_expiry")
    return Network(
        name=name,
        overlay=overlay,
        controllers=tuple(values.url(field) for field in top.items("controllers")),
        hubs=hubs,
        branches=branches,
        services=tuple(services.values()),
        permits=_permits(top, services, {branch.name for branch in branches}, classes),
        classes=classes,
        ipsec=values.ipsec(top.get("ipsec")),
        policy=values.policy(top.get("policy")),
        management=values.management(top.get("management")),
        lifetime_days=values.lifetime_days(top.get("lifetime_days")),
        on_expiry=cast(Literal["keep", "block"], on_expiry.choice("keep", "block")) if on_expiry else "keep",
        source=source,
        lines=whole.lines,
    )


def _hubs(field: Field, probe: document.Probing) -> tuple[Hub, ...]:
    found = field.mapping()
    if not found:
        raise field.error("lists no hub; at least one is needed")
    for name, hub in found.items():
        _site_name(hub, name)
    records = {name: hub.record((*_SITE, "endpoints"), ("dials", "hub_nat")) for name, hub in found.items()}
    endpoints = {name: _endpoints(record["endpoints"]) for name, record in records.items()}
    _check_endpoints(records, endpoints)
    dials = _dials(records)
    return tuple(
        Hub(
            name=name,
            field=record.whole.path,
            uplinks=_uplinks(record["uplinks"], probe),
            lans=_lans(record["lans"]),
            endpoints=endpoints[name],
            dials=dials[name],
            hub_nat=record.boolean("hub_nat"),
        )
        for name, record in records.items()
    )


def _branches(top: Record, probe: document.Probing, hubs: set[str]) -> tuple[Site, ...]:
    branches = []
    for name, field in top.mapping("branches").items():
        _site_name(field, name)
        if name in hubs:
            raise field.error("is the name of a hub too; give one of them another name")
        record = field.record(_SITE, ())
        branches.append(Site(name, field.path, _uplinks(record["uplinks"], probe), _lans(record["lans"])))
    return tuple(branches)


def _site_name(field: Field, name: str) -> None:
    if name == ALL_BRANCHES:
        raise field.error(f"{ALL_BRANCHES!r} means every branch in permits; give the site another name")
    values.named(field, name)


def _endpoints(field: Field) -> tuple[tuple[str, str], ...]:
    endpoints = []
    for name, endpoint in field.mapping().items():
        values.named(endpoint, name)
        address = endpoint.record(("address",), ())["address"]
        text = address.text()
        if any(c.isspace() or c in ",%#/" for c in text):
            raise address.error(f"{text!r} is no address or host name; write one, as in 203.0.113.10")
        endpoints.append((name, text))
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


def _uplinks(field: Field, probe: document.Probing) -> tuple[Uplink, ...]:
    uplinks = []
    for position, (name, uplink) in enumerate(field.mapping().items(), start=1):
        values.named(uplink, name)
        record = uplink.record(("kind",), ("priority", "interface", "mtu", "monthly_bytes", "budget_day", "probe"))
        uplinks.append(
            Uplink(
                name=name,
                kind=cast(Literal["wired", "cellular"], record["kind"].choice("wired", "cellular")),
                priority=record.integer("priority", position),
                interface=record.text("interface"),
                mtu=record["mtu"].integer() if "mtu" in record else None,
                monthly_bytes=record["monthly_bytes"].integer() if "monthly_bytes" in record else None,
                budget_day=record.integer("budget_day", 1),
                probe=values.probing(record.get("probe"), probe),
            )
        )
    if not uplinks:
        raise field.error("lists no uplink; a site needs at least one")
    return tuple(uplinks)


def _lans(field: Field) -> tuple[Lan, ...]:
    lans = []
    for name, lan in field.mapping().items():
        values.named(lan, name)
        record = lan.record(("subnet",), ("interface", "via", "check"))
        if "interface" not in record and "via" not in record:
            raise lan.error("has neither interface nor via; say which interface it is on, or which router it is behind")
        subnet = values.subnet(record["subnet"])
        for key in ("via", "check"):
            if key in record:
                values.address(record[key], subnet.version)
        lans.append(Lan(name, subnet, record.text("interface"), record.text("via"), record.text("check")))
    return tuple(lans)


def _services(top: Record, hubs: tuple[Hub, ...]) -> dict[str, Service]:
    services: dict[str, Service] = {}
    for name, field in top.mapping("services").items():
        values.named(field, name)
        record = field.record(("subnet",), ("at", "protocol", "ports"))
        subnet = values.subnet(record["subnet"])
        serving = [hub.name for hub in hubs if any(values.within(subnet, lan.subnet) for lan in hub.lans)]
        if not serving:
            raise record["subnet"].error(f"{subnet} is in no LAN of a hub; add it to the hub that serves it")
        at: list[str] = []
        for item in record.items("at"):
            hub = item.text()
            if hub not in serving:
                raise item.error(f"{hub!r} has no LAN with {subnet}; use {', '.join(serving)}")
            if hub in at:
                raise item.error(f"{hub!r} is listed twice; keep one")
            at.append(hub)
        if "at" in record and not at:
            raise record["at"].error(f"lists no hub; use {', '.join(serving)}")
        service = Service(name, subnet, tuple(at or serving), *_protocol(record, None, ()))
        for other in services.values():
            # A packet to the subnet must have one list of hubs, or two bundles would claim it.
            if values.overlap(other.subnet, subnet) and other.at != service.at:
                raise field.error(
                    f"{subnet} overlaps {other.subnet} of services.{other.name}, which is at {', '.join(other.at)}; "
                    f"let both be at the same hubs in the same order"
                )
        services[name] = service
    return services


def _permits(
    top: Record, services: Mapping[str, Service], branches: set[str], classes: Mapping[str, document.Class]
) -> tuple[Permit, ...]:
    permits: list[Permit] = []
    lines: dict[tuple[object, ...], int] = {}
    field = top.get("permits")
    for item in [] if field is None else field.sequence():
        record = item.record(("from", "to"), ("initiator", "class", "protocol", "ports"))
        service = record["to"].text()
        if service not in services:
            raise record["to"].error(f"{service!r} is no service; use {', '.join(services) or 'a name under services'}")
        initiator = record["initiator"].choice("branch", "service", "either") if "initiator" in record else "branch"
        class_ = record.text("class") or "default"
        if class_ != "default" and class_ not in classes:
            raise record["class"].error(f"{class_!r} is no class; use {', '.join(['default', *classes])}")
        protocol, ports = _protocol(record, services[service].protocol, services[service].ports)
        if initiator == "service" and ports and "ports" not in record:
            raise item.error("the service starts, so ports are the branch's; write protocol and ports in this permit")
        named = _from(record["from"], branches)
        for branch in named:
            what = (branch, service, protocol, ports, initiator)
            if what in lines:
                raise item.error(f"{branch} to {service} is permitted in line {lines[what]} already; keep one")
            lines[what] = item.line
        starts = cast(Literal["branch", "service", "either"], initiator)
        permits.append(Permit(named, service, starts, class_, protocol, ports))
    return tuple(permits)


def _from(field: Field, branches: set[str]) -> tuple[str, ...]:
    """Every branch that a permit names, once."""
    named: dict[str, None] = {}
    if not field.one_or_more():
        raise field.error(f"names no branch; write one, or {ALL_BRANCHES} for all")
    for item in field.one_or_more():
        name = item.text()
        if name == ALL_BRANCHES:
            named.update(dict.fromkeys(sorted(branches)))
        elif name in branches:
            named[name] = None
        else:
            raise item.error(f"{name!r} is no branch; use {', '.join([*sorted(branches), ALL_BRANCHES])}")
    return tuple(named)


def _protocol(record: Record, protocol: str | None, ports: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    if "protocol" in record:
        protocol = record["protocol"].text()
        ports = ()
        values.told(record["protocol"], document.protocol_number)
    if "ports" in record:
        if protocol not in ("tcp", "udp"):
            raise record["ports"].error("needs protocol tcp or udp; add it")
        for item in record.items("ports"):
            values.told(item, document.port_range)
        ports = tuple(item.text() for item in record.items("ports"))
    return protocol, ports
