"""What runs on a router? The package's own command, with the libraries that the package brings and no others.

This checkout's environment also has what tests need, and libraries import what they find: a program that runs in it is
larger than the installed one. Out: a tree that stands for /usr/lib/cpe-agent, and the package's command that runs it.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from tests.lab.container import REPOSITORY, LabError

REQUIREMENTS = REPOSITORY / "packaging/requirements/agent.txt"
COMMAND = REPOSITORY / "packaging/commands/cpe-agent"
TREE = "/usr/lib/cpe-agent"  # as the command knows it

_PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^ ]+)(?: *;(.*))?", re.MULTILINE)


def pinned() -> dict[str, str]:
    """Libraries of the package, with the version that it brings."""
    found = _PINNED.findall(REQUIREMENTS.read_text())
    return {name: version for name, version, only in found if "win32" not in only}


def put(directory: Path, seen_as: Path | None = None) -> Path:
    """Make both in `directory`, which whoever runs it sees as `seen_as`; returns the command. LabError if a library is
    not here. It is of this environment's version, which may be another than the package's: `differing` tells."""
    tree = directory / "lib"
    tree.mkdir(parents=True, exist_ok=True)
    for place in (REPOSITORY / "cpe_agent", *(place for name in pinned() for place in _places(name))):
        link = tree / place.name
        if not link.is_symlink():
            link.symlink_to(place)
    text = COMMAND.read_text()
    if TREE not in text:
        raise LabError(f"{COMMAND} does not name {TREE}")
    command = directory / COMMAND.name
    command.write_text(text.replace(TREE, str((seen_as or directory) / "lib")))
    command.chmod(0o755)
    return command


def differing() -> list[str]:
    """In words: which libraries the package has in another version than this environment."""
    here = {name: distribution(name).version for name in pinned()}
    return [f"{name} {here[name]}, not {version}" for name, version in pinned().items() if here[name] != version]


def _places(name: str) -> set[Path]:
    """What stands in a directory of modules when this library is installed."""
    try:
        library = distribution(name)
    except PackageNotFoundError:
        raise LabError(f"{name} is in {REQUIREMENTS} and not in {sys.prefix}") from None
    tops = {file.parts[0] for file in library.files or ()} - {"..", "__pycache__", "bin"}
    return {Path(str(library.locate_file(top))) for top in tops}
