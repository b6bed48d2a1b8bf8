"""How many bytes has an uplink carried, as far as was counted? What is kept on the disk for it.

Bytes are the interface's own: both directions, all that passed, with the link's headers where it has any (an Ethernet
interface counts 14 bytes a packet that a carrier does not charge).
"""

from __future__ import annotations

import msgspec


class Life(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One life of one interface, and its counters when they were last looked at."""

    boot: str
    interface: str
    index: int
    received: int
    sent: int


class Usage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of one uplink. `month`: the first day (ISO) of the present budget month; `by_month`: bytes, by such days;
    `unsure_bytes`: of the present month's, those counted while the clock could not be believed; `received` and `sent`:
    ever."""

    month: str
    by_month: dict[str, int]
    unsure_bytes: int = 0
    received: int = 0
    sent: int = 0
    life: Life | None = None

    @property
    def month_bytes(self) -> int:
        """Used this month. What a clock that was ahead has counted under a later month counts as well."""
        return sum(count for month, count in self.by_month.items() if month >= self.month)

    @property
    def total_bytes(self) -> int:
        return self.received + self.sent
