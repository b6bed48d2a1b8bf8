"""Has every condition that the agent can raise an entry in docs/TROUBLESHOOTING.md, and no other?"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from cpe_agent.core.enrolment import Kind
from tests.docs.pages import ROOT

PAGE = ROOT / "docs/TROUBLESHOOTING.md"
_ENTRY = re.compile(r"^### (\w+)\n\n(.*?)(?=^#)", re.MULTILINE | re.DOTALL)


def raised(source: str, file: str) -> Iterator[str]:
    """The types of the conditions that are made in `source`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "Condition":
            match node.args[:1]:
                case [ast.Constant(value=str() as name)]:
                    yield name
                case _:
                    # Those of enrolment are values of `Kind`, and that room alone has them.
                    assert file == "core/enrolment.py", f"{file}:{node.lineno}: a condition's type is one fixed string"
                    yield from (kind.value for kind in Kind)


def of_the_code() -> set[str]:
    room = ROOT / "cpe_agent"
    files = [(path, str(path.relative_to(room))) for path in sorted(room.rglob("*.py"))]
    return {name for path, file in files for name in raised(path.read_text(), file)}


def entries() -> dict[str, str]:
    return dict(_ENTRY.findall(PAGE.read_text() + "#"))


def test_every_condition_has_an_entry_and_no_other() -> None:
    found = of_the_code()
    assert len(found) > 40
    assert entries().keys() == found


def test_every_entry_is_there_once() -> None:
    names = [name for name, _ in _ENTRY.findall(PAGE.read_text() + "#")]
    assert sorted(names) == sorted(set(names))


def test_every_entry_says_what_to_do() -> None:
    assert [name for name, text in entries().items() if not re.search(r"\bDo:\s\S", text)] == []


def test_pages_speak_of_no_other_condition() -> None:
    """Words that look like conditions, in the pages where conditions are spoken of."""
    looks = re.compile(r"`([A-Z][a-z]+(?:[A-Z][a-z]+)+)`")
    known = of_the_code() | {"EdgeError", "DocumentError"}
    for page in ("OPERATOR.md", "QUICKSTART.md", "SECURITY.md", "TROUBLESHOOTING.md", "ARCHITECTURE.md"):
        assert set(looks.findall((ROOT / "docs" / page).read_text())) - known == set(), page


def test_a_condition_without_an_entry_would_be_found() -> None:
    made = 'found.append(Condition("GatewayTired", name, reason))\ncondition.Condition("HubBored", "", "")'
    assert set(raised(made, "core/x.py")) == {"GatewayTired", "HubBored"}


def test_the_reasons_for_which_packets_are_dropped_are_all_told() -> None:
    chains = (Path(ROOT) / "cpe_agent/core/wanted_chains.py").read_text()
    reasons = set(re.findall(r'_drop\("(\w+)"\)', chains)) | set(
        re.findall(r'"(\w+)"', "".join(re.findall(r"^(?:SOME|INIT)_DROPPED = .*$", chains, re.MULTILINE)))
    )
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", PAGE.read_text(), re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == reasons
