"""Man pages and completions: every command, option, exit code and field is in them, and no other; well made?"""

from __future__ import annotations

import argparse
import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpe_agent import arguments, exits
from cpe_agent.model.advice import ADVICE
from cpe_agent.settings import _File
from cpe_controller import arguments as controller_arguments

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "man"
COMPLETIONS = ROOT / "packaging" / "completion"
PARSERS = {"cpe-agent": arguments.parser(), "cpe-controller": controller_arguments._parser()}


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    action = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(action.choices)


def options(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


def plain(page: str) -> str:
    """The page's source without roff's escapes."""
    return re.sub(r"\\f[BIRP]", "", (PAGES / page).read_text()).replace("\\-", "-").replace("\\&", "")


def sections(text: str, macro: str) -> dict[str, str]:
    parts = re.split(rf"^\.{macro} (.*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def tagged(text: str) -> set[str]:
    """What stands in bold as the tag of a paragraph."""
    return set(re.findall(r"^\.TP\n\.B (\S+)$", text, re.MULTILINE))


@pytest.mark.parametrize("page", ["cpe-agent.8", "cpe-controller.8", "agent.yaml.5", "network.yaml.5"])
def test_a_page_is_well_made(page: str) -> None:
    assert shutil.which("mandoc"), "make bootstrap installs it"
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", str(PAGES / page)], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout) == (0, "")
    shown = subprocess.run(["mandoc", "-T", "ascii", str(PAGES / page)], capture_output=True, text=True, timeout=30)
    # What is left of a wrong escape.
    assert not re.search(r"\\|\bf[BIR][a-z]", shown.stdout)


@pytest.mark.parametrize("name", PARSERS)
def test_every_command_and_option_has_its_place(name: str) -> None:
    parser = PARSERS[name]
    found = sections(sections(plain(f"{name}.8"), "SH")["COMMANDS"], "SS")
    assert list(found) == list(subcommands(parser))
    for command, words in found.items():
        # What every command has is told once.
        known = options(subcommands(parser)[command]) - {"-c", "--config"} - options(parser)
        told = set(re.findall(r"^(?:-\w, )?(--[\w-]+)(?: |$)", words, re.MULTILINE)) | set(
            re.findall(r"^(-\w), --", words, re.MULTILINE)
        )
        assert told == known, command
    for option in options(parser) - {"-h", "--help"}:
        assert option in plain(f"{name}.8")


def test_every_exit_code_has_its_place() -> None:
    told = sections(plain("cpe-agent.8"), "SH")["EXIT STATUS"]
    blocks = {m[1]: " ".join(m[2].split()) for m in re.finditer(r"\.TP\n\.B (\S+)\n((?:(?!\.TP|\.P).*\n)+)", told)}
    for command, meanings in exits.EXITS.items():
        assert blocks[command] == "; ".join(f"{code} {meaning}" for code, meaning in meanings.items()) + "."
    for code, meaning in exits.COMMON.items():
        assert blocks[str(code)].lower() == f"{meaning}.".lower()
    assert set(exits.EXITS) == set(subcommands(PARSERS["cpe-agent"]))


def test_the_help_of_a_command_tells_its_exit_codes() -> None:
    for command, parser in subcommands(PARSERS["cpe-agent"]).items():
        if command not in ("run", "version"):
            assert exits.in_words(command) in (parser.epilog or ""), command


def test_every_condition_has_its_place() -> None:
    assert tagged(sections(plain("cpe-agent.8"), "SH")["CONDITIONS"]) == set(ADVICE)


def test_every_setting_has_its_place() -> None:
    assert tagged(plain("agent.yaml.5")) == set(_File.__struct_fields__)


def test_every_field_of_a_network_has_its_place() -> None:
    assert tagged(plain("network.yaml.5")) == set(network_fields())


def network_fields() -> Iterator[str]:
    """What the controller's parser calls .record(required, optional) with; `template` it takes out before."""
    yield "template"
    for file in (ROOT / "cpe_controller").glob("*.py"):
        tree = ast.parse(file.read_text())
        constants = {
            node.targets[0].id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "record":
                for argument in node.args:
                    yield from _texts(argument, constants)


def _texts(node: ast.expr, constants: dict[str, ast.expr]) -> Iterator[str]:
    if isinstance(node, ast.Name):
        yield from _texts(constants[node.id], constants)
    elif isinstance(node, ast.Starred):
        yield from _texts(node.value, constants)
    elif isinstance(node, ast.Tuple):
        for element in node.elts:
            yield from _texts(element, constants)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


class TestCompletion:
    REPORT = """\
{
  "uplinks": [
    {
      "name": "wired",
      "kind": "wired"
    }
  ],
  "paths": [
    {
      "path": "wired.centre.a",
      "peer": "centre"
    },
    {
      "path": "lte.centre.a",
      "peer": "centre"
    }
  ],
  "pair_packets": {
    "records": 12,
    "imaging": 0
  }
}"""

    @pytest.fixture
    def agent(self, tmp_path: Path) -> Path:
        """Where a `cpe-agent` is that has a report."""
        script = tmp_path / "cpe-agent"
        script.write_text(f"#!/bin/sh\ncat <<'END'\n{self.REPORT}\nEND\n")
        script.chmod(0o755)
        return tmp_path

    def completed(self, name: str, *words: str, path: Path | None = None) -> set[str]:
        typed = " ".join(f"'{word}'" for word in (name, *words))
        function = "_" + name.replace("-", "_")
        script = (
            f"source {COMPLETIONS / name}; complete -p {name} >/dev/null || exit 9; "
            f"COMP_WORDS=({typed}); COMP_CWORD={len(words)}; {function}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        )
        environment = {"PATH": f"{path}:/usr/bin:/bin" if path else "/usr/bin:/bin"}
        done = subprocess.run(
            ["bash", "--norc", "-c", script], capture_output=True, text=True, env=environment, cwd="/var/empty"
            if Path("/var/empty").is_dir() else "/", timeout=30,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        return set(done.stdout.split())

    @pytest.mark.parametrize("name", PARSERS)
    def test_every_command_and_option(self, name: str) -> None:
        parser = PARSERS[name]
        commands = subcommands(parser)
        top = {option for option in options(parser) if option.startswith("--")}
        assert self.completed(name, "") == set(commands) | top
        for command, sub in commands.items():
            wanted = {option for option in options(sub) if option.startswith("--")}
            assert self.completed(name, command, "--") == wanted, command

    def test_after_options_of_the_whole(self) -> None:
        assert self.completed("cpe-controller", "--state", "/x", "app") == {"apply"}
        assert self.completed("cpe-agent", "status", "-c", "/x.yaml", "--wa") == {"--watch"}

    def test_names_of_the_running_agent(self, agent: Path) -> None:
        assert self.completed("cpe-agent", "capture", "", path=agent) >= {"records", "imaging"}
        assert self.completed("cpe-agent", "drill", "u", path=agent) == {"uplink"}
        assert self.completed("cpe-agent", "drill", "uplink", "", path=agent) == {"wired"}
        assert self.completed("cpe-agent", "drill", "hub", "", path=agent) == {"centre"}

    def test_a_pair_is_completed_as_the_shell_takes_it(self, agent: Path) -> None:
        script = agent / "cpe-agent"
        script.write_text(script.read_text().replace("imaging", "van-1.crew>imaging"))
        assert self.completed("cpe-agent", "capture", "van", path=agent) == {"van-1.crew\\>imaging"}

    def test_choices(self) -> None:
        assert self.completed("cpe-controller", "rollout", "p") == {"pause"}
        assert self.completed("cpe-controller", "status", "--state-is", "si") == {"silent"}

    def test_files(self) -> None:
        assert self.completed("cpe-agent", "plan", "/etc/host") >= {"/etc/hostname", "/etc/hosts"}
