"""Does glibc do as the daemon tells it? Asked in processes of their own, since there is no way back."""

from __future__ import annotations

import subprocess
import sys

import pytest

_WHERE = """
import ctypes, sys, threading
from cpe_agent.edge.memory import be_frugal

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = (ctypes.c_void_p,)

def where(address):
    for line in open("/proc/self/maps"):
        begin, end = (int(word, 16) for word in line.split()[0].split("-"))
        if begin <= address < end:
            return "heap" if "[heap]" in line else "elsewhere"

if sys.argv[1] == "frugal":
    be_frugal()
found = []
thread = threading.Thread(target=lambda: found.append(where(libc.malloc(1000))))
thread.start()
thread.join()
libc.free(libc.malloc(8 << 20))
found.append(where(libc.malloc(1 << 20)))
print(*found)
"""


@pytest.mark.parametrize(
    ("how", "thread", "large"), [("frugal", "heap", "elsewhere"), ("as it is by itself", "elsewhere", "heap")]
)
def test_threads_share_the_heap_and_large_blocks_stay_out_of_it(how: str, thread: str, large: str) -> None:
    asked = subprocess.run([sys.executable, "-c", _WHERE, how], capture_output=True, text=True, check=True)
    assert asked.stdout.split() == [thread, large]
