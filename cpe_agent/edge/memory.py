"""How does a daemon that reads long lists in short-lived threads give memory back?

glibc is told to, by mallopt(3). As it is by itself, each thread has a pool of its own, of which a listing that is long
gone holds on to a megabyte or two; and a large block, once freed, makes it take the next ones from the heap, where they
leave holes. On a small router both together are 5 MB of the agent's 65.
"""

from __future__ import annotations

import ctypes

# malloc.h. Whoever sets a threshold also ends its growing.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
# glibc's own, before it grows.
_THRESHOLD_BYTES = 128 * 1024


def be_frugal() -> None:
    """For the whole process, from now on; before anything has a thread."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_ARENA_MAX, 1)
    libc.mallopt(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES)
    libc.mallopt(_M_TRIM_THRESHOLD, _THRESHOLD_BYTES)
