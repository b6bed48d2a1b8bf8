"""How does a status report read to a person at a terminal?

In: a `Status`. Out: text, at most 80 columns wide, the same for the same report. Everything that has a name and does
not fit is shortened in its middle, since names differ at their ends; `--json` has it all.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from cpe_agent.model.condition import Condition, Severity, Status, UplinkReport

WIDTH = 80
# A hub has thousands of branches and pairs; a screen has not.
ROWS_MAX = 20

VERDICT = {Severity.OK: "healthy", Severity.DEGRADED: "degraded", Severity.DOWN: "down"}

_GAP = 2
_LABEL_WIDTH = 12
_NARROWEST = 3
_NOTHING = "-"
_GOOD, _DOUBTFUL, _BAD, _BOLD, _PLAIN = "\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[1m", "\x1b[0m"
_COLOURS = {
    Severity.OK: _GOOD,
    Severity.DEGRADED: _DOUBTFUL,
    Severity.DOWN: _BAD,
}
_STATE_COLOURS = {
    "up": _GOOD,
    "carried": _GOOD,
    "in sync": _GOOD,
    "unknown": _DOUBTFUL,
    "moving": _DOUBTFUL,
    "altered": _DOUBTFUL,
    "down": _BAD,
    "no path": _BAD,
}


class _Column(msgspec.Struct, frozen=True):
    """`spare`: left out when the table is too wide. `right`: numbers, which line up at their ends."""

    title: str
    right: bool = False
    spare: bool = False


def render(status: Status, colour: bool = False) -> str:
    """The report, each line ended. With `colour`, escape sequences come on top of the 80 columns."""
    sections = [
        _headline(status, colour),
        _uplinks(status, colour),
        _paths(status, colour),
        _bundles(status, colour),
        _services(status, colour),
        _peers(status, colour),
        _pairs(status, colour),
        _conditions(status.conditions, status.now, colour),
    ]
    return "\n".join("".join(line.rstrip() + "\n" for line in section) for section in sections if section)


def _headline(status: Status, colour: bool) -> list[str]:
    verdict = VERDICT[status.severity]
    room = WIDTH - len(verdict) - _GAP
    title = _shortened(f"{_clean(status.site)} ({_clean(status.role)})", room)
    padded = title.ljust(room + _GAP)
    if colour:
        padded, verdict = f"{_BOLD}{padded}{_PLAIN}", f"{_COLOURS[status.severity]}{verdict}{_PLAIN}"
    running = _span(status.now - status.started)
    lines = [padded + verdict]
    lines += _labelled("document", _document(status))
    contact = status.controller_last_contact
    lines += _labelled("controller", "no contact yet" if contact is None else f"answered {_ago(status.now - contact)}")
    lines += _labelled("agent", f"{status.agent_version}, backend {status.backend}, running for {running}")
    if status.targets:
        altered = [target.name for target in status.targets if not target.in_sync]
        lines += _labelled("data plane", f"not in sync: {', '.join(altered)}" if altered else "in sync")
    if status.dropped_packets:
        drops = (f"{reason} {count}" for reason, count in sorted(status.dropped_packets.items()))
        lines += _labelled("dropped", f"{', '.join(drops)} packets")
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
    return f"{order}, expires in {_span(left_s)}" if left_s > 0 else f"{order}, expired {_ago(-left_s)}"


def _uplinks(status: Status, colour: bool) -> list[str]:
    metered = any(uplink.remaining_bytes is not None for uplink in status.uplinks)
    columns = (
        _Column("UPLINK"),
        _Column("KIND"),
        _Column("INTERFACE"),
        _Column("STATE"),
        _Column("ADDRESS"),
        *((_Column("LEFT", right=True),) if metered else ()),
        _Column("GATEWAY", spare=True),
    )
    rows = [
        (
            uplink.name,
            uplink.kind,
            uplink.interface,
            "up" if uplink.up else "down",
            uplink.address or _NOTHING,
            *((_left(uplink),) if metered else ()),
            uplink.gateway or _NOTHING,
        )
        for uplink in status.uplinks
    ]
    return _table(columns, rows, colour)


def _left(uplink: UplinkReport) -> str:
    """Of the monthly bytes."""
    return _NOTHING if uplink.remaining_bytes is None else _bytes(uplink.remaining_bytes)


def _paths(status: Status, colour: bool) -> list[str]:
    columns = (
        _Column("PATH"),
        _Column("STATE"),
        _Column("RTT", right=True),
        _Column("JITTER", right=True),
        _Column("LOSS", right=True),
        _Column("READY"),
        _Column("MTU", right=True, spare=True),
        _Column("IKE", spare=True),
    )
    rows = [
        (
            path.path,
            path.state,
            _milliseconds(path.rtt_ms),
            _milliseconds(path.jitter_ms),
            _NOTHING if path.state == "unknown" else f"{path.loss_percent:.1f} %",
            "yes" if path.ready else "no",
            _NOTHING if path.mtu is None else str(path.mtu),
            path.ike or _NOTHING,
        )
        for path in status.paths
    ]
    return _table(columns, rows, colour)


def _bundles(status: Status, colour: bool) -> list[str]:
    columns = (
        _Column("BUNDLE"),
        _Column("ACTIVE PATH"),
        _Column("STATE"),
        _Column("PAIRS", right=True),
        _Column("MOVES", right=True),
    )
    rows = [
        (
            bundle.name,
            bundle.active_path or _NOTHING,
            "no path" if bundle.active_path is None else "carried" if bundle.installed else "moving",
            str(len(bundle.pairs)),
            str(sum(bundle.moves.values())),
        )
        for bundle in status.bundles
    ]
    return _table(columns, rows, colour)


def _services(status: Status, colour: bool) -> list[str]:
    """Silent ones first."""
    columns = (_Column("SERVER"), _Column("STATE"), _Column("BEHIND"), _Column("PAIR"))
    listed = sorted(status.services, key=lambda service: (service.state == "answering", service.pair))
    rows = [(service.server, service.state, service.peer or _NOTHING, service.pair) for service in listed]
    return _table(columns, rows, colour)


def _peers(status: Status, colour: bool) -> list[str]:
    columns = (
        _Column("PEER"),
        _Column("IKE_SAS", right=True),
        _Column("CHILD_SAS", right=True),
        _Column("RECEIVED", right=True),
        _Column("SENT", right=True),
    )
    rows = [
        (peer.name, str(peer.ike_sas), str(peer.children), _bytes(peer.bytes_in), _bytes(peer.bytes_out))
        for peer in status.peers
    ]
    return _table(columns, rows, colour)


def _pairs(status: Status, colour: bool) -> list[str]:
    columns = (_Column("PAIR"), _Column("PACKETS", right=True), _Column("BYTES", right=True))
    rows = [
        (pair, str(packets), _bytes(status.pair_bytes[pair]) if pair in status.pair_bytes else _NOTHING)
        for pair, packets in sorted(status.pair_packets.items())
    ]
    return _table(columns, rows, colour)


def _conditions(conditions: Iterable[Condition], now: float, colour: bool) -> list[str]:
    worst_first = list(reversed(VERDICT))
    found = sorted(conditions, key=lambda c: (worst_first.index(c.severity), c.type, c.subject, c.reason))
    lines = []
    for condition in found[:ROWS_MAX]:
        title = " ".join(part for part in (condition.type, condition.subject) if part)
        lasting = f" (for {_span(now - condition.since)})" if condition.since > 0 else ""
        # "ok" is a fact and no fault.
        mark = "i" if condition.severity is Severity.OK else "!"
        first, *more = textwrap.wrap(
            _clean(f"{title}: {condition.reason}{lasting}"),
            WIDTH,
            initial_indent="  ",
            subsequent_indent="    ",
            break_on_hyphens=False,
        )
        lines += [_painted(mark, _COLOURS[condition.severity], colour) + first[1:], *more]
    return lines + _left_off(len(found))


def _labelled(label: str, text: str) -> list[str]:
    indent = " " * _LABEL_WIDTH
    return textwrap.wrap(_clean(text), WIDTH, initial_indent=label.ljust(_LABEL_WIDTH), subsequent_indent=indent)


def _table(columns: Sequence[_Column], rows: Sequence[Sequence[str]], colour: bool) -> list[str]:
    """Lines with a heading; none if there are no rows."""
    if not rows:
        return []
    shown = [[_clean(cell) for cell in row] for row in rows[:ROWS_MAX]]
    keep = list(range(len(columns)))
    widths = {i: max(len(columns[i].title), *(len(row[i]) for row in shown)) for i in keep}
    while _overflow(widths, keep) > 0 and (spare := [i for i in keep if columns[i].spare]):
        keep.remove(spare[-1])
    while _overflow(widths, keep) > 0 and max(widths[i] for i in keep) > _NARROWEST:
        widths[max(keep, key=lambda i: widths[i])] -= 1

    def line(cells: Mapping[int, str], paint: bool) -> str:
        fields = []
        for i in keep:
            text = _shortened(cells[i], widths[i])
            padded = text.rjust(widths[i]) if columns[i].right else text.ljust(widths[i])
            fields.append(_painted(padded, _STATE_COLOURS.get(text, ""), paint and columns[i].title == "STATE"))
        return (" " * _GAP).join(fields)

    lines = [line({i: columns[i].title for i in keep}, False)]
    lines += [line(dict(enumerate(row)), colour) for row in shown]
    return lines + _left_off(len(rows))


def _left_off(count: int) -> list[str]:
    return [f"and {count - ROWS_MAX} more: --json lists all"] if count > ROWS_MAX else []


def _overflow(widths: Mapping[int, int], keep: Sequence[int]) -> int:
    return sum(widths[i] for i in keep) + _GAP * (len(keep) - 1) - WIDTH


def _shortened(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return text[: width - 1 - tail] + "~" + text[len(text) - tail :]


def _painted(text: str, escape: str, colour: bool) -> str:
    return f"{escape}{text}{_PLAIN}" if colour and escape else text


def _clean(text: str) -> str:
    # Reasons quote what came over the network: no escape sequence of somebody else's reaches the terminal.
    return "".join(c if c.isprintable() else "?" for c in text)


def _milliseconds(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.1f} ms"


def _bytes(count: int) -> str:
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        # What would be printed as 1000.0 belongs to the next unit.
        if value < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} PB"


def _ago(seconds: float) -> str:
    return f"{_span(seconds)} ago"


def _span(seconds: float) -> str:
    """The two largest units that matter to a person; a clock that was set back gives 0 s."""
    whole = max(0, int(seconds))
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {whole % 60} s"
    return f"{whole} s"
