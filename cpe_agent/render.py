"""How does a status report read to a person at a terminal?

In: a `Status`. Out: text, at most 80 columns wide, the same for the same report. A hub has thousands of branches and
pairs and a screen has not: of each table there is a screenful, what needs somebody first, and counts for the rest;
`rows_max` None has them all, and `only` those rows in which one of its words occurs.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import msgspec

from cpe_agent.layout import (
    GAP,
    NOTHING,
    PLAIN,
    WIDTH,
    Column,
    ago,
    clean,
    in_bytes,
    labelled,
    milliseconds,
    painted,
    shortened,
    span,
    table,
)
from cpe_agent.model.advice import ADVICE
from cpe_agent.model.condition import BundleReport, Condition, Severity, Status, UplinkReport

ROWS_MAX = 20

VERDICT = {Severity.OK: "healthy", Severity.DEGRADED: "degraded", Severity.DOWN: "down"}

_GOOD, _DOUBTFUL, _BAD, _BOLD = "\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[1m"
_COLOURS = {
    Severity.OK: _GOOD,
    Severity.DEGRADED: _DOUBTFUL,
    Severity.DOWN: _BAD,
}
_STATE_COLOURS: Mapping[str, str] = MappingProxyType(
    {
        "up": _GOOD,
        "carried": _GOOD,
        "answering": _GOOD,
        "unknown": _DOUBTFUL,
        "moving": _DOUBTFUL,
        "down": _BAD,
        "no path": _BAD,
        "silent": _BAD,
    }
)


class _View(msgspec.Struct, frozen=True):
    colour: bool
    rows_max: int | None
    only: tuple[str, ...]

    def wants(self, cells: Iterable[str]) -> bool:
        return not self.only or any(word in cell for cell in cells for word in self.only)

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> list[str]:
        found = [row for row in rows if self.wants(row)]
        lines = table(columns, found[: self.rows_max], _STATE_COLOURS if self.colour else MappingProxyType({}))
        return lines + self.left_off(len(found))

    def left_off(self, count: int) -> list[str]:
        if self.rows_max is None or count <= self.rows_max:
            return []
        return [f"and {count - self.rows_max} more: --all lists them, NAME those with NAME in them"]

    def paint(self, text: str, escape: str) -> str:
        return painted(text, escape if self.colour else "")


def render(status: Status, colour: bool = False, rows_max: int | None = ROWS_MAX, only: Sequence[str] = ()) -> str:
    """The report, each line ended. With `colour`, escape sequences come on top of the 80 columns."""
    view = _View(colour, rows_max, tuple(only))
    sections = [
        _headline(status, view),
        _uplinks(status, view),
        _paths(status, view),
        _bundles(status, view),
        _services(status, view),
        _peers(status, view),
        _pairs(status, view),
        _conditions(status.conditions, status.now, view),
    ]
    return "\n".join("".join(line.rstrip() + "\n" for line in section) for section in sections if section)


def _headline(status: Status, view: _View) -> list[str]:
    verdict = VERDICT[status.severity]
    room = WIDTH - len(verdict) - GAP
    # A box that belongs to no site yet has no name, and its role is nobody's concern.
    title = shortened(f"{clean(status.site)} ({clean(status.role)})" if status.site else "a new box", room)
    padded = title.ljust(room + GAP)
    if view.colour:
        padded, verdict = f"{_BOLD}{padded}{PLAIN}", f"{_COLOURS[status.severity]}{verdict}{PLAIN}"
    running = span(status.now - status.started)
    lines = [padded + verdict]
    lines += labelled("document", _document(status))
    contact = status.controller_last_contact
    lines += labelled("controller", "no contact yet" if contact is None else f"answered {ago(status.now - contact)}")
    lines += labelled("agent", f"{status.agent_version}, backend {status.backend}, running for {running}")
    if status.targets:
        altered = [target.name for target in status.targets if not target.in_sync]
        lines += labelled("data plane", f"not in sync: {', '.join(altered)}" if altered else "in sync")
    if status.dropped_packets:
        drops = (f"{reason} {count}" for reason, count in sorted(status.dropped_packets.items()))
        lines += labelled("dropped", f"{', '.join(drops)} packets")
    if status.peers:
        connected = sum(peer.ike_sas > 0 for peer in status.peers)
        lines += labelled("branches", f"{connected} of {len(status.peers)} have a tunnel here")
    if view.rows_max is not None and len(status.pair_packets) > view.rows_max:
        used = sum(packets > 0 for packets in status.pair_packets.values())
        carried = f"{sum(status.pair_packets.values())} packets, {in_bytes(sum(status.pair_bytes.values()))}"
        lines += labelled("pairs", f"{used} of {len(status.pair_packets)} have carried something: {carried}")
    return lines


def _document(status: Status) -> str:
    if status.document_epoch is None or status.document_version is None:
        return "none yet"
    order = f"{status.document_epoch}.{status.document_version}"
    if not status.document_confirmed:
        order += " (not confirmed yet)"
    if status.document_expires is None:
        return order
    left_s = status.document_expires - status.now
    return f"{order}, expires in {span(left_s)}" if left_s > 0 else f"{order}, expired {ago(-left_s)}"


def _uplinks(status: Status, view: _View) -> list[str]:
    metered = any(uplink.remaining_bytes is not None for uplink in status.uplinks)
    columns = (
        Column("UPLINK"),
        Column("KIND"),
        Column("INTERFACE"),
        Column("STATE"),
        Column("ADDRESS"),
        *((Column("LEFT", right=True),) if metered else ()),
        Column("GATEWAY", spare=True),
    )
    rows = [
        (
            uplink.name,
            uplink.kind,
            uplink.interface,
            "up" if uplink.up else "down",
            uplink.address or NOTHING,
            *((_left(uplink),) if metered else ()),
            uplink.gateway or NOTHING,
        )
        for uplink in status.uplinks
    ]
    return view.table(columns, rows)


def _left(uplink: UplinkReport) -> str:
    """Of the monthly bytes."""
    return NOTHING if uplink.remaining_bytes is None else in_bytes(uplink.remaining_bytes)


def _paths(status: Status, view: _View) -> list[str]:
    columns = (
        Column("PATH"),
        Column("STATE"),
        Column("RTT", right=True),
        Column("JITTER", right=True),
        Column("LOSS", right=True),
        Column("READY"),
        Column("MTU", right=True, spare=True),
        Column("IKE", spare=True),
    )
    rows = [
        (
            path.path,
            path.state,
            milliseconds(path.rtt_ms),
            milliseconds(path.jitter_ms),
            NOTHING if path.state == "unknown" else f"{path.loss_percent:.1f} %",
            "yes" if path.ready else "no",
            NOTHING if path.mtu is None else str(path.mtu),
            path.ike or NOTHING,
        )
        for path in status.paths
    ]
    return view.table(columns, rows)


def _bundles(status: Status, view: _View) -> list[str]:
    columns = (
        Column("BUNDLE"),
        Column("ACTIVE PATH"),
        Column("STATE"),
        Column("PAIRS", right=True),
        Column("MOVES", right=True),
        Column("PACKETS", right=True, spare=True),
        Column("BYTES", right=True, spare=True),
    )
    rows = [
        (
            bundle.name,
            bundle.active_path or NOTHING,
            _bundle_state(bundle),
            str(len(bundle.pairs)),
            str(sum(bundle.moves.values())),
            str(sum(status.pair_packets.get(pair, 0) for pair in bundle.pairs)),
            in_bytes(sum(status.pair_bytes.get(pair, 0) for pair in bundle.pairs)),
        )
        for bundle in status.bundles
    ]
    return view.table(columns, rows)


def _bundle_state(bundle: BundleReport) -> str:
    return "no path" if bundle.active_path is None else "carried" if bundle.installed else "moving"


def _services(status: Status, view: _View) -> list[str]:
    """Silent ones first."""
    columns = (Column("SERVER"), Column("STATE"), Column("BEHIND"), Column("PAIR"))
    listed = sorted(status.services, key=lambda service: (service.state == "answering", service.pair))
    return view.table(columns, [(one.server, one.state, one.peer or NOTHING, one.pair) for one in listed])


def _peers(status: Status, view: _View) -> list[str]:
    """Absent ones first."""
    columns = (
        Column("PEER"),
        Column("STATE"),
        Column("IKE_SAS", right=True),
        Column("CHILD_SAS", right=True),
        Column("RECEIVED", right=True),
        Column("SENT", right=True),
    )
    listed = sorted(status.peers, key=lambda peer: peer.ike_sas > 0)
    rows = [
        (
            peer.name,
            "up" if peer.ike_sas else "down",
            str(peer.ike_sas),
            str(peer.children),
            in_bytes(peer.bytes_in),
            in_bytes(peer.bytes_out),
        )
        for peer in listed
    ]
    return view.table(columns, rows)


def _pairs(status: Status, view: _View) -> list[str]:
    """By name; where there are more than fit, those that carried most."""
    carrier = {pair: bundle.active_path or NOTHING for bundle in status.bundles for pair in bundle.pairs}
    columns = (
        Column("PAIR"),
        *((Column("ACTIVE PATH"),) if carrier else ()),
        Column("PACKETS", right=True),
        Column("BYTES", right=True),
    )
    listed = sorted(status.pair_packets.items())
    if view.rows_max is not None and len(listed) > view.rows_max:
        listed.sort(key=lambda item: -item[1])
    rows = [
        (
            pair,
            *((carrier.get(pair, NOTHING),) if carrier else ()),
            str(packets),
            in_bytes(status.pair_bytes[pair]) if pair in status.pair_bytes else NOTHING,
        )
        for pair, packets in listed
    ]
    return view.table(columns, rows)


def _conditions(conditions: Iterable[Condition], now: float, view: _View) -> list[str]:
    worst_first = list(reversed(VERDICT))
    found = sorted(conditions, key=lambda c: (worst_first.index(c.severity), c.type, c.subject, c.reason))
    found = [condition for condition in found if view.wants((condition.type, condition.subject, condition.reason))]
    lines = []
    advised: set[str] = set()
    for condition in found[: view.rows_max]:
        title = " ".join(part for part in (condition.type, condition.subject) if part)
        lasting = f" (for {span(now - condition.since)})" if condition.since > 0 else ""
        # "ok" is a fact and no fault.
        mark = "i" if condition.severity is Severity.OK else "!"
        first, *more = _wrapped(f"{title}: {condition.reason}{lasting}", "  ", "    ")
        lines += [view.paint(mark, _COLOURS[condition.severity]) + first[1:], *more]
        if condition.type not in advised and (advice := ADVICE.get(condition.type, "")):
            lines += _wrapped(f"What to do: {advice}.", "    ", "      ")
        advised.add(condition.type)
    return lines + view.left_off(len(found))


def _wrapped(text: str, first: str, others: str) -> list[str]:
    return textwrap.wrap(clean(text), WIDTH, initial_indent=first, subsequent_indent=others, break_on_hyphens=False)
