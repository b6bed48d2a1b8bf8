"""Which network does this network.yaml describe?

In: the file's text. Out: a `Network` that holds together, or a `NetworkError` that names the line, the field and the
mend. Ranges of single numbers are left to `document_check.check`, which knows them already; compile.py puts its errors
where the file says them.
"""

from __future__ import annotations

import ipaddress
import urllib.parse
from collections.abc import Mapping
from typing import Literal, cast

from cpe_agent.model import document
from cpe_controller import values
from cpe_controller.fields import Field, Mistakes, Record, read
from cpe_controller.network import Hub, Network, Site, Subnet
from cpe_controller.overlaps import check_overlaps
from cpe_controller.permits import ALL_BRANCHES, ALL_HUBS, permits, services
from cpe_controller.ways import ways

_SITE = ("uplinks", "lans")
_HUB = ("dials", "drain", "hub_nat", "management")
_NOBODY = document.Management()
_TOP = (
    *("controllers", "lifetime_days", "on_expiry", "probe", "policy", "ipsec", "classes", "management"),
    *("rollout", "templates", "branches", "services", "permits"),
)


def parse(text: str, source: str = "network.yaml") -> Network:
    """`source` is how errors call the file."""
    whole = read(text, source)
    mistakes = Mistakes()
    top = whole.record(("network", "overlay", "hubs"), _TOP, noted=mistakes)
    name = mistakes.of("", _name, top["network"])
    probe = mistakes.of(values.PROBING, values.probings, top.get("probe"))
    management = mistakes.of(_NOBODY, values.management, top.get("management"), _NOBODY)
    templates = mistakes.of({}, top.mapping, "templates")
    hubs = mistakes.of((), _hubs, top["hubs"], templates, probe, management, mistakes)
    branches = mistakes.of((), _branches, top, templates, probe, management, mistakes)
    overlay = mistakes.of(None, values.machines, top["overlay"])
    controllers = mistakes.of((), _controllers, top)
    ipsec = mistakes.of(document.Ipsec(), values.ipsec, top.get("ipsec"))
    policy = mistakes.of(document.Policy(), values.policy, top.get("policy"))
    lifetime_days = mistakes.of(0, values.lifetime_days, top.get("lifetime_days"))
    on_expiry = mistakes.of("keep", _on_expiry, top.get("on_expiry"))
    # What is found from here on may only be a consequence of those.
    mistakes.tell()
    assert overlay is not None
    check_overlaps(overlay, (*hubs, *branches), source, whole.lines)
    mistakes.of(None, _check_controllers, top, overlay, branches)
    uplinks = {text for site in (*hubs, *branches) for uplink in site.uplinks for text in (uplink.name, uplink.kind)}
    classes = mistakes.of({}, values.classes, top.mapping("classes"), uplinks)
    canaries = mistakes.of((), _canaries, top.get("rollout"), branches)
    known = services(top.mapping("services"), hubs, mistakes)
    mistakes.tell()
    permitted = permits(top.get("permits"), (*hubs, *branches), known, classes, mistakes)
    mistakes.tell()
    return Network(
        name=name,
        overlay=overlay,
        controllers=controllers,
        hubs=hubs,
        branches=branches,
        services=tuple(known.values()),
        permits=permitted,
        classes=classes,
        ipsec=ipsec,
        policy=policy,
        canaries=canaries,
        lifetime_days=lifetime_days,
        on_expiry=on_expiry,
        source=source,
        lines=whole.lines,
    )


def _name(field: Field) -> str:
    return values.named(field, field.text())


def _on_expiry(field: Field | None) -> Literal["keep", "block"]:
    return "keep" if field is None else cast(Literal["keep", "block"], field.choice("keep", "block"))


def _hubs(
    field: Field,
    templates: Mapping[str, Field],
    probe: Mapping[str, document.Probing],
    management: document.Management,
    mistakes: Mistakes,
) -> tuple[Hub, ...]:
    written = field.mapping()
    if not written:
        raise field.error("lists no hub; at least one is needed")
    read = {name: mistakes.of(None, _hub_record, name, hub, templates, mistakes) for name, hub in written.items()}
    records = {name: record for name, record in read.items() if record is not None}
    endpoints = {name: mistakes.of((), _endpoints, record["endpoints"]) for name, record in records.items()}
    mistakes.of(None, _check_endpoints, records, endpoints)
    # Of a hub that could not be read others may well be told that they know no such hub.
    dials = mistakes.of({}, _dials, records) if len(records) == len(written) else {}
    hubs = []
    for name, record in records.items():
        uplinks, lans = ways(record, probe, mistakes)
        hubs.append(
            Hub(
                name=name,
                field=record.whole.path,
                uplinks=uplinks,
                lans=lans,
                management=mistakes.of(management, values.management, record.get("management"), management),
                endpoints=endpoints[name],
                dials=dials.get(name, ()),
                drain=mistakes.of(False, record.boolean, "drain"),
                hub_nat=mistakes.of(False, record.boolean, "hub_nat"),
            )
        )
    return tuple(hubs)


def _hub_record(name: str, hub: Field, templates: Mapping[str, Field], mistakes: Mistakes) -> Record:
    _site_name(hub, name)
    whole = _filled(hub, templates)
    return whole.record((*_SITE, "endpoints"), ("dials", "drain", "hub_nat", "management"), noted=mistakes)


def _branches(
    top: Record,
    templates: Mapping[str, Field],
    probe: Mapping[str, document.Probing],
    management: document.Management,
    mistakes: Mistakes,
) -> tuple[Site, ...]:
    hubs = set(top["hubs"].mapping()) if top["hubs"].is_mapping() else set()
    branches = []
    for name, field in top.mapping("branches").items():
        record = mistakes.of(None, _branch_record, name, field, templates, hubs, mistakes)
        if record is not None:
            own = mistakes.of(management, values.management, record.get("management"), management)
            branches.append(Site(name, record.whole.path, *ways(record, probe, mistakes), own))
    return tuple(branches)


def _branch_record(
    name: str, field: Field, templates: Mapping[str, Field], hubs: set[str], mistakes: Mistakes
) -> Record:
    _site_name(field, name)
    if name in hubs:
        raise field.error("is the name of a hub too; give one of them another name")
    return _filled(field, templates).record(_SITE, ("management",), noted=mistakes)


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


def _controllers(top: Record) -> tuple[str, ...]:
    return tuple(values.url(field) for field in top.items("controllers"))


def _check_controllers(top: Record, overlay: Subnet, branches: tuple[Site, ...]) -> None:
    """Sites reach it by their uplinks: never through a tunnel, so an address of a tunnel's far end is nobody's."""
    inside = [(overlay, "overlay"), *((lan.subnet, f"{b.field}.lans.{lan.name}") for b in branches for lan in b.lans)]
    for field in top.items("controllers"):
        try:
            address = ipaddress.ip_address(urllib.parse.urlsplit(field.text()).hostname or "")
        except ValueError:
            continue  # a host name
        for subnet, whose in inside:
            if address.version == subnet.version and address in subnet:
                raise field.error(
                    f"{address} is inside {subnet} of {whose}; write the address that all sites can reach"
                )
