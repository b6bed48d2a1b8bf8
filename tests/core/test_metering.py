"""Is every byte counted once, in its month, whatever interfaces, boots and clocks do?"""

from __future__ import annotations

import datetime as dt

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpe_agent.core.budget import NEAR_PERCENT, Budget, budget
from cpe_agent.core.metering import KEPT_MONTHS, conditions, month_of, next_month, step
from cpe_agent.core.obey import Clock
from cpe_agent.model.document import Uplink
from cpe_agent.model.observed import LinkBytes, LinkCounters
from cpe_agent.model.usage import Life, Usage

DAY = 5
LTE = Uplink("cellular", 2, "10.255.101.2", monthly_bytes=1000, budget_day=DAY)


def clock(date: str, trusted: bool = True) -> Clock:
    return Clock(dt.datetime.fromisoformat(f"{date}T12:00:00+00:00").timestamp(), trusted)


def counters(received: int, sent: int = 0, *, index: int = 7, boot: str = "a", name: str = "wwan0") -> LinkCounters:
    return LinkCounters(boot, {name: LinkBytes(index, received, sent)})


def run(*looks: tuple[str, LinkCounters | None, bool] | tuple[str, LinkCounters | None]) -> Usage:
    """A usage after looks on these dates; None: the interface is not there. False: the clock is not believed."""
    usage: Usage | None = None
    for date, found, *trusted in looks:
        name = next(iter(found.by_name)) if found else None
        usage = step(usage, name, found or LinkCounters("a"), DAY, clock(date, not trusted or bool(trusted[0])))
    assert usage is not None
    return usage


@pytest.mark.parametrize(
    ("day", "today", "begins", "then"),
    [
        (1, "2026-11-24", "2026-11-01", "2026-12-01"),
        (24, "2026-11-24", "2026-11-24", "2026-12-24"),
        (25, "2026-11-24", "2026-10-25", "2026-11-25"),
        (31, "2026-11-29", "2026-10-31", "2026-11-30"),
        (31, "2026-11-30", "2026-11-30", "2026-12-31"),
        (31, "2026-12-30", "2026-11-30", "2026-12-31"),
        (31, "2027-02-28", "2027-02-28", "2027-03-31"),
        (30, "2027-02-27", "2027-01-30", "2027-02-28"),
        (30, "2027-03-29", "2027-02-28", "2027-03-30"),
        (29, "2028-02-29", "2028-02-29", "2028-03-29"),
        (29, "2027-02-28", "2027-02-28", "2027-03-29"),
        (31, "2027-01-01", "2026-12-31", "2027-01-31"),
        (5, "2027-01-04", "2026-12-05", "2027-01-05"),
    ],
)
def test_a_month_begins_on_its_day_or_on_the_last_one_there_is(day: int, today: str, begins: str, then: str) -> None:
    assert month_of(day, dt.date.fromisoformat(today)) == begins
    assert next_month(day, begins) == then


@given(day=st.integers(1, 31), today=st.dates(dt.date(2001, 1, 1), dt.date(2400, 1, 1)))
def test_every_day_is_in_one_month(day: int, today: dt.date) -> None:
    begins = dt.date.fromisoformat(month_of(day, today))
    ends = dt.date.fromisoformat(next_month(day, begins.isoformat()))
    assert begins <= today < ends and 28 <= (ends - begins).days <= 31


def test_differences_are_added_both_ways() -> None:
    usage = run(
        ("2026-11-10", counters(1000, 500)), ("2026-11-10", counters(1100, 520)), ("2026-11-11", counters(1101, 520))
    )
    assert (usage.month_bytes, usage.received, usage.sent) == (121, 101, 20)


