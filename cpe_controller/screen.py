"""How do words get to who asked?

In: lines. Out: the same on stdout or stderr; in a terminal no wider than it is, a long row going on below itself. Where
they go to a file or another program they are left alone. `NotPrinted` says that nobody can read them.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import textwrap
from contextlib import suppress
from typing import TextIO

NAME = "cpe-controller"
_HANGING = "  "


class NotPrinted(Exception):
    """`gone`: whoever read has read enough (`| head`)."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"what came of it cannot be printed: {error.strerror or error}")
        self.gone = isinstance(error, BrokenPipeError)


def say(words: str, *, end: str = "\n", whole: bool = False) -> None:
    """`whole` is for what must not be broken, whatever the width."""
    try:
        print(words if whole else fitted(words, _width(sys.stdout)), end=end)
    except OSError as error:
        raise NotPrinted(error) from error


def complain(words: str) -> None:
    with suppress(OSError):
        print(fitted(f"{NAME}: {words}", _width(sys.stderr)), file=sys.stderr)


def finish() -> None:
    """What is still on its way to a file or a pipe shows only now that it cannot be written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        raise NotPrinted(error) from error


def give_up() -> None:
    """Nothing more is written to stdout, at the interpreter's end either."""
    with suppress(io.UnsupportedOperation):
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())


def fitted(words: str, width: int | None) -> str:
    """At most `width` columns (None: any), but no word is broken: it may be a token or a command to copy."""
    if width is None:
        return words
    return "\n".join(_fitted(line, width) for line in words.split("\n"))


def _fitted(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    indent = line[: len(line) - len(line.lstrip())] + _HANGING
    broken = textwrap.wrap(
        line,
        width,
        subsequent_indent=indent,
        expand_tabs=False,
        replace_whitespace=False,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(broken)


def _width(stream: TextIO) -> int | None:
    return shutil.get_terminal_size().columns if stream.isatty() else None
