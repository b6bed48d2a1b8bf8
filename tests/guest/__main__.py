"""`python -m tests.guest [options] -- COMMAND` runs a shell command in a guest; `make guest CMD=...` is the same."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from tests.guest.image import ImageError, image
from tests.guest.launch import DIED, GuestError, run


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.guest", description="Run a command under Debian's kernel.")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--memory-mib", type=int, default=3072)
    parser.add_argument("--limit-s", type=float, default=3600, help="end it after so long, with status 124")
    parser.add_argument("command", nargs="+", help="one word: a shell command; several: a program and its arguments")
    asked = parser.parse_args(argv)
    command = asked.command[0] if len(asked.command) == 1 else shlex.join(asked.command)
    try:
        return run(image(), command, cpus=asked.cpus, memory_mib=asked.memory_mib, limit_s=asked.limit_s)
    except (GuestError, ImageError) as error:
        print(f"guest: {error}", file=sys.stderr)
        return DIED


if __name__ == "__main__":
    sys.exit(main())
