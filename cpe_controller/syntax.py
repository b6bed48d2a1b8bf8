"""Why is this no YAML, and in which line?

In: a text, or bytes, and what the YAML reader says of it, which is about its own tokens and often a line late. Out: the
line in which somebody has to change something, and what.
"""

from __future__ import annotations

import codecs
import re

import yaml

# What YAML lets nobody write. Tabs and line ends are its business.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class NoText(Exception):
    """`line` (from 1) and why it cannot be read."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


def decoded(raw: bytes) -> str:
    """Raises NoText."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise NoText(1, "is UTF-16; save it as UTF-8")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        reason = f"has the byte 0x{raw[error.start]:02x}, which is no UTF-8 (Latin-1?); save the file as UTF-8"
        raise NoText(line, reason) from None
    if found := _CONTROL.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise NoText(line, f"has the control character U+{ord(found[0]):04X}; save the file as plain text in UTF-8")
    return text


def explained(text: str, error: yaml.YAMLError) -> tuple[int, str]:
    """The line, and what is to be changed there."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return 1, str(error).partition("\n")[0]
    late = error.problem_mark.line + 1
    since = error.context_mark.line + 1 if error.context_mark else late
    context, problem = error.context or "", error.problem or ""
    if "cannot start any token" in problem:
        found = (text.splitlines()[late - 1 : late] or [""])[0][error.problem_mark.column :][:1]
        if found == "\t":
            return late, "has a tab where only spaces may be; write spaces"
        return late, f"has {found!r} where a value begins; put the value in quotes"
    if "flow" in context:
        until = "" if since == late else f" before line {min(late, len(text.splitlines()))}"
        return since, f"has a {{ or [ that is not closed, or lacks a comma{until}"
    if "expected ':'" in problem:
        return since, "has no ':' behind its name"
    if "quoted" in context:
        return since, "has a quote that is not closed"
    if "block" in context:
        return late, f"is indented otherwise than the lines that it belongs to, from line {since} on"
    if "mapping values are not allowed" in problem:
        return late, "is indented deeper than what it belongs to, or has a ': ' in a value without quotes"
    if "another document" in problem:
        return late, "begins another document; keep one"
    if "undefined alias" in problem:
        return late, "has a '*' where a value begins; put the value in quotes"
    return late, problem
