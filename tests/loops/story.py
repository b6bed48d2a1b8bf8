"""What has a simulated agent done, and when? A `Story` is its operations and log events, as lines of text.

A test says which lines it expects, in order; a story that went otherwise fails with a diff that shows the times.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import structlog
import trio

from cpe_agent.model import ops
from cpe_agent.model.observed import IkeSa

T = TypeVar("T")


@dataclass(frozen=True)
class Line:
    """Something that was done. `topic`: tunnels, rules, routes or log."""

    at_s: float
    topic: str
    text: str

    def __str__(self) -> str:
        return f"{self.topic} {self.text}"


class Story:
    """All lines so far, by the simulated clock."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def note(self, topic: str, text: str) -> None:
        self.lines.append(Line(trio.current_time(), topic, text))

    def since(self, at_s: float, *topics: str) -> list[Line]:
        """What was done from then on; of these topics only, if any is named."""
        return [line for line in self.lines if line.at_s >= at_s and (not topics or line.topic in topics)]

    def events(self, name: str, since_s: float = 0.0) -> list[Line]:
        """Log events of this name."""
        return [line for line in self.since(since_s, "log") if line.text.split()[0] == name]

    def process(self, _logger: object, _level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """A structlog processor: takes note of the event and swallows it."""
        fields = {key: value for key, value in event.items() if key not in ("event", "rtt_ms")}
        self.note("log", " ".join([event["event"], *(f"{key}={value}" for key, value in sorted(fields.items()))]))
        raise structlog.DropEvent


class Noted(list[T]):
    """A fake's list of what was done to it, which also tells the story."""

    def __init__(self, note: Callable[[T], None]) -> None:
        super().__init__()
        self._note = note

    def append(self, item: T) -> None:
        super().append(item)
        self._note(item)


def expect(lines: Iterable[Line], patterns: Iterable[str]) -> None:
    """Exactly these, in this order. A pattern may have wildcards, as file names may."""
    told, wanted = list(lines), list(patterns)
    if len(told) == len(wanted) and all(map(fnmatchcase, map(str, told), wanted)):
        return
    # A line that fits shows as its pattern, so that the diff holds only what differs.
    shown = [str(line) for line in told]
    matcher = [next((p for p in wanted if fnmatchcase(text, p)), text) for text in shown]
    times = "\n".join(f"  {line.at_s:8.3f}  {line}" for line in told)
    diff = "\n".join(difflib.unified_diff(wanted, matcher, "expected", "told", lineterm="", n=20))
    raise AssertionError(f"the story went otherwise:\n{diff}\n\nin full:\n{times}")


def told_tunnel_op(op: ops.TunnelOp, ike_sas: tuple[IkeSa, ...]) -> str:
    """One operation on charon, with names instead of numbers."""
    match op:
        case ops.LoadCredentials():
            return "load credentials"
        case ops.LoadConnection(connection):
            return f"load {connection.stem}"
        case ops.UnloadConnection(name):
            return f"unload {_stem(name)}"
        case ops.Initiate(connection=name, child=child):
            return f"initiate {_stem(name)} {child}"
        case ops.TerminateChild(unique_id):
            found = [(sa, child) for sa in ike_sas for child in sa.children if child.unique_id == unique_id]
            return f"end {_stem(found[0][0].connection)} {found[0][1].name}" if found else f"end child {unique_id}"
        case ops.TerminateIke(unique_id, force):
            names = [_stem(sa.connection) for sa in ike_sas if sa.unique_id == unique_id]
            return f"end {names[0] if names else unique_id} whole{' by force' if force else ''}"


def told_rules(transaction: tuple[ops.FirewallOp, ...]) -> str:
    """One transaction of nftables."""
    parts = []
    for op in transaction:
        match op:
            case ops.ReplaceTable():
                parts.append("replace table")
            case ops.DeleteTable():
                parts.append("delete table")
            case ops.ReplaceSet(new):
                parts.append(f"replace {new.name} {' '.join(sorted(new.elements))}")
            case ops.AddElements(name, _, elements):
                parts.append(f"add {name} {' '.join(sorted(elements))}")
            case ops.DeleteElements(name, _, elements):
                parts.append(f"delete {name} {' '.join(sorted(elements))}")
    return ", ".join(parts)


def told_route_op(op: ops.RouteOp) -> str:
    """One operation on rules, routes, addresses or forwarding."""
    what = ""
    match op:
        case ops.AddDevice(name) | ops.DeleteDevice(name):
            what = f"device {name}"
        case ops.AddAddress(address) | ops.DeleteAddress(address):
            what = f"address {address}"
        case ops.AddRule(rule) | ops.DeleteRule(rule):
            what = f"rule {rule.priority} {rule.iif or rule.source or 'all'} table {rule.table}"
        case ops.AddRoute(route) | ops.DeleteRoute(route):
            via = " ".join(filter(None, (route.gateway, route.device))) or "nowhere"
            what = f"route {route.destination} {via} table {route.table}"
        case ops.SetForwarding(family, on):
            return f"forwarding {family} {'on' if on else 'off'}"
        case ops.SetLenient():
            return "lenient"
    return f"{'add' if type(op).__name__.startswith('Add') else 'delete'} {what}"


def _stem(connection: str) -> str:
    return connection.removeprefix("cpe-").rpartition("-")[0]
