"""How is a table laid out on a terminal of 80 columns, and how are sizes and times put into words?

In: columns and rows of text, whatever they hold. Out: lines, printable and no wider than the screen. What has a name
and does not fit is shortened in its middle, since names differ at their ends.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec

WIDTH = 80
GAP = 2
NOTHING = "-"
PLAIN = "\x1b[0m"

_LABEL_WIDTH = 12
_NARROWEST = 3


class Column(msgspec.Struct, frozen=True):
    """`spare`: left out when the table is too wide. `right`: numbers, which line up at their ends."""

    title: str
    right: bool = False
    spare: bool = False


def labelled(label: str, text: str) -> list[str]:
    indent = " " * _LABEL_WIDTH
    return textwrap.wrap(clean(text), WIDTH, initial_indent=label.ljust(_LABEL_WIDTH), subsequent_indent=indent)


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], states: Mapping[str, str] = MappingProxyType({})
) -> list[str]:
    """Lines with a heading; none if there are no rows. `states`: the colour of each word in a column STATE."""
    if not rows:
        return []
    shown = [[clean(cell) for cell in row] for row in rows]
    keep = list(range(len(columns)))
    widths = {i: max(len(columns[i].title), *(len(row[i]) for row in shown)) for i in keep}
    while _overflow(widths, keep) > 0 and (spare := [i for i in keep if columns[i].spare]):
        keep.remove(spare[-1])
    while _overflow(widths, keep) > 0 and max(widths[i] for i in keep) > _NARROWEST:
        widths[max(keep, key=lambda i: widths[i])] -= 1

    def line(cells: Mapping[int, str], paint: bool) -> str:
        fields = []
        for i in keep:
            text = shortened(cells[i], widths[i])
            padded = text.rjust(widths[i]) if columns[i].right else text.ljust(widths[i])
            fields.append(painted(padded, states.get(text, "") if paint and columns[i].title == "STATE" else ""))
        return (" " * GAP).join(fields)

    return [line({i: columns[i].title for i in keep}, False), *(line(dict(enumerate(row)), True) for row in shown)]


def shortened(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return text[: width - 1 - tail] + "~" + text[len(text) - tail :]


def painted(text: str, escape: str) -> str:
    """With an escape sequence round it, if there is one."""
    return f"{escape}{text}{PLAIN}" if escape else text


def clean(text: str) -> str:
    # Reasons quote what came over the network: no escape sequence of somebody else's reaches the terminal.
    return "".join(c if c.isprintable() else "?" for c in text)


def milliseconds(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1f} ms"


def in_bytes(count: int) -> str:
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        # What would be printed as 1000.0 belongs to the next unit.
        if value < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} PB"


def ago(seconds: float) -> str:
    return f"{span(seconds)} ago"


def span(seconds: float) -> str:
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


def _overflow(widths: Mapping[int, int], keep: Sequence[int]) -> int:
    return sum(widths[i] for i in keep) + GAP * (len(keep) - 1) - WIDTH
