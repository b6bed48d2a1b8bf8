"""Has somebody put a token where this box looks for one?

In order: agent.yaml's `token`, its `token_file`, and a file `cpe-token` at the root of a mounted stick, which makes a
new box a matter of plugging it in. Sticks are looked for where desktops and udisks mount them, and where people do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from cpe_agent.model.enrolment import Lying

# Of what is mounted below these; documented in configs/agent.yaml.
STICKS = ("/media/*", "/media/*/*", "/run/media/*/*", "/mnt", "/mnt/*")
FILE = "cpe-token"
# Longer is no token.
MAX_BYTES = 8192


def find_token(token: str | None, token_file: Path | None, sticks: Sequence[str] = STICKS) -> Lying:
    """The first text found, whatever it is."""
    if token:
        return Lying(token)
    missing = ""
    for path in _places(token_file, sticks):
        try:
            with path.open("rb") as file:
                text = file.read(MAX_BYTES).decode("ascii", "replace").strip()
        except OSError as error:
            missing = missing or f"{path} cannot be read: {error.strerror}"
            continue
        if text:
            return Lying(text, str(path))
        missing = missing or f"{path} is empty"
    return Lying("", missing)


def _places(token_file: Path | None, sticks: Sequence[str]) -> Iterator[Path]:
    if token_file is not None:
        yield token_file
    for pattern in sticks:
        yield from sorted(Path("/").glob(f"{pattern.lstrip('/')}/{FILE}"))
