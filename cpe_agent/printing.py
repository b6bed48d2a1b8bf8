"""How does a command say what it found, or why it failed?

Standard output has the answer and nothing else; standard error a sentence with the program's name before it. At a
terminal a sentence is folded at 80 columns; elsewhere it is one line, which somebody may grep for.
"""

from __future__ import annotations

import errno
import os
import sys
import textwrap

from cpe_agent.exits import NO_PERMISSION, UNAVAILABLE

WIDTH = 80
_FORBIDDEN = (os.strerror(errno.EPERM), os.strerror(errno.EACCES))


class NotPrinted(Exception):
    """Standard output takes no more, and not because its reader has read enough."""


def say(text: str, end: str = "\n") -> bool:
    """Print an answer, at once. False: whoever read has read enough (`| head`), which is no failure. Raises
    `NotPrinted`."""
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        stop_printing()
        return False
    except OSError as error:
        stop_printing()
        raise NotPrinted(error.strerror) from None
    return True


def stop_printing() -> None:
    # What could not be written is still in the buffer, and Python would complain of it at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def failed(words: str, code: int) -> int:
    """Say why a command failed. Returns its exit code, which is `code`, but for a user who may not do such things."""
    if os.geteuid() != 0 and any(forbidden in words for forbidden in _FORBIDDEN):
        words = f"{words.rstrip('.')}: run it as root"
        code = NO_PERMISSION if code == UNAVAILABLE else code
    tell(words)
    return code


def tell(words: str) -> None:
    """A sentence on standard error."""
    text = sentence(words)
    if sys.stderr.isatty():
        text = textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False) + "\n"
    print(text, end="", file=sys.stderr, flush=True)


def sentence(words: str) -> str:
    """With the program's name, and ended."""
    words = words.rstrip(".")
    return f"cpe-agent: {words}\n" if words.endswith(("?", "!")) else f"cpe-agent: {words}.\n"
