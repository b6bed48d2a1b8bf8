"""What do the README and docs tell a reader to type?

A command to type stands in a block that begins with ```sh, one a line, with what is said about it behind a #. A command
that is only spoken of stands in the text, `like this`, with capitals, [] and | for what varies.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
README, TWIN = ROOT / "README.md", ROOT / "README.zh-CN.md"
PAGES = (README, TWIN, *sorted((ROOT / "docs").glob("*.md")))

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_REMARK = re.compile(r"(?:^|\s{2,})#\s.*$")
_SPAN = re.compile(r"`([^`]+)`")


class Command(NamedTuple):
    """A line of a block. `page` is relative to the repository."""

    page: str
    text: str


class Block(NamedTuple):
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in _FENCE.findall(page.read_text())]


def commands(page: Path) -> Iterator[Command]:
    """What is to be typed, in the order of the page."""
    for block in blocks(page):
        if block.language == "sh":
            for line in block.text.replace("\\\n", "").splitlines():
                if text := _REMARK.sub("", line).strip():
                    yield Command(str(page.relative_to(ROOT)), text)


def spoken_of(page: Path, *programs: str) -> Iterator[str]:
    """Commands of these programs in the text, white space made one."""
    for span in _SPAN.findall(_FENCE.sub("", page.read_text())):
        text = " ".join(span.replace("\\|", "|").split())
        if text.partition(" ")[0] in programs and " " in text:
            yield text
