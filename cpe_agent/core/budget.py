"""How much of its monthly bytes has a metered uplink left, and which traffic may still use it?

Pure. In: bytes used in this month, and what the document allows. A budget only ever tightens within a month, since
bytes are only ever added; it loosens when a month begins, or when the operator raises `monthly_bytes`.

| used of `monthly_bytes`    | budget  | who may use the uplink                       |
|----------------------------|---------|----------------------------------------------|
| less than `NEAR_PERCENT`   | `FREE`  | all                                          |
| from there on              | `NEAR`  | classes with `metered: budget` leave         |
| all of it                  | `SPENT` | only classes with `metered: always` stay     |
"""

from __future__ import annotations

from enum import Enum

# What is left of a plan of 1 GB when classes leave is still three months of standing by.
NEAR_PERCENT = 90


class Budget(Enum):
    """Of an uplink: `FREE` to be used by all, `NEAR` its cap (classes with `metered: budget` leave), or `SPENT` (only
    `metered: always` stays). An uplink without `monthly_bytes` is always free."""

    FREE = "free"
    NEAR = "near"
    SPENT = "spent"


def budget(used_bytes: int, monthly_bytes: int | None) -> Budget:
    """What `used_bytes` in this month leave of `monthly_bytes` (None: no cap)."""
    if monthly_bytes is None:
        return Budget.FREE
    if used_bytes >= monthly_bytes:
        return Budget.SPENT
    # In whole numbers: a float would round near the cap of a large plan.
    return Budget.NEAR if used_bytes * 100 >= monthly_bytes * NEAR_PERCENT else Budget.FREE