@pytest.mark.parametrize(
    ("second", "adds"),
    [
        (counters(150, 10), 60),
        (counters(30, 10, boot="b"), 40),
        (counters(900, 10, boot="b"), 910),
        (counters(900, 10, index=8), 910),
        (counters(900, 10, name="wwan1"), 910),
        (counters(30, 10), 40),
        (counters(150, 0), 60 - 10 + 0),
        (None, 0),
    ],
    ids=["goes on", "reboot", "reboot, more than before", "made anew", "another modem", "driver reset", "same", "gone"],
)
def test_a_life_that_ends_takes_nothing_back(second: LinkCounters | None, adds: int) -> None:
    before = run(("2026-11-10", counters(0)), ("2026-11-10", counters(100, 0)))
    usage = step(
        before, next(iter(second.by_name)) if second else None, second or LinkCounters("a"), DAY, clock("2026-11-10")
    )
    assert usage.month_bytes == 100 + adds


def test_an_interface_that_was_away_is_counted_from_its_beginning() -> None:
    looks = (("2026-11-10", counters(100)), ("2026-11-10", None), ("2026-11-10", counters(40, index=9)))
    assert run(*looks).month_bytes == 40
    assert run(("2026-11-10", None), ("2026-11-10", counters(40))).month_bytes == 40


def test_an_interface_that_came_back_as_it_was_is_counted_on() -> None:
    # The document named another one for a while.
    assert run(("2026-11-10", counters(100)), ("2026-11-10", None), ("2026-11-10", counters(140))).month_bytes == 40


@pytest.mark.parametrize(
    ("looks", "month", "used"),
    [
        # A month ends.
        ([("2026-12-04", 50, True), ("2026-12-05", 60, True)], "2026-12-05", 10),
        # Powered off over the end of two.
        ([("2027-02-01", 60, True)], "2027-01-05", 60),
        # The clock is not believed: nothing begins; what passed meanwhile may be of the new month.
        ([("1970-01-01", 60, False)], "2026-11-05", 60),
        ([("1970-01-01", 60, False), ("2026-11-25", 70, True)], "2026-11-05", 70),
        ([("2026-11-20", 50, True), ("1970-01-01", 60, False), ("2026-12-06", 65, True)], "2026-12-05", 15),
        # The clock was ahead, for a day, a month or a decade.
        ([("2026-11-20", 50, True), ("2026-12-06", 60, True), ("2026-11-20", 70, True)], "2026-11-05", 70),
        ([("2026-11-20", 50, True), ("2036-01-06", 60, True), ("2026-11-20", 70, True)], "2026-11-05", 70),
        ([("2036-01-06", 50, True), ("2038-01-06", 60, True), ("2026-11-20", 70, True)], "2026-11-05", 70),
        # ... and then a month ends, as if nothing had been.
        ([("2036-01-06", 50, True), ("2026-11-20", 70, True), ("2026-12-05", 75, True)], "2026-12-05", 5),
        # The clock falls behind (what it says has not been signed by anybody, so it is believed), and recovers.
        ([("2026-12-06", 50, True), ("2026-11-06", 60, True), ("2026-12-06", 70, True)], "2026-12-05", 60),
        ([("2026-12-06", 50, True), ("2026-09-06", 60, True), ("2026-12-06", 70, True)], "2026-12-05", 60),
    ],
)
def test_a_wrong_clock_neither_resets_nor_loses_a_month(
    looks: list[tuple[str, int, bool]], month: str, used: int
) -> None:
    usage = run(("2026-11-10", counters(0)), *((date, counters(at), trusted) for date, at, trusted in looks))
    assert (usage.month, usage.month_bytes) == (month, used)
    assert sum(usage.by_month.values()) == usage.total_bytes


def test_behind_counts_more_never_less() -> None:
    usage = run(("2026-11-10", counters(0)), ("2026-12-06", counters(50)), ("2026-09-06", counters(60)))
    assert usage.month_bytes == 60


_dates = st.dates(dt.date(2026, 1, 1), dt.date(2029, 12, 31))
_look = st.tuples(_dates, st.integers(0, 50), st.booleans(), st.sampled_from(["on", "anew", "reboot", "gone"]))


