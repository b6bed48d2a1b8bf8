"""How much of its monthly bytes has a metered uplink left, and which traffic may still use it?

Pure.
"""

from __future__ import annotations

from enum import Enum


class Budget(Enum):
    """Of an uplink: `FREE` to be used by all, `NEAR` its cap (classes with `metered: budget` leave), or `SPENT` (only
    `metered: always` stays). An uplink without `monthly_bytes` is always free."""

    FREE = "free"
    NEAR = "near"
    SPENT = "spent"
