"""May this one ask now, or only later?

Pure: `Limits.admit(source, now)`. Every source has a bucket of its own, and all share one: each holds so many requests
and fills up evenly. What is admitted takes one from both. A source is an address, and behind a carrier's NAT that is
many boxes: who turns out to be welcome is given back what he took (`give_back`), who guesses pays more (`charge`).
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from dataclasses import dataclass

# The least recently seen is forgotten first, and starts anew with a full bucket: the common one still bounds it.
SOURCES_MAX = 4096


def source(host: str) -> str:
    """Who an address stands for: itself, or the /64 that one customer has whole."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:  # as a listener on both versions sees IPv4
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


@dataclass(frozen=True)
class Rate:
    """`burst` at once, then one every `every_s`."""

    burst: int
    every_s: float


@dataclass
class _Bucket:
    left: float
    at: float

    def fill(self, rate: Rate, now: float) -> None:
        self.left = min(float(rate.burst), self.left + max(0.0, now - self.at) / rate.every_s)
        self.at = now


class Limits:
    """Buckets, in memory. `now` is any clock in seconds that does not go backwards."""

    def __init__(self, each: Rate, together: Rate) -> None:
        self._each = each
        self._together = together
        self._all = _Bucket(float(together.burst), 0.0)
        self._sources: OrderedDict[str, _Bucket] = OrderedDict()

    def admit(self, source: str, now: float) -> int:
        """0: go on. Else in how many seconds to come again."""
        own = self._sources.pop(source, None) or _Bucket(float(self._each.burst), now)
        self._sources[source] = own
        if len(self._sources) > SOURCES_MAX:
            self._sources.popitem(last=False)
        waits = [1]
        for bucket, rate in ((own, self._each), (self._all, self._together)):
            bucket.fill(rate, now)
            if bucket.left < 1:
                waits.append(math.ceil((1 - bucket.left) * rate.every_s))
        if len(waits) > 1:
            return max(waits)
        own.left -= 1
        self._all.left -= 1
        return 0

    def give_back(self, source: str, requests: int) -> None:
        """So many of this source's were no burden. What they took of all together is gone."""
        own = self._sources.get(source)
        if own is not None:
            own.left = min(float(self._each.burst), own.left + requests)

    def charge(self, source: str, requests: int) -> None:
        """It has to wait as if it had asked so often more, but never longer than for one bucket."""
        own = self._sources.get(source)
        if own is not None:
            own.left = max(float(-self._each.burst), own.left - requests)