@given(looks=st.lists(_look, max_size=30))
def test_no_byte_is_lost_or_counted_twice(looks: list[tuple[dt.date, int, bool, str]]) -> None:
    usage = step(None, "wwan0", counters(0), DAY, clock("2026-06-01"))
    at, index, boot, passed = 0, 7, "a", 0
    for date, more, trusted, what in looks:
        if what in ("anew", "reboot"):
            at, index, boot = 0, index + (what == "anew"), boot + "+" * (what == "reboot")
        at += more
        passed += more
        before = usage
        found = LinkCounters(boot) if what == "gone" else counters(at, index=index, boot=boot)
        # What passes while nobody looks is found by the next look at the same life.
        usage = step(usage, "wwan0", found, DAY, clock(date.isoformat(), trusted))
        if not trusted:
            assert usage.month == before.month and usage.month_bytes >= before.month_bytes
        elif usage.month == before.month:
            assert usage.month_bytes >= before.month_bytes, "a budget only tightens within a month"
        assert len(usage.by_month) <= KEPT_MONTHS + 1
        assert usage.total_bytes <= passed
        if what != "gone":
            kept = sum(usage.by_month.values())
            assert kept <= usage.total_bytes and all(count >= 0 for count in usage.by_month.values())


@given(steps=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 3)), max_size=40))
def test_with_a_right_clock_each_byte_is_in_its_month(steps: list[tuple[int, int]]) -> None:
    today, at = dt.date(2026, 1, 1), 0
    usage = step(None, "wwan0", counters(0), DAY, clock(today.isoformat()))
    by_month: dict[str, int] = {}
    for more, days in steps:
        today += dt.timedelta(days=days)
        at += more
        usage = step(usage, "wwan0", counters(at), DAY, clock(today.isoformat()))
        by_month[usage.month] = by_month.get(usage.month, 0) + more
        assert usage.month == month_of(DAY, today)
        assert usage.month_bytes == by_month[usage.month]


@pytest.mark.parametrize(
    ("used", "monthly", "level"),
    [
        (10**15, None, Budget.FREE),
        (0, 1000, Budget.FREE),
        (899, 1000, Budget.FREE),
        (900, 1000, Budget.NEAR),
        (999, 1000, Budget.NEAR),
        (1000, 1000, Budget.SPENT),
        (5000, 1000, Budget.SPENT),
    ],
)
def test_budgets(used: int, monthly: int | None, level: Budget) -> None:
    assert budget(used, monthly) is level


@given(used=st.integers(0, 10**13), more=st.integers(0, 10**13), monthly=st.integers(1, 10**13))
def test_a_budget_only_tightens(used: int, more: int, monthly: int) -> None:
    order = list(Budget)
    assert order.index(budget(used, monthly)) <= order.index(budget(used + more, monthly))
    assert (budget(used, monthly) is Budget.FREE) == (used < monthly * NEAR_PERCENT / 100)


def test_conditions_say_what_to_do_and_until_when() -> None:
    usages = {"lte": Usage("2026-11-05", {"2026-11-05": 950_000_000})}
    uplinks = {"lte": msgspec.structs.replace(LTE, monthly_bytes=1_000_000_000)}
    (near,) = conditions(uplinks, usages, {"lte": Budget.NEAR})
    assert (near.type, near.subject) == ("BudgetNear", "lte")
    assert near.reason == (
        "has used 950.0 of 1000.0 MB since 2026-11-05: classes with `metered: budget` keep off it until 2026-12-05; "
        "if its plan has more, raise monthly_bytes in network.yaml"
    )
    (spent,) = conditions(uplinks, usages, {"lte": Budget.SPENT})
    assert spent.type == "BudgetSpent" and "only classes with `metered: always`" in spent.reason
    assert conditions(uplinks, usages, {"lte": Budget.FREE}) == ()


def test_a_usage_survives_the_disk() -> None:
    usage = Usage("2026-11-05", {"2026-11-05": 2**40}, 5, 2**63, 7, Life("boot", "wwan0", 3, 2**63, 7))
    assert msgspec.json.decode(msgspec.json.encode(usage), type=Usage) == usage
