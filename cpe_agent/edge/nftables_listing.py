"""What does a listing of our table, as nft prints it, say?

In: the text of `list table inet cpe_agent`. Out: a `Ruleset` in canonical form, or its counters. Pure. The text is read
by its indentation, one tab for what a table holds, two for what that holds, more for the rest of a long line. What
nobody wrote on purpose must not be overlooked, so what has no place in a `Ruleset` stands in for a set:

| in the table                            | in the Ruleset                                            |
|-----------------------------------------|-----------------------------------------------------------|
| a set's property besides type and flags | in its `flags`, behind a semicolon                        |
| a map, counter, flowtable and so on     | `NftSet("map NAME", "", "its lines; joined")`             |
| a property of the table (dormant!)      | `NftSet("table", "", "flags dormant")`                    |
| a chain's comment, a nested chain       | among the rules                                           |
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Mapping
from functools import lru_cache

import msgspec

from cpe_agent.model.dataplane import NftChain, NftSet, Ruleset

# Commas and words within quotes part nothing.
_ELEMENT = re.compile(r'(?:[^",]|"[^"]*")+')
_VALUE = re.compile(r'(?:[^" ]|"[^"]*")+(?: \. (?:[^" ]|"[^"]*")+)*')
_NUMBERS = re.compile(r"[0-9]+(?:-[0-9]+)?")
_COUNTER = re.compile(r"\bcounter packets ([0-9]+) bytes ([0-9]+)")
_DROP = re.compile(r'counter packets ([0-9]+) bytes ([0-9]+) drop comment "([^"]*)"$')
_ELEMENTS = "elements = {"
# What is appended to the name of a set that has taken its predecessor's place.
SWAPPED = "_b"


def parse_table(listing: str) -> Ruleset:
    """The table in canonical form. The listing must be stateless, or counted rules would differ by their counts."""
    sets: list[NftSet] = []
    chains: list[NftChain] = []
    properties: list[str] = []
    for header, items in _blocks(listing):
        kind, _, name = header.partition(" ")
        if not items and not header.endswith("{"):
            properties.append(header)
        elif kind == "set":
            sets.append(_set(name.removesuffix(" {"), items))
        elif kind == "chain":
            chains.append(_chain(name.removesuffix(" {"), items))
        else:
            sets.append(NftSet(header.removesuffix(" {"), "", "; ".join(items)))
    if properties:
        sets.append(NftSet("table", "", "; ".join(properties)))
    return Ruleset(tuple(sorted(sets, key=_name)), tuple(sorted(chains, key=_name)))


def parse_counters(listing: str) -> dict[str, tuple[int, int]]:
    """(packets, bytes) by "SET ELEMENT" and, summed over all such rules, by "drop REASON"."""
    counters: dict[str, tuple[int, int]] = {}
    for header, items in _blocks(listing):
        kind, _, name = header.removesuffix(" {").partition(" ")
        if kind == "set":
            types, texts = _typed_elements(items)
            for text in texts:
                if found := _COUNTER.search(text):
                    counters[f"{name.removesuffix(SWAPPED)} {_canonical(types, text)}"] = (int(found[1]), int(found[2]))
        elif kind == "chain":
            for rule in items:
                if found := _DROP.search(rule):
                    packets, size = counters.get(f"drop {found[3]}", (0, 0))
                    counters[f"drop {found[3]}"] = (packets + int(found[1]), size + int(found[2]))
    return counters


def unswapped(ruleset: Ruleset) -> tuple[Ruleset, dict[str, str]]:
    """The ruleset with each set under its own name, and the names under which the swapped ones live: a set that was
    replaced while it was in use is called NAME_b until it is replaced again. With both there, nothing is translated."""
    names = {nft_set.name for nft_set in ruleset.sets}
    living = {
        name.removesuffix(SWAPPED): name
        for name in names
        if name.endswith(SWAPPED) and name.removesuffix(SWAPPED) not in names
    }
    if not living:
        return ruleset, {}
    own = {name: plain for plain, name in living.items()}
    sets = [msgspec.structs.replace(s, name=own.get(s.name, s.name)) for s in ruleset.sets]
    chains = [renamed(chain, own) for chain in ruleset.chains]
    return Ruleset(tuple(sorted(sets, key=_name)), tuple(chains)), living


def renamed(chain: NftChain, names: Mapping[str, str]) -> NftChain:
    """The chain with its rules looking into other sets."""
    rules = tuple(" ".join(_other_set(word, names) for word in rule.split(" ")) for rule in chain.rules)
    return msgspec.structs.replace(chain, rules=rules)


def _other_set(word: str, names: Mapping[str, str]) -> str:
    return f"@{names.get(word[1:], word[1:])}" if word.startswith("@") else word


def _name(named: NftSet | NftChain) -> str:
    return named.name


def _blocks(listing: str) -> Iterator[tuple[str, list[str]]]:
    """(first line, lines within) of all that the table holds. A property of the table itself has no lines within."""
    header = ""
    items: list[list[str]] = []
    for line in listing.splitlines():
        text = line.lstrip("\t")
        depth = len(line) - len(text)
        if depth == 1:
            if text != "}":
                header = text
                items = []
            if text == "}" or not text.endswith("{"):
                yield header, [" ".join(parts) for parts in items]
        elif depth == 2:
            items.append([text])
        elif depth > 2 and items:
            items[-1].append(text.lstrip(" "))


def _chain(name: str, items: list[str]) -> NftChain:
    hook = items[0] if items and items[0].startswith("type ") else ""
    return NftChain(name, hook, tuple(items[1:] if hook else items))


def _set(name: str, items: list[str]) -> NftSet:
    set_type, flags, counter, more = "", "", False, []
    for item in items:
        if item.startswith("type "):
            set_type = item.removeprefix("type ")
        elif item.startswith("flags "):
            flags = item.removeprefix("flags ")
        elif item == "counter":
            counter = True
        elif not item.startswith(_ELEMENTS):
            more.append(item)
    types, texts = _typed_elements(items)
    # What a rule adds to a set at run time (a limit per source) is nobody's wish.
    dynamic = "dynamic" in flags.split(",")
    elements = frozenset() if dynamic else frozenset(_canonical(types, text) for text in texts)
    return NftSet(name, set_type, "; ".join([flags, *more]), counter, elements)


def _typed_elements(items: list[str]) -> tuple[list[str], list[str]]:
    """The types of an element's parts, and all elements with what is printed behind them."""
    types: list[str] = []
    texts: list[str] = []
    for item in items:
        if item.startswith("type "):
            types = item.removeprefix("type ").split(" . ")
        elif item.startswith(_ELEMENTS):
            texts = [text.strip() for text in _ELEMENT.findall(item.removeprefix(_ELEMENTS).removesuffix("}"))]
    return types, [text for text in texts if text]


def _canonical(types: list[str], text: str) -> str:
    value = _VALUE.match(text)
    parts = (value[0] if value else text).split(" . ")
    if "inet_proto" in types and len(parts) == len(types):
        parts = [_number(part) if kind == "inet_proto" else part for kind, part in zip(types, parts, strict=True)]
    return " . ".join(part.strip('"') for part in parts)


@lru_cache(maxsize=512)
def _number(protocol: str) -> str:
    """nft prints the names of /etc/protocols, so they are in /etc/protocols."""
    if _NUMBERS.fullmatch(protocol):
        return protocol
    try:
        return str(socket.getprotobyname(protocol))
    except OSError:
        return protocol
