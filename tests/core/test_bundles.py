"""In which order may a class use the uplinks?"""

from __future__ import annotations

import msgspec
import pytest

from cpe_agent.core.uplinks import resolve
from cpe_agent.core.wanted_tunnels import bundles, connections, selectors
from cpe_agent.model.dataplane import Backend
from cpe_agent.model.document import Class, Document
from tests.core.documents import CENTRE_LAN, LINKS, branch, pair

WIRED_FIRST = ["wired.centre.a", "wired.centre.b", "lte.centre.a"]
LTE_FIRST = ["lte.centre.a", "wired.centre.a", "wired.centre.b"]


def document(needs: Class, lte_bytes: int | None = None, wired_bytes: int | None = None) -> Document:
    found = branch(pairs=(pair("web", CENTRE_LAN, "centre", class_="c"),), classes={"c": needs})
    uplinks = {
        "wired": msgspec.structs.replace(found.uplinks["wired"], monthly_bytes=wired_bytes),
        "lte": msgspec.structs.replace(found.uplinks["lte"], monthly_bytes=lte_bytes),
    }
    return msgspec.structs.replace(found, uplinks=uplinks)


def paths(asked: Document) -> list[str]:
    (bundle,) = bundles(asked, resolve(asked, LINKS)[0])
    assert bundle.needs == asked.classes["c"]
    return [str(path) for path in bundle.paths]


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        (Class(), WIRED_FIRST),
        (Class(uplinks=("cellular",)), LTE_FIRST),
        (Class(uplinks=("lte",)), LTE_FIRST),
        (Class(uplinks=("lte", "wired")), LTE_FIRST),
        (Class(uplinks=("wired",)), WIRED_FIRST),
        (Class(uplinks=("somewhere-else", "cellular")), LTE_FIRST),
        (Class(metered="never"), ["wired.centre.a", "wired.centre.b"]),
        (Class(metered="budget"), WIRED_FIRST),
    ],
)
def test_order(needs: Class, expected: list[str]) -> None:
    assert paths(document(needs)) == expected


def test_never_uses_no_uplink_with_monthly_bytes_either() -> None:
    asked = document(Class(metered="never"), wired_bytes=10**9)
    assert paths(asked) == []
    uplinks = resolve(asked, LINKS)[0]
    children = {
        c.name for one in connections(asked, uplinks, "x", Backend.USERLAND, selectors(asked)) for c in one.children
    }
    assert children == {"probe"}
