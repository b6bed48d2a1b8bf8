"""What does this one value mean?

In: a `Field` (or a group of them that goes into documents as it is). Out: the value, or the field's `NetworkError`.
"""

from __future__ import annotations

import ipaddress
import urllib.parse
from collections.abc import Callable, Collection, Mapping
from typing import Literal, cast

from cpe_agent.model import document
from cpe_agent.model.document_check import INTERFACE
from cpe_controller.fields import Field
from cpe_controller.hosts import THIS_NETWORK, dialled_flaw, host_flaw
from cpe_controller.network import Subnet

# Longer than a controller may be lost; shorter than a certificate lives (200 days).
DEFAULT_LIFETIME_DAYS = 90
MAX_LIFETIME_DAYS = 180
# While a document is on trial a power cut takes it back, and a rollout waits: nobody means to for more than a day.
CONFIRM_MAX_S = 86_400
# A standby path on a metered uplink says something every two minutes: with two hubs, and the keepalives that carrier
# NATs need in between, some 20 MB a month (tests/loops/standby.py). Every minute would be 30 MB.
PROBING = {
    "wired": document.Probing(),
    "cellular": document.Probing(standby_interval_ms=120_000),
}


def named(field: Field, name: str) -> str:
    """`name`, which `field` is called by or says."""
    if not document.NAME.match(name):
        raise field.error(f"{name!r} is no name; use 1 to 40 of a-z, 0-9 and - (not first or last)")
    return name


def subnet(field: Field) -> Subnet:
    text = field.text()
    try:
        found = ipaddress.ip_network(text)
    except ValueError:
        pass
    else:
        if "/" not in text:
            # Most often the length was forgotten, and a single machine would be all that may talk.
            raise field.error(f"{text} has no length; write {text}/24, or {found} if that one machine is meant")
        return found
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise field.error(f"{text!r} is no subnet; write it as 10.1.0.0/24") from None
    raise field.error(f"{text} is a machine's address in {meant}; write {meant}")


def machines(field: Field) -> Subnet:
    """A subnet that machines can be in."""
    found = subnet(field)
    first = found.network_address
    if first.is_loopback or first.is_multicast or (found.version == 4 and (first.is_reserved or first in THIS_NETWORK)):
        raise field.error(f"{found} is no range that machines can have addresses of; use one as in 10.1.0.0/24")
    return found


def interface(field: Field | None) -> str | None:
    if field is None:
        return None
    text = field.text()
    if not INTERFACE.match(text):
        raise field.error(f"{text!r} is no interface name; write 1 to 15 of letters, digits and _ . @ -")
    return text


def within_limits(field: Field | None, default: int, least: int, most: int) -> int:
    if field is None:
        return default
    value = field.integer()
    if not least <= value <= most:
        raise field.error(f"is {value}; {least} to {most} is possible")
    return value


def address(field: Field, version: int) -> str:
    text = field.text()
    try:
        found = ipaddress.ip_address(text)
        if found.version == version and "%" not in text:
            return str(found)
    except ValueError:
        pass
    raise field.error(f"{text!r} is no IPv{version} address; write one without /")


def host(field: Field) -> str:
    """An address or a host name."""
    return _unless(field, host_flaw)


def public_host(field: Field) -> str:
    """One that can be dialled from elsewhere."""
    return _unless(field, dialled_flaw)


def url(field: Field) -> str:
    """Where a controller is: https, a host and a port, and nothing else."""
    text = field.text()
    malformed = field.error(f"{text!r} is no controller; write it as https://203.0.113.5:8443")
    try:
        parts = urllib.parse.urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise malformed from None
    if parts.scheme != "https" or not host or port == 0 or parts.path not in ("", "/"):
        raise malformed
    if any(c.isspace() or c in "?#" for c in text):
        raise malformed
    if parts.username is not None:
        raise field.error(f"{text!r} names a user, and sites show certificates; leave out all up to the @")
    if port is None:
        raise field.error(f"{text!r} has no port; write the one of `init`, as in https://203.0.113.5:8443")
    if flaw := host_flaw(host):
        raise field.error(f"{host!r} {flaw}")
    return text.removesuffix("/")


def lifetime_days(field: Field | None) -> int:
    return within_limits(field, DEFAULT_LIFETIME_DAYS, 1, MAX_LIFETIME_DAYS)


