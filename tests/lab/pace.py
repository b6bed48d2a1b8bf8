"""How slow is this machine, and which backend do its labs use? Told by the environment, used in one place each.

An emulated computer is ten times slower than its host. Every time-out of the lab goes through `patience`, so that no
test has a word about it; what is judged is packets. Standard library only: process 1 of a lab imports it too.
"""

from __future__ import annotations

import os

# The launcher of the guest sets it; whoever has a slow machine may.
FACTOR = float(os.environ.get("CPE_PACE", "1"))
# What sites of a lab use for IPsec unless a test says otherwise: auto, kernel or userland.
BACKEND = os.environ.get("CPE_BACKEND", "auto")
# Between probes of a path. On a slow machine three in a row would be late, not lost.
PROBE_MS = round(100 * max(1.0, FACTOR / 2))


def patience(seconds: float) -> float:
    """How long to wait here for what takes at most `seconds` on a machine of its own."""
    return seconds * FACTOR
