"""Which services are there, and who may talk to whom?

In: `services` and `permits` of a network.yaml, and its sites. Out: `Service`s and `Permit`s in which every name is
known and none says what another says already. What becomes of a permit in documents is for pairs.py.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Literal, cast

from cpe_agent.model.document import Class, ServiceProbe
from cpe_agent.model.document_check import admits, port_range, protocol_number
from cpe_controller import values
from cpe_controller.fields import Field, Mistakes, Record
from cpe_controller.network import End, Hub, Permit, Service, Site, Subnet

# In `permits`: every branch or hub, also those that are added later. No site may have such a name.
ALL_BRANCHES = "branches"
ALL_HUBS = "hubs"

# Who may start, as people write it. A branch's permit to a service may say it by what the two ends are.
_STARTS = {"from": "from", "to": "to", "either": "either", "branch": "from", "service": "to"}
# In an error, more names than this help nobody.
_NAMES_SHOWN = 12


def services(fields: Mapping[str, Field], hubs: Sequence[Hub], mistakes: Mistakes) -> dict[str, Service]:
    found: dict[str, Service] = {}
    for name, field in fields.items():
        service = mistakes.of(None, _service, name, field, hubs, found)
        if service is not None:
            found[name] = service
    return found


def _service(name: str, field: Field, hubs: Sequence[Hub], others: Mapping[str, Service]) -> Service:
    values.named(field, name)
    record = field.record(("subnet",), ("at", "protocol", "ports", "probe"))
    subnets = _subnets(record["subnet"], hubs)
    serving = [hub.name for hub in hubs if all(_has(hub, subnet) for subnet in subnets)]
    if not serving:
        raise record["subnet"].error("no hub has all of these; make a service of each")
    protocol, ports = _protocol(record, None, ())
    probe = _probe(record["probe"], subnets, protocol, ports) if "probe" in record else None
    service = Service(name, subnets, _at(record, serving, subnets), protocol, ports, probe)
    _refuse_two_orders(field, service, others.values())
    return service


def permits(
    field: Field | None,
    sites: Sequence[Site],
    known: Mapping[str, Service],
    classes: Mapping[str, Class],
    mistakes: Mistakes,
) -> tuple[Permit, ...]:
    by_name = {site.name: site for site in sites}
    lines: dict[tuple[object, ...], int] = {}
    items = [] if field is None else mistakes.of([], field.sequence)
    read = [mistakes.of(None, _new_permit, item, by_name, known, classes, lines) for item in items]
    return tuple(permit for permit in read if permit is not None)


def _new_permit(
    item: Field,
    sites: Mapping[str, Site],
    known: Mapping[str, Service],
    classes: Mapping[str, Class],
    lines: dict[tuple[object, ...], int],
) -> Permit:
    """`lines`: what was permitted before, and where."""
    record = item.record(("from", "to"), ("initiator", "class", "protocol", "ports", "log"))
    permit = _permit(item, record, sites, known, classes)
    for end in permit.ends:
        for target in [permit.service.name] if permit.service else [(router,) for router in permit.routers]:
            what = (end.site, end.lan, target, permit.protocol, permit.ports)
            if what in lines:
                raise item.error(
                    f"{_said(end)} to {target if isinstance(target, str) else target[0]} is permitted in line "
                    f"{lines[what]} already; keep one (with initiator: either, if both may start)"
                )
            lines[what] = item.line
    return permit


def _subnets(field: Field, hubs: Sequence[Hub]) -> tuple[Subnet, ...]:
    """One, or one of each IP version."""
    found: dict[int, Subnet] = {}
    for item in field.one_or_more():
        subnet = values.subnet(item)
        if subnet.version in found:
            raise item.error(f"is a second IPv{subnet.version} subnet; make another service of it")
        if not any(_has(hub, subnet) for hub in hubs):
            raise item.error(f"{subnet} is in no LAN of a hub; add it to the hub that serves it")
        found[subnet.version] = subnet
    if not found:
        raise field.error("lists no subnet; write one, as in 10.1.0.0/24")
    return tuple(found.values())


def _has(hub: Hub, subnet: Subnet) -> bool:
    return any(values.within(subnet, lan.subnet) for lan in hub.lans)


def _at(record: Record, serving: Sequence[str], subnets: Sequence[Subnet]) -> tuple[str, ...]:
    at: list[str] = []
    for item in record.items("at"):
        hub = item.text()
        if hub not in serving:
            raise item.error(f"{hub!r} has no LAN with {' and '.join(map(str, subnets))}; use {', '.join(serving)}")
        if hub in at:
            raise item.error(f"{hub!r} is listed twice; keep one")
        at.append(hub)
    if "at" in record and not at:
        raise record["at"].error(f"lists no hub; use {', '.join(serving)}")
    return tuple(at or serving)


def _refuse_two_orders(field: Field, service: Service, others: Iterable[Service]) -> None:
    """A packet to a subnet must have one list of hubs, or two bundles would claim it."""
    for other in others:
        for subnet in service.subnets:
            for taken in other.subnets:
                if values.overlap(taken, subnet) and other.at != service.at:
                    raise field.error(
                        f"{subnet} overlaps {taken} of services.{other.name}, which is at {', '.join(other.at)}; "
                        f"let both be at the same hubs in the same order"
                    )


def _probe(field: Field, subnets: Sequence[Subnet], protocol: str | None, ports: tuple[str, ...]) -> ServiceProbe:
    record = field.record(("kind",), ("port", "address"))
    kind = cast(Literal["icmp", "tcp"], record["kind"].choice("icmp", "tcp"))
    port = record["port"].integer() if "port" in record else None
    if kind == "tcp" and port is None:
        raise field.error("has no 'port', which a tcp probe needs; add it")
    if port is not None and kind == "icmp":
        raise record["port"].error("an icmp probe has no port; leave it out")
    if port is not None and not 1 <= port <= 65535:
        raise record["port"].error(f"is {port}; 1 to 65535 is possible")
    probe = ServiceProbe(kind, port, _asked_address(field, record, subnets))
    if not admits(protocol, ports, "local", probe):
        raise field.error(f"asks for what the service does not offer: {_offered(protocol, ports)}; probe that")
    return probe


def _asked_address(field: Field, record: Record, subnets: Sequence[Subnet]) -> str | None:
    if "address" not in record:
        if any(subnet.num_addresses > 1 for subnet in subnets):
            raise field.error("has no 'address', and the service is more than one host; add that of a server")
        return None
    text = record["address"].text()
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise record["address"].error(f"{text!r} is no IP address; write one, as in 10.1.0.10") from None
    if not any(address in subnet for subnet in subnets):
        raise record["address"].error(
            f"{text} is not in {' or '.join(map(str, subnets))}; name a server of the service"
        )
    return str(address)


def _offered(protocol: str | None, ports: tuple[str, ...]) -> str:
    return f"it speaks {protocol}" + (f" on port {', '.join(ports)}" if ports else "")


def _permit(
    item: Field,
    record: Record,
    sites: Mapping[str, Site],
    known: Mapping[str, Service],
    classes: Mapping[str, Class],
) -> Permit:
    service, routers = _to(record["to"], sites, known)
    written = record["initiator"].choice(*_STARTS) if "initiator" in record else "from"
    starts = cast(Literal["from", "to", "either"], _STARTS[written])
    class_ = record.text("class") or "default"
    if class_ != "default" and class_ not in classes:
        raise record["class"].error(f"{class_!r} is no class; use {', '.join(['default', *classes])}")
    inherited = (service.protocol, service.ports) if service else (None, ())
    protocol, ports = _protocol(record, *inherited)
    if starts == "to" and ports and "ports" not in record:
        raise item.error(f"the {written} end starts, so ports are those of `from`; write protocol and ports here")
    own = "protocol" in record or "ports" in record
    label = f":{protocol}" + (f"/{','.join(ports)}" if ports else "") if own else ""
    ends = _ends(record["from"], sites)
    return Permit(item.path, ends, service, routers, starts, class_, protocol, ports, label, log=record.boolean("log"))


def _to(
    field: Field, sites: Mapping[str, Site], known: Mapping[str, Service]
) -> tuple[Service | None, tuple[str, ...]]:
    """A service, or the sites whose routers are meant."""
    if field.is_mapping():
        return None, tuple(end.site for end in _routers(field, sites))
    name = field.text()
    if name not in known:
        hint = f"{{site: {name}}} for its router" if name in sites else _shown(known) or "a name under services"
        raise field.error(f"{name!r} is no service; use {hint}")
    return known[name], ()


def _ends(field: Field, sites: Mapping[str, Site]) -> tuple[End, ...]:
    """Every LAN (or router) that a permit names, once."""
    found: dict[tuple[str, str | None], End] = {}
    items = [field] if field.is_mapping() else field.one_or_more()
    if not items:
        raise field.error(f"names no site; write one, or {ALL_BRANCHES} for all")
    for item in items:
        for end in _routers(item, sites) if item.is_mapping() else _lans(item, sites):
            found.setdefault((end.site, end.lan), end)
    return tuple(found.values())


def _lans(item: Field, sites: Mapping[str, Site]) -> list[End]:
    """`hospital-1`, `branches`, and with one of their LANs: `hospital-1.ward`, `branches.ward`."""
    name, dot, lan = item.text().partition(".")
    named, members = _members(item, name, sites)
    if not dot:
        found = [End(site.name, each.name, named) for site in members for each in site.lans]
        if not found and named == "site":
            raise item.error(f"{name} has no LAN; write {{site: {name}}} if its router is meant")
        return found
    found = [End(site.name, lan, "lan") for site in members if any(each.name == lan for each in site.lans)]
    if not found:
        lans = dict.fromkeys(each.name for site in members for each in site.lans)
        raise item.error(f"{name} has no LAN {lan!r}; use {_shown(f'{name}.{each}' for each in lans)}")
    return found


def _routers(field: Field, sites: Mapping[str, Site]) -> list[End]:
    """`{site: hospital-1}`: the routers themselves, by their site_address."""
    record = field.record(("site",), ())
    found = []
    for item in record["site"].one_or_more():
        named, members = _members(item, item.text(), sites)
        found += [End(site.name, None, named) for site in members]
    if not found:
        raise record["site"].error(f"names no site; write one, or {ALL_BRANCHES} for all")
    return found


def _members(item: Field, name: str, sites: Mapping[str, Site]) -> tuple[Literal["site", "group"], list[Site]]:
    if name in (ALL_BRANCHES, ALL_HUBS):
        return "group", [site for site in sites.values() if isinstance(site, Hub) is (name == ALL_HUBS)]
    if name not in sites:
        raise item.error(f"{name!r} is no site; use {_shown([ALL_BRANCHES, ALL_HUBS, *sites])}")
    return "site", [sites[name]]


def _protocol(record: Record, protocol: str | None, ports: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    if "protocol" in record:
        protocol = record["protocol"].text()
        ports = ()
        values.told(record["protocol"], protocol_number)
    if "ports" in record:
        if protocol not in ("tcp", "udp"):
            raise record["ports"].error("needs protocol tcp or udp; add it")
        for item in record.items("ports"):
            values.told(item, port_range)
        ports = tuple(item.text() for item in record.items("ports"))
        if not ports:
            raise record["ports"].error("lists no port; write some, or leave the line out for all")
    return protocol, ports


def _said(end: End) -> str:
    return f"{end.site}.{end.lan}" if end.lan else f"the router of {end.site}"


def _shown(names: Iterable[str]) -> str:
    listed = list(names)
    more = len(listed) - _NAMES_SHOWN
    return ", ".join(islice(listed, _NAMES_SHOWN)) + (f" ({more} more)" if more > 0 else "")
