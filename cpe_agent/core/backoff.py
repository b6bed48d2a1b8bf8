"""How long until something that failed is tried again?

Pure. In: how often in a row it failed, the first wait and the longest one, in seconds, and a number of chance. Out: a
wait that doubles with each failure up to the longest. It is cut by up to half by chance, so that what failed together
(2,000 sites that lost one controller) does not come back together.
"""

from __future__ import annotations

# Beyond that the longest wait has long been reached, and a float would overflow one day.
_DOUBLINGS_MAX = 30


def backoff_s(failures: int, first_s: float, longest_s: float, chance: float) -> float:
    """`failures` counts from 1; `chance` is from 0 to 1."""
    doubled = first_s * 2.0 ** min(max(failures, 1) - 1, _DOUBLINGS_MAX)
    return min(longest_s, doubled) * (0.5 + 0.5 * chance)
