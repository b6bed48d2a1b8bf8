"""Does the code keep to the house's rules that no other tool checks?"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import LONGEST

ROOT = Path(__file__).parent.parent
PURE = sorted([*(ROOT / "cpe_agent/core").glob("*.py"), *(ROOT / "cpe_agent/model").glob("*.py")])
SOURCES = sorted([*(ROOT / "cpe_agent").rglob("*.py"), *(ROOT / "cpe_controller").rglob("*.py")])
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MAX_LINES = 400

# Decisions need data types and arithmetic, nothing that reaches the machine or its clock.
PURE_IMPORTS = {
    "__future__",
    "base64",
    "binascii",
    "bisect",
    "heapq",
    "operator",
    "collections",
    "cryptography",
    "cpe_agent",
    "datetime",
    "difflib",
    "enum",
    "functools",
    "hashlib",
    "ipaddress",
    "itertools",
    "math",
    "msgspec",
    "re",
    "typing",
    "zlib",
}
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "breakpoint", "__import__"}
IMPURE_ATTRIBUTES = {"now", "today", "utcnow", "fromtimestamp"}

# What judges `cpe-agent verify`: what was changed by hand, and who confirms that it was. A reader or a parser of the
# product's own would be wrong where verify is.
ORACLE = ROOT / "tests/scenarios/oracle.py"
MUTATIONS = [ROOT / "tests/scenarios/mutations.py", ROOT / "tests/scenarios/charon_mutations.py"]
# What the lab that they run commands in may know of the product: which ESP this kernel has, and charon's settings.
LAB_MAY_KNOW = {"cpe_agent.model.dataplane.Backend", "cpe_agent.edge.ipsec"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> set[str]:
    """Every module named in an import, in full."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", PURE, ids=name_of)
def test_core_and_model_do_no_io(path: Path) -> None:
    tree = parsed(path)
    assert {module.split(".")[0] for module in imported(tree)} <= PURE_IMPORTS
    for node in ast.walk(tree):
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), f"line {node.lineno} is asynchronous"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in IMPURE_CALLS, f"line {node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr not in IMPURE_ATTRIBUTES, f"line {node.lineno} reads the clock"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_is_a_room_with_a_sign_on_its_door(path: Path) -> None:
    assert ast.get_docstring(parsed(path)), "says which question it answers"
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines < MAX_LINES, "past 400 lines it is two rooms"


def modules_of(paths: Iterable[Path]) -> dict[str, Path]:
    return {name_of(path).removesuffix(".py").replace("/", "."): path for path in paths}


@cache
def reached() -> frozenset[str]:
    """Modules of core and model that a test imports, and what those import."""
    pure = modules_of(PURE)
    tests = [path for path in TESTS if path.name.startswith("test_")]
    found: set[str] = set()
    todo = {module for test in tests for module in imported(parsed(test)) if module in pure}
    while todo:
        found |= todo
        todo = {module for name in todo for module in imported(parsed(pure[name])) if module in pure} - found
    return frozenset(found)


@pytest.mark.parametrize("module", [m for m in modules_of(PURE) if not m.endswith("__init__")])
def test_every_decision_is_exercised(module: str) -> None:
    assert module in reached(), "no test imports it, nor anything that does"


def test_what_is_run_first_is_there() -> None:
    assert [name for name in LONGEST if not (ROOT / f"tests/scenarios/{name}.py").exists()] == []


def test_tests_live_where_what_they_test_lives() -> None:
    for room in ("core", "model", "edge"):
        for test in (ROOT / "tests" / room).glob("test_*.py"):
            used = imported(parsed(test))
            assert any(m.startswith((f"cpe_agent.{room}", f"tests.{room}.")) for m in used), (
                f"{name_of(test)}: no {room}"
            )


def of_the_product(tree: ast.Module) -> set[str]:
    """Names of the product's that a module imports anywhere: in a statement, a call or what it runs elsewhere."""
    found = {module for module in imported(tree) if module.split(".")[0] == "cpe_agent"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            found.add(ast.unparse(node))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= set(re.findall(r"cpe_agent\.\w+|import cpe_agent\b", node.value))
            found |= {"-m cpe_agent"} if node.value == "-m" else set()
    return found


def lent(path: Path) -> set[str]:
    """What of the tests a module imports, and what that imports, in turn."""
    tests = modules_of(TESTS)
    found: set[str] = set()
    todo = {module for module in imported(parsed(path)) if module in tests}
    while todo:
        found |= todo
        todo = {module for name in todo for module in imported(parsed(tests[name])) if module in tests} - found
    return found


@pytest.mark.parametrize("path", [ORACLE, *MUTATIONS], ids=name_of)
def test_verifys_oracle_shares_nothing_with_the_product(path: Path) -> None:
    assert of_the_product(parsed(path)) == set()
    judges = modules_of([ORACLE, *MUTATIONS])
    for module in lent(path) - judges.keys():
        assert module.startswith("tests.lab."), f"{module} is no part of the lab"
        known = {name for name in imported(parsed(modules_of(TESTS)[module])) if name.split(".")[0] == "cpe_agent"}
        known -= {name.rpartition(".")[0] for name in known & LAB_MAY_KNOW}
        assert all(name in LAB_MAY_KNOW or name.rpartition(".")[0] in LAB_MAY_KNOW for name in known), (module, known)


def test_verifys_oracle_reads_with_the_standard_library() -> None:
    """Nor with the libraries that the product reads with."""
    rooms = {module.split(".")[0] for module in imported(parsed(ORACLE))}
    assert rooms - sys.stdlib_module_names == {"tests"}


@pytest.mark.parametrize(
    "planted",
    [
        "import cpe_agent.edge.nftables",
        "from cpe_agent import model",
        "def read():\n    from cpe_agent.core.diff import parse",
        "import importlib\nread = importlib.import_module('cpe' + '_agent')",
        "site.run('python3', '-c', 'from cpe_agent.edge import vici')",
        "site.run('python3', '-m', 'cpe_agent', 'verify', '--json')",
    ],
)
def test_a_reader_lent_by_the_product_is_found(planted: str) -> None:
    assert of_the_product(ast.parse(planted))
