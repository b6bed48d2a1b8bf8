"""Whatever becomes of a document's bytes: the parser gives `DocumentError` or a document that holds together.

A sample in every run; `CPE_MUTATIONS=100000` asks for so many. Most mutations leave JSON: values are exchanged, fields
lost, doubled, renamed or moved elsewhere, numbers and words stretched; the others are of the bytes.
"""

from __future__ import annotations

import copy
import json
import os
import random
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpe_agent.model.document import Document, DocumentError, encode
from cpe_agent.model.document_check import check, decode
from tests.core.documents import branch, hub

MUTATIONS = int(os.environ.get("CPE_MUTATIONS", "2000"))
SOURCES = [json.loads(encode(document)) for document in (branch(), hub())]
# What tends to be taken for something else.
WORDS: list[Any] = [
    None, True, False, 0, 1, -1, 5, 2**31, 2**63, 2**64, -(2**63), 0.5, 1e308, "", " ", ".", "-", "a", "A", "a" * 41,
    "0", "00", "0.0.0.0", "0.0.0.0/0", "::", "::/0", "::1", "::ffff:10.0.0.1", "10.0.0.0/8", "10.0.0.1/8", "010.1.1.1",
    "10.0.0.0/255.0.0.0", "fe80::1%eth0", "255.255.255.255", "224.0.0.1", "127.0.0.1", "1-65535", "0-1", "65536", "tcp",
    "udp", "icmp", "256", "\u0000", "\ud800", "\u2028", "٣", "2026-01-01T00:00:00", "9999-12-31T23:59:59Z",
    "0001-01-01T00:00:00Z", "2026-02-30T00:00:00Z", [], {}, [[]], {"": ""}, ["a", "a"], "%any", "*", "local", "hub",
]  # fmt: skip

Place = tuple[Any, Any]


def _places(value: Any) -> list[Place]:
    """Every (container, key) in it."""
    found: list[Place] = []
    if isinstance(value, dict):
        found += [(value, key) for key in value]
    elif isinstance(value, list):
        found += [(value, index) for index in range(len(value))]
    for container, key in list(found):
        found += _places(container[key])
    return found


def mutated(chance: random.Random) -> bytes:
    document = copy.deepcopy(chance.choice(SOURCES))
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        places = _places(document)
        if not places:
            break
        container, key = chance.choice(places)
        kind = chance.randrange(7)
        if kind <= 1:
            container[key] = copy.deepcopy(chance.choice(WORDS))
        elif kind == 2:
            del container[key]
        elif kind == 3:
            other, there = chance.choice(places)
            container[key] = copy.deepcopy(other[there])
        elif kind == 4 and isinstance(container, dict):
            container[chance.choice([str(key).upper(), f"{key}x", "", "a b", str(key)[:-1]])] = container.pop(key)
        elif kind == 5 and isinstance(container, list):
            container.insert(chance.randrange(len(container) + 1), copy.deepcopy(container[key]))
        elif isinstance(container[key], str):
            text = container[key]
            at = chance.randrange(len(text) + 1)
            container[key] = text[:at] + chance.choice(["", "0", ".", "/", ":", "-", " ", "é", text]) + text[at + 1 :]
        elif isinstance(container[key], int):
            container[key] += chance.choice((-1, 1, 2**16, 2**40))
    raw = json.dumps(document).encode()
    if chance.random() < 0.15:  # and some of the bytes
        at = chance.randrange(len(raw))
        raw = raw[:at] + chance.choice([b"", b"\x00", b"\xff", b'"', b"[" * 5000, b"1e999", raw[:at]]) + raw[at + 1 :]
    return raw


_seen: Counter[str] = Counter()


@settings(max_examples=MUTATIONS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**64))
def _mutations(seed: int) -> None:
    raw = mutated(random.Random(seed))
    try:
        json.loads(raw)
        _seen["json"] += 1
    except (ValueError, RecursionError):
        _seen["bytes"] += 1
    try:
        document = decode(raw)
    except DocumentError as error:
        _seen["refused"] += 1
        assert error.reason
        return
    _seen["good"] += 1
    assert isinstance(document, Document)
    check(document)
    assert decode(encode(document)) == document, "what is good is good again after a round trip"


def test_mutated_documents() -> None:
    _seen.clear()
    _mutations()
    total = _seen["json"] + _seen["bytes"]
    assert total >= MUTATIONS * 0.9
    assert _seen["json"] > 0.7 * total, "most of them are JSON still"
    assert min(_seen["good"], _seen["refused"]) > 0.02 * total, f"the mutations say nothing: {_seen}"


@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes(raw: bytes) -> None:
    try:
        decode(raw)
    except DocumentError:
        return
    raise AssertionError(f"{raw!r} is a document")
