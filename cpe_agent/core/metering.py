"""How many bytes has each uplink carried this month?

Pure: `step(usage, uplink's interface, counters, clock) -> usage`, one `Usage` per uplink. In: what the kernel's
interface counters say now. Theory of operation:

The kernel counts from an interface's creation on, so a counter belongs to one life of one interface: (boot, interface,
index). Bytes are counted as differences within a life.

| what is seen                                                   | what is added                                    |
|----------------------------------------------------------------|--------------------------------------------------|
| the uplink for the first time                                  | nothing: nobody knows in which month they passed |
| the same life, counters not lower                              | the difference                                   |
| another life (reboot, modem replaced, interface made anew)     | all that its counters say: they began at 0       |
| the same life, counters lower (a driver was reset)             | likewise                                         |
| no interface                                                   | nothing; what was counted stays                  |

A month begins at 00:00 UTC on `budget_day`, or on the last day of a month that has no such day. Bytes are kept by
month, and used is what was counted in the present month or in a later one, which there is only when the clock had been
ahead:

| clock                                       | what becomes of the month                                           |
|---------------------------------------------|---------------------------------------------------------------------|
| not trusted                                 | it stays; bytes are added to it, and remembered as unsure           |
| trusted, in the same month                  | it stays, and what was unsure is its own                            |
| trusted, in a later month that is new       | that one begins, with what was unsure: it may be of this month. What|
|                                             | a clock once counted in the far future becomes part of the past     |
| trusted, in any month that is known already | that one goes on where it was                                       |
| trusted, earlier                            | that one is the present one, and all that is later counts as used   |

So a clock that is wrong for a while, either way, costs no byte and forgives none when it is right again.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

import msgspec

from cpe_agent.core.budget import Budget, budget
from cpe_agent.core.obey import Clock
from cpe_agent.core.uplinks import interfaces
from cpe_agent.model.condition import Condition
from cpe_agent.model.document import Document, Uplink
from cpe_agent.model.observed import LinkBytes, LinkCounters, Links
from cpe_agent.model.usage import Life, Usage

# What a clock that errs several times can come back to.
KEPT_MONTHS = 6


def step(usage: Usage | None, interface: str | None, counters: LinkCounters, budget_day: int, clock: Clock) -> Usage:
    """`usage` (None: never seen) after a look at `counters`. `interface`: the uplink's at present, None if none."""
    month = month_of(budget_day, _date(clock))
    if usage is None:
        # Before anything was counted even a wrong clock's month does no harm: it is put right without a loss.
        found = counters.by_name.get(interface or "")
        return Usage(month, {month: 0}, life=_life(interface, counters.boot, found) if interface and found else None)
    if clock.trusted:
        usage = msgspec.structs.replace(_turned(usage, month), unsure_bytes=0)
    found = counters.by_name.get(interface or "")
    if interface is None or found is None:
        return usage
    return _counted(usage, _life(interface, counters.boot, found), clock.trusted)


def month_of(budget_day: int, today: dt.date) -> str:
    """The first day (ISO) of the budget's month that `today` is in."""
    begins = _nth(today.year, today.month, budget_day)
    if today < begins:
        before = today.replace(day=1) - dt.timedelta(days=1)
        begins = _nth(before.year, before.month, budget_day)
    return begins.isoformat()


def next_month(budget_day: int, month: str) -> str:
    """The first day (ISO) of the budget's month after the one that begins on `month`."""
    # No month is longer than 31 days, and 32 days on is never past the end of the next.
    return month_of(budget_day, dt.date.fromisoformat(month) + dt.timedelta(days=32))


