"""Where does glibc put a small block of a thread, and a large one once a larger one was freed?

A process of its own is asked, since what it was told cannot be taken back.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading

from cpe_agent.edge.memory import be_frugal
from tests.lab.container import REPOSITORY

SMALL, LARGE, LARGER = 1000, 1 << 20, 8 << 20


def seen(frugal: bool) -> list[str]:
    """For each of the two "heap" or "elsewhere"."""
    argv = [sys.executable, "-m", "tests.edge.malloc_seen", *(["frugal"] if frugal else [])]
    # glibc also listens to these.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    return subprocess.run(argv, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=True).stdout.split()


def _asked() -> list[str]:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = (ctypes.c_void_p,)
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(_place(libc.malloc(SMALL))))
    thread.start()
    thread.join()
    libc.free(libc.malloc(LARGER))
    found.append(_place(libc.malloc(LARGE)))
    return found


def _place(address: int) -> str:
    with open("/proc/self/maps") as maps:
        for line in maps:
            begin, _, end = line.split()[0].partition("-")
            if int(begin, 16) <= address < int(end, 16):
                return "heap" if "[heap]" in line else "elsewhere"
    raise ValueError(f"{address:x} is nowhere")


if __name__ == "__main__":
    if sys.argv[1:]:
        be_frugal()
    print(*_asked())
