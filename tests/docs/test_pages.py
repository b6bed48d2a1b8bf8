"""Is what the README and docs say true of what is there: commands, options, files and links, and in both languages?

Commands to be typed are run by tests/scenarios/test_documented.py; that none is left out is judged here.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpe_agent.arguments import parser as agent_parser
from cpe_controller import arguments as controller_arguments
from tests.docs.pages import PAGES, README, ROOT, TWIN, blocks, commands, spoken_of
from tests.scenarios.documented import (
    AT_A_BRANCH,
    AT_A_CONTROLLER,
    BY_OTHERS,
    DAEMONS,
    HERE,
    TARGETS_BY_OTHERS,
)

_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
_HEADING = re.compile(r"^(#+) ", re.MULTILINE)
_NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)`")
# What stands for something in a command that is spoken of.
STANDS_FOR = {"FILE": "network.yaml", "KEY": "signing.key", "DIR": "out", "N": "1", "URL": "https://x.example/a.deb"}
STANDS_FOR |= {"HEX": "0" * 64, "HOST": "controller.example", "NETWORK": "blood"}


def written(text: str) -> Iterator[list[str]]:
    """Every way to write what `a [b] c|d` means."""
    alternatives = []
    for part in re.findall(r"\[[^\]]+\]|\S+", text):
        optional = part.startswith("[")
        choices = [choice.split() for choice in part.strip("[]").split("|")]
        alternatives.append([[], *choices] if optional else choices)
    for chosen in itertools.product(*alternatives):
        words = [word for words in chosen for word in words]
        yield [STANDS_FOR.get(word, "some-site" if word.isupper() else word) for word in words if word != "..."]


def understood(words: list[str]) -> bool:
    try:
        if words[0] == "cpe-agent":
            agent_parser().parse_args(words[1:])
        else:
            controller_arguments.read(words[1:])
    except SystemExit:
        return False
    return True


def subcommands(parser: argparse.ArgumentParser) -> set[str]:
    [found] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return set(found.choices)


COMMANDS = subcommands(agent_parser()) | subcommands(controller_arguments._parser())


def test_every_command_that_is_spoken_of_is_understood() -> None:
    wrong = [
        (page.name, text)
        for page in PAGES
        for text in spoken_of(page, "cpe-agent", "cpe-controller")
        if not any(map(understood, written(text)))
    ]
    assert wrong == []


@pytest.mark.parametrize("text", ["cpe-agent statsu", "cpe-agent status --jsn", "cpe-controller token"])
def test_one_that_is_not_would_be_found(text: str) -> None:
    assert not any(map(understood, written(text)))


def test_the_readme_has_every_command() -> None:
    told = {
        tuple(words[:2])
        for text in spoken_of(README, "cpe-agent", "cpe-controller")
        for words in [text.replace("|", " ").split()]
    }
    wanted = {("cpe-agent", name) for name in subcommands(agent_parser())}
    wanted |= {("cpe-controller", name) for name in subcommands(controller_arguments._parser())}
    assert told == wanted


def test_the_readme_has_every_make_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)) - {"help"}
    told = {text.split()[1] for text in spoken_of(README, "make")}
    assert told == targets


def test_every_command_to_be_typed_is_run() -> None:
    typed = {command for page in PAGES for command in commands(page)}
    pages = {str(page.relative_to(ROOT)) for page in PAGES}
    assert typed and pages >= HERE
    unrun = sorted(c for c in typed if c.page not in HERE and c.text not in BY_OTHERS)
    assert unrun == [], "nobody runs these: see tests/scenarios/documented.py"
    assert BY_OTHERS.keys() <= {command.text for command in typed}, "nobody is told to type these any more"


def test_every_command_that_the_readme_speaks_of_is_run() -> None:
    """Each way to write it: the command, and each of its options that is named there."""
    typed = [command.text for page in PAGES for command in commands(page)]
    run = {way for text in (*typed, *AT_A_BRANCH, *AT_A_CONTROLLER, *DAEMONS) for way in ways(text.split())}
    unrun = [
        " ".join(words)
        for text in spoken_of(README, "cpe-agent", "cpe-controller")
        for words in written(text)
        if not set(ways(words)) <= run
    ]
    assert unrun == [], "nobody runs these: see tests/scenarios/documented.py"


def ways(words: list[str]) -> Iterator[tuple[str, ...]]:
    """Program and command, alone and with each option."""
    programs = [at for at, word in enumerate(words) if word in ("cpe-agent", "cpe-controller")]
    if programs:
        told = [word for word in words[programs[0] :] if word != "--state"]
        command = next((word for word in told[1:] if word in COMMANDS), "")
        yield (told[0], command)
        yield from ((told[0], command, word) for word in told if word.startswith("--"))


def test_every_make_target_that_the_readme_speaks_of_is_run() -> None:
    targets = {text.split()[1] for text in spoken_of(README, "make")}
    typed = {words[1] for words in (text.split() for text in BY_OTHERS) if words[0] == "make"}
    assert targets == typed | TARGETS_BY_OTHERS.keys()


@pytest.mark.parametrize("runner", sorted({*BY_OTHERS.values(), *TARGETS_BY_OTHERS.values()}))
def test_who_runs_the_others_is_there(runner: str) -> None:
    path, _, name = runner.partition("::")
    source = (ROOT / path).read_text()
    if path.endswith(".py"):
        functions = {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}
        assert name in functions
    else:
        assert name in source


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in _LINK.findall(page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [name for name in _NAMED_TEST.findall(page.read_text()) if not (ROOT / name).exists()] == []


def test_every_page_and_picture_is_linked() -> None:
    linked = {(page.parent / link).resolve() for page in PAGES for link in _LINK.findall(page.read_text())}
    pages = {page for page in PAGES if page not in (README, TWIN)}
    assert {*pages, *(ROOT / "docs/pictures").iterdir()} - linked == set()


def test_the_two_readmes_have_the_same_form() -> None:
    """Headings, blocks, and what is spoken of as code; the words are each language's own."""
    one, other = README.read_text(), TWIN.read_text()
    assert _HEADING.findall(one) == _HEADING.findall(other)
    assert [block.language for block in blocks(README)] == [block.language for block in blocks(TWIN)]
    assert [c.text for c in commands(README)] == [c.text for c in commands(TWIN)]
    assert one.count("\n|") == other.count("\n|")
    spans = [sorted(re.findall(r"`[^`\n]+`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))) for text in (one, other)]
    assert spans[0] == spans[1]
    assert sorted(_LINK.findall(one)) == sorted(_LINK.findall(other))
