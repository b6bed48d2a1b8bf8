"""Where in the file does it say that?

A `Field` is a place in a YAML file: its value, its dotted path and its line. Reading through it makes every mistake a
`NetworkError` that names all three and says how to mend it. Values are read as they are written (`node.value`), so that
YAML's own ideas (`no` is false, 1:30 is 90) never change a name or an address.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import ParamSpec, TypeVar

import yaml

from cpe_controller import syntax

# libyaml where PyYAML has it: ten times as fast, which a network of 10,000 sites needs.
_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# More at once nobody reads.
MISTAKES_TOLD = 20

T = TypeVar("T")
P = ParamSpec("P")


class NetworkError(Exception):
    """A network.yaml that cannot be used: `line` (from 1; 0: there is none), dotted `field` ("" for the whole file),
    `reason`. `others` are further mistakes of the same file, in its order; each is a line of the text."""

    def __init__(self, source: str, line: int, field: str, reason: str, others: tuple[NetworkError, ...] = ()) -> None:
        where = f"{source}:{line}" if line else source
        own = f"{where}: {field}: {reason}" if field else f"{where}: {reason}"
        more = [f"and {len(others) - MISTAKES_TOLD + 1} more mistakes"] if len(others) >= MISTAKES_TOLD else []
        super().__init__("\n".join([own, *map(str, others[: MISTAKES_TOLD - 1]), *more]))
        self.source = source
        self.line = line
        self.field = field
        self.reason = reason
        self.others = others


class Mistakes:
    """What is wrong in places that have nothing to do with each other, so that one run tells all of it."""

    def __init__(self) -> None:
        self._found: list[NetworkError] = []

    def of(self, instead: T, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `read` gives; `instead`, if it finds a mistake: whoever goes on with that tells no consequences."""
        try:
            return read(*args, **kwargs)
        except NetworkError as error:
            self.note(error)
            return instead

    def note(self, error: NetworkError) -> None:
        self._found += [error, *error.others]

    def tell(self) -> None:
        """Raises what was found, if anything was. A mistake in a template is one, however many sites are made of it."""
        by_place: dict[tuple[int, str], NetworkError] = {}
        for error in self._found:
            by_place.setdefault((error.line, error.reason), error)
        if not by_place:
            return
        first, *others = sorted(by_place.values(), key=lambda error: error.line)
        alone = tuple(NetworkError(other.source, other.line, other.field, other.reason) for other in others)
        raise NetworkError(first.source, first.line, first.field, first.reason, alone)


class Field:
    """One value of the file. `lines` is shared by all fields of a file: the line of every path that was read."""

    def __init__(self, source: str, path: str, node: yaml.Node, lines: dict[str, int]) -> None:
        self.source = source
        self.path = path
        self.line = node.start_mark.line + 1
        self.lines = lines
        self._node = node
        lines.setdefault(path, self.line)

    def error(self, reason: str) -> NetworkError:
        return NetworkError(self.source, self.line, self.path, reason)

    def is_mapping(self) -> bool:
        return isinstance(self._node, yaml.MappingNode)

    def mapping(self) -> dict[str, Field]:
        """Names to fields, in the file's order."""
        if not isinstance(self._node, yaml.MappingNode):
            raise self.error(f"is {_kind(self._node)}; write it as 'name: value' lines")
        found: dict[str, Field] = {}
        for key, node in self._node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise NetworkError(self.source, key.start_mark.line + 1, self.path, "has a key that is no plain word")
            path = f"{self.path}.{key.value}" if self.path else key.value
            child = Field(self.source, path, node, self.lines)
            # A value may start lines below its key, and it is the key that people look for.
            child.line = self.lines[path] = key.start_mark.line + 1
            if key.value in found:
                raise child.error(f"is written twice (first in line {found[key.value].line}); keep one")
            found[key.value] = child
        return found

    def over(self, template: Field) -> Field:
        """This group of lines, and what `template` says where it says nothing, level by level. Everything keeps the
        line in which it is written."""
        merged = Field(self.source, self.path, _over(self._node, template._node), self.lines)
        merged.line = self.lines[self.path] = self.line
        return merged

    def without(self, key: str) -> Field:
        """This group of lines without the one called `key`."""
        assert isinstance(self._node, yaml.MappingNode)
        kept = [(name, value) for name, value in self._node.value if name.value != key]
        left = Field(self.source, self.path, _like(self._node, kept), self.lines)
        left.line = self.lines[self.path] = self.line
        return left

    def record(self, required: tuple[str, ...], optional: tuple[str, ...], *, noted: Mistakes | None = None) -> Record:
        """A mapping with known keys: any other, and any required one that is missing, is an error. With `noted`, who
        reads goes on after a key that is only misspelt, as if it were not."""
        found, mistakes = self.mapping(), Mistakes()
        known = (*required, *optional)
        for key in [key for key in found if key not in known]:
            field = found.pop(key)
            meant = next(iter(difflib.get_close_matches(key, known, 1)), None)
            hint = f"did you mean {meant}?" if meant else f"use {', '.join(known)}"
            (mistakes if noted is None else noted).note(field.error(f"is not known; {hint}"))
            if meant is not None:
                found.setdefault(meant, field)
        for key in required:
            if key not in found:
                mistakes.note(self.error(f"has no {key!r}; add it"))
        mistakes.tell()
        return Record(self, found)

    def sequence(self) -> list[Field]:
        if not isinstance(self._node, yaml.SequenceNode):
            raise self.error(f"is {_kind(self._node)}; write it as a list: [a, b]")
        return [
            Field(self.source, f"{self.path}[{index}]", node, self.lines) for index, node in enumerate(self._node.value)
        ]

    def one_or_more(self) -> list[Field]:
        """A list, or a single value that stands for a list of one."""
        return [self] if isinstance(self._node, yaml.ScalarNode) else self.sequence()

    def text(self) -> str:
        if not isinstance(self._node, yaml.ScalarNode):
            raise self.error(f"is {_kind(self._node)}; write a single value")
        if not self._node.value:
            raise self.error("is empty; write a value or leave the line out")
        return str(self._node.value)

    def choice(self, *choices: str) -> str:
        text = self.text()
        if text not in choices:
            raise self.error(f"is {text!r}; use {', '.join(choices)}")
        return text

    def integer(self) -> int:
        text = self.text()
        digits = text.removeprefix("-").replace("_", "")
        if not (digits.isascii() and digits.isdigit()) or len(digits) > 18:
            raise self.error(f"is {text!r}; write a whole number")
        return int(text)

    def number(self) -> float:
        text = self.text()
        try:
            return float(text)
        except ValueError:
            raise self.error(f"is {text!r}; write a number") from None

    def boolean(self) -> bool:
        return self.choice("true", "false") == "true"