def probings(field: Field | None) -> dict[str, document.Probing]:
    """By kind of uplink: what the whole network's `probe` says, and each kind's own default where it says nothing."""
    return {kind: probing(field, default) for kind, default in PROBING.items()}


def probing(field: Field | None, default: document.Probing) -> document.Probing:
    if field is None:
        return default
    record = field.record((), ("active_interval_ms", "standby_interval_ms", "misses"))
    return document.Probing(
        active_interval_ms=record.integer("active_interval_ms", default.active_interval_ms),
        standby_interval_ms=record.integer("standby_interval_ms", default.standby_interval_ms),
        misses=record.integer("misses", default.misses),
    )


def ipsec(field: Field | None) -> document.Ipsec:
    default = document.Ipsec()
    if field is None:
        return default
    record = field.record((), ("suite", "dpd_s", "rekey_s", "max_age_s"))
    suite = record["suite"].choice("aes256gcm-ecp256", "aes128gcm-ecp256") if "suite" in record else default.suite
    return document.Ipsec(
        suite=cast(Literal["aes256gcm-ecp256", "aes128gcm-ecp256"], suite),
        dpd_s=record.integer("dpd_s", default.dpd_s),
        rekey_s=record.integer("rekey_s", default.rekey_s),
        max_age_s=record.integer("max_age_s", default.max_age_s),
    )


def policy(field: Field | None) -> document.Policy:
    default = document.Policy()
    if field is None:
        return default
    record = field.record((), ("failback_s", "confirm_s"))
    return document.Policy(
        failback_s=record.integer("failback_s", default.failback_s),
        confirm_s=within_limits(record.get("confirm_s"), default.confirm_s, 1, CONFIRM_MAX_S),
    )


def management(field: Field | None, default: document.Management) -> document.Management:
    """What is written takes the place of the default, list by list."""
    if field is None:
        return default
    record = field.record((), ("metrics_from", "ssh_from", "routing_from", "time_servers"))

    def subnets(key: str, otherwise: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(subnet(item)) for item in record.items(key)) if key in record else otherwise

    return document.Management(
        metrics_from=subnets("metrics_from", default.metrics_from),
        ssh_from=subnets("ssh_from", default.ssh_from),
        routing_from=subnets("routing_from", default.routing_from),
        time_servers=tuple(host(item) for item in record.items("time_servers"))
        if "time_servers" in record
        else default.time_servers,
    )


def classes(fields: Mapping[str, Field], uplinks: Collection[str]) -> dict[str, document.Class]:
    """`uplinks`: the names and kinds of all there are."""
    found: dict[str, document.Class] = {}
    for name, field in fields.items():
        named(field, name)
        record = field.record((), ("latency_ms", "jitter_ms", "loss_percent", "metered", "uplinks"))
        metered = record["metered"].choice("always", "budget", "never") if "metered" in record else "always"
        found[name] = document.Class(
            latency_ms=_positive(record.get("latency_ms")),
            jitter_ms=_positive(record.get("jitter_ms")),
            loss_percent=_percent(record.get("loss_percent")),
            metered=cast(Literal["always", "budget", "never"], metered),
            uplinks=tuple(_one_of(item, uplinks) for item in record.items("uplinks")),
        )
    return found


def told(field: Field, check: Callable[[str, str], object]) -> None:
    """What the document's own check (of a path and a text) says of this value is said of the field."""
    try:
        check(field.path, field.text())
    except document.DocumentError as error:
        raise field.error(error.reason) from None


def overlap(one: Subnet, other: Subnet) -> bool:
    return one.version == other.version and one.overlaps(other)


def within(inner: Subnet, outer: Subnet) -> bool:
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]


def _unless(field: Field, flaw_of: Callable[[str], str]) -> str:
    text = field.text()
    if flaw := flaw_of(text):
        raise field.error(f"{text!r} {flaw}")
    return text


def _one_of(field: Field, known: Collection[str]) -> str:
    text = field.text()
    if text not in known:
        raise field.error(f"{text!r} is no uplink of any site, and no kind; use {', '.join(sorted(known))}")
    return text


def _positive(field: Field | None) -> int | None:
    if field is None:
        return None
    value = field.integer()
    if value < 1:
        raise field.error(f"is {value}; at least 1 is possible")
    return value


def _percent(field: Field | None) -> float | None:
    if field is None:
        return None
    value = field.number()
    if not 0 <= value <= 100:
        raise field.error(f"is {value:g}; 0 to 100 is possible")
    return value
