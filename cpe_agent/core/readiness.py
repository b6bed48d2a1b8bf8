"""Is this hub willing to serve?

Pure. In: the document, the links, whether an operator has drained this hub, and what the checks of its LANs have said
so far. Out: whether its ready addresses may answer, and conditions that say why not. Theory of operation:

A ready address says "send me your traffic" for the whole hub. So it is all or nothing: a hub that has lost one of its
server LANs takes all its ready addresses away, and branches move what another hub can serve there. What only this hub
can serve stays where it is, because steering never leaves a path that works for none.

| LAN of the document                  | what must hold                                                               |
|--------------------------------------|------------------------------------------------------------------------------|
| has a `check` address                | it answers ICMP echo, asked from the LAN side, and the interface has carrier |
| has none, but a pair has a side here | the interface has carrier                                                    |
| anything else                        | nothing: a spare LAN that is unplugged is no reason to go                    |

| watch   | event                              | new watch | why                                                       |
|---------|------------------------------------|-----------|-----------------------------------------------------------|
| (new)   |                                    | serving or unknown | as the hub was: a restarted agent moves nothing  |
| unknown | a round answered                   | serving   | it has not failed yet                                     |
| any     | `ROUNDS` rounds missed in a row    | failed    |                                                           |
| any     | the interface is gone or down      | failed    | known for certain: at once                                |
| failed  | `ROUNDS` rounds answered in a row  | serving   | hysteresis: each change moves a whole city's traffic      |

A hub without a document is never asked: it has no ready address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from enum import Enum

import msgspec

from cpe_agent.core.lans import lan_interface
from cpe_agent.model.condition import Condition, Severity
from cpe_agent.model.document import Document, Lan
from cpe_agent.model.observed import Link, Links

# One round a second: a dead LAN is noticed in three seconds, and a switch that reboots for two moves nobody.
ROUND_S = 1.0
ROUNDS = 3


class Standing(Enum):
    UNKNOWN = "unknown"
    SERVING = "serving"
    FAILED = "failed"


class Watch(msgspec.Struct, frozen=True):
    """What the rounds have said of one LAN. `in_row`: rounds that contradict `standing`, without a break."""

    standing: Standing = Standing.UNKNOWN
    in_row: int = 0
    reason: str = ""


class Check(msgspec.Struct, frozen=True):
    """What a LAN must show: carrier on `interface` ("": it has none of its own) and an answer of `target` to an echo
    from `source` ("": carrier will do). `fault`: why it cannot hold, whoever answers."""

    lan: str
    interface: str = ""
    source: str = ""
    target: str = ""
    fault: str = ""


def checks(document: Document, links: Links) -> tuple[Check, ...]:
    """The LANs of a hub that count, and how each is asked."""
    served = {ipaddress.ip_network(local) for local in {pair.local for pair in document.pairs}}
    found = []
    for lan in document.lans:
        subnet = ipaddress.ip_network(lan.subnet)
        has_pairs = any(one.version == subnet.version and one.subnet_of(subnet) for one in served)  # type: ignore[arg-type]
        if lan.check or (has_pairs and lan_interface(document, lan)):
            found.append(_check(document, lan, links))
    return tuple(found)


def follow(watches: Mapping[str, Watch], wanted: tuple[Check, ...], serving: bool) -> dict[str, Watch]:
    """Watches for exactly these checks. A new one stands as the hub does; a certain fault counts at once."""
    followed = {}
    for check in wanted:
        watch = watches.get(check.lan, Watch(Standing.SERVING if serving else Standing.UNKNOWN))
        followed[check.lan] = Watch(Standing.FAILED, 0, check.fault) if check.fault else watch
    return followed


def round_ended(watch: Watch, check: Check, answered: bool) -> Watch:
    """One round is over. `answered`: what had to answer did, or nothing had to."""
    if check.fault:
        return Watch(Standing.FAILED, 0, check.fault)
    good = watch.standing is Standing.SERVING
    if watch.standing is Standing.UNKNOWN and answered:
        return Watch(Standing.SERVING)
    if answered == good and watch.standing is not Standing.UNKNOWN:
        return msgspec.structs.replace(watch, in_row=0)
    if watch.in_row + 1 < ROUNDS:
        return msgspec.structs.replace(watch, in_row=watch.in_row + 1)
    if answered:
        return Watch(Standing.SERVING)
    return Watch(Standing.FAILED, 0, f"{check.target} does not answer ICMP echo from {check.source}")


def ready(document: Document, drained: bool, watches: Mapping[str, Watch]) -> bool:
    """May the ready addresses answer?"""
    willing = document.role == "hub" and not drained and not document.drain
    return willing and all(watch.standing is Standing.SERVING for watch in watches.values())


def conditions(document: Document, drained: bool, watches: Mapping[str, Watch]) -> tuple[Condition, ...]:
    """Why this hub is not willing to serve."""
    if document.role != "hub":
        return ()
    found = []
    if drained:
        reason = "drained by `cpe-agent drain`: branches use the other hub; `cpe-agent undrain` ends it"
        found.append(Condition("Draining", "hub", reason))
    if document.drain:
        reason = "the document drains this hub: branches use the other one; undrain it at the controller"
        found.append(Condition("Draining", "document", reason))
    for lan, watch in sorted(watches.items()):
        if watch.standing is Standing.FAILED:
            reason = f"{watch.reason}; this hub serves nobody until its LANs are well"
            found.append(Condition("LanCheckFailed", lan, reason, Severity.DOWN))
    return tuple(found)


def _check(document: Document, lan: Lan, links: Links) -> Check:
    interface = lan_interface(document, lan) or ""
    link = links.by_name.get(interface)
    fault = ""
    if interface and link is None:
        fault = f"there is no interface {interface}"
    elif link is not None and not link.up:
        fault = f"{interface} is down or has no carrier"
    if not lan.check:
        return Check(lan.name, interface, fault=fault)
    if not fault and not _inside(lan.check, document):
        # It would be asked for in the internet, in cleartext.
        fault = f"its check address {lan.check} is in no LAN of this site"
    source = _source(lan.check, link) if link else document.site_address
    if not fault and not _same_version(source, lan.check):
        fault = f"{interface or 'this site'} has no address from which {lan.check} could be asked"
    return Check(lan.name, interface, source, lan.check, fault)


def _inside(address: str, document: Document) -> bool:
    asked = ipaddress.ip_address(address)
    return any(asked in ipaddress.ip_network(lan.subnet) for lan in document.lans)


def _source(target: str, link: Link) -> str:
    """The interface's address in the target's own subnet, or the first of its IP version; "" if there is none."""
    asked = ipaddress.ip_address(target)
    usable = [a for a in link.addresses if ipaddress.ip_address(a.address).version == asked.version]
    near = [a for a in usable if asked in ipaddress.ip_network(f"{a.address}/{a.prefix_length}", strict=False)]
    return next((a.address for a in [*near, *usable]), "")


def _same_version(source: str, target: str) -> bool:
    return bool(source) and ipaddress.ip_address(source).version == ipaddress.ip_address(target).version