class Record:
    """A mapping whose keys are known. `field.get("x")` is None where x is not written."""

    def __init__(self, whole: Field, found: Mapping[str, Field]) -> None:
        self.whole = whole
        self._found = found

    def __getitem__(self, key: str) -> Field:
        return self._found[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def get(self, key: str) -> Field | None:
        return self._found.get(key)

    def text(self, key: str) -> str | None:
        field = self.get(key)
        return None if field is None else field.text()

    def integer(self, key: str, default: int) -> int:
        field = self.get(key)
        return default if field is None else field.integer()

    def boolean(self, key: str) -> bool:
        field = self.get(key)
        return False if field is None else field.boolean()

    def items(self, key: str) -> list[Field]:
        field = self.get(key)
        return [] if field is None else field.one_or_more()

    def mapping(self, key: str) -> dict[str, Field]:
        field = self.get(key)
        return {} if field is None else field.mapping()


def read(text: str, source: str) -> Field:
    """The file's whole content as a field."""
    try:
        node = yaml.compose(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        line, reason = syntax.explained(text, error)
        raise NetworkError(source, line, "", f"is no YAML: {reason}") from None
    except RecursionError:
        raise NetworkError(source, 1, "", "is no YAML: brackets are nested too deep") from None
    if node is None:
        raise NetworkError(source, 1, "", "is empty; see configs/network.yaml for an example")
    return Field(source, "", node, {})


def _over(own: yaml.Node, template: yaml.Node) -> yaml.Node:
    if not (isinstance(own, yaml.MappingNode) and isinstance(template, yaml.MappingNode)):
        return own
    # By the first of a name: that one is written twice is for mapping() to find.
    said: dict[object, yaml.Node] = {}
    for key, value in own.value:
        said.setdefault(key.value if isinstance(key, yaml.ScalarNode) else id(key), value)
    merged, seen = [], set()
    for key, value in template.value:
        mine = said.get(key.value) if isinstance(key, yaml.ScalarNode) else None
        if mine is None:
            merged.append((key, value))
        else:
            seen.add(key.value)
            written = next(name for name, other in own.value if other is mine)
            merged.append((written, _over(mine, value)))
    merged += [(key, value) for key, value in own.value if key.value not in seen or value is not said.get(key.value)]
    return _like(own, merged)


def _like(node: yaml.MappingNode, pairs: list[tuple[yaml.Node, yaml.Node]]) -> yaml.MappingNode:
    return yaml.MappingNode(node.tag, pairs, node.start_mark, node.end_mark)


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a group of 'name: value' lines"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "empty" if not node.value else f"the single value {node.value!r}"