def counted(
    usages: Mapping[str, Usage], document: Document, links: Links, counters: LinkCounters, now_s: float
) -> dict[str, Usage]:
    """Every uplink's usage after a look at `counters`. `now_s`: what the wall clock says."""
    # What the controller has signed has passed; a clock that says less is wrong.
    floor = document.issued_at.timestamp()
    clock = Clock(max(now_s, floor), trusted=now_s >= floor)
    bound = interfaces(document, links)
    # An uplink that the document has dropped may come back: what it has used stays used.
    found = dict(usages)
    for name, uplink in document.uplinks.items():
        found[name] = step(found.get(name), bound.get(name), counters, uplink.budget_day, clock)
    return found


def budgets(usages: Mapping[str, Usage], document: Document) -> dict[str, Budget]:
    """Of each metered uplink."""
    return {
        name: budget(usages[name].month_bytes if name in usages else 0, uplink.monthly_bytes)
        for name, uplink in document.uplinks.items()
        if uplink.monthly_bytes is not None
    }


def conditions(
    uplinks: dict[str, Uplink], usages: dict[str, Usage], levels: dict[str, Budget]
) -> tuple[Condition, ...]:
    """What the operator must know of budgets that run out."""
    found = []
    for name, level in sorted(levels.items()):
        usage, uplink = usages.get(name), uplinks.get(name)
        if level is Budget.FREE or usage is None or uplink is None or uplink.monthly_bytes is None:
            continue
        used = f"has used {_in_mb(usage.month_bytes)} of {_in_mb(uplink.monthly_bytes)} MB since {usage.month}"
        until = next_month(uplink.budget_day, usage.month)
        mend = "if its plan has more, raise monthly_bytes in network.yaml"
        if level is Budget.NEAR:
            reason = f"{used}: classes with `metered: budget` keep off it until {until}; {mend}"
            found.append(Condition("BudgetNear", name, reason))
        else:
            reason = f"{used}: only classes with `metered: always` may use it until {until}; {mend}"
            found.append(Condition("BudgetSpent", name, reason))
    return tuple(found)


def _counted(usage: Usage, life: Life, trusted: bool) -> Usage:
    before = usage.life
    if before is None or not _goes_on(before, life):
        before = msgspec.structs.replace(life, received=0, sent=0)
    received, sent = life.received - before.received, life.sent - before.sent
    added = received + sent
    return msgspec.structs.replace(
        usage,
        by_month={**usage.by_month, usage.month: usage.by_month.get(usage.month, 0) + added},
        unsure_bytes=0 if trusted else usage.unsure_bytes + added,
        received=usage.received + received,
        sent=usage.sent + sent,
        life=life,
    )


def _goes_on(before: Life, life: Life) -> bool:
    same = (before.boot, before.interface, before.index) == (life.boot, life.interface, life.index)
    return same and life.received >= before.received and life.sent >= before.sent


def _turned(usage: Usage, month: str) -> Usage:
    """`usage` in the month that a trusted clock says it is. ISO dates sort as dates do."""
    by_month = dict(usage.by_month)
    if month not in by_month and month > usage.month:
        past = sum(by_month.pop(later) for later in sorted(by_month) if later >= usage.month)
        by_month |= {usage.month: past - usage.unsure_bytes, month: usage.unsure_bytes}
    by_month.setdefault(month, 0)
    for oldest in sorted(by_month)[:-KEPT_MONTHS]:
        if oldest != month:
            del by_month[oldest]
    return msgspec.structs.replace(usage, month=month, by_month=by_month)


def _life(interface: str, boot: str, found: LinkBytes) -> Life:
    return Life(boot, interface, found.index, found.received, found.sent)


def _date(clock: Clock) -> dt.date:
    return dt.date(1970, 1, 1) + dt.timedelta(days=int(clock.now // 86400))


def _nth(year: int, month: int, day: int) -> dt.date:
    first = dt.date(year, month, 1)
    last = (first + dt.timedelta(days=31)).replace(day=1) - dt.timedelta(days=1)
    return first.replace(day=min(day, last.day))


def _in_mb(count: int) -> str:
    return f"{count / 1e6:.1f}"
