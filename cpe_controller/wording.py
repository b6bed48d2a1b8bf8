"""What does this change mean for the site, in words?

Pure. In: a site's document before and after. Out: lines for people, the weightiest first: who may talk, who is there,
and then whatever else differs, field by field. Version and times are not content.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from cpe_agent.model.document import Document, Pair, Peer

_NO_CONTENT = ("epoch", "version", "issued_at", "expires_at", "allow_mass_removal")
_SAID_APART = (*_NO_CONTENT, "pairs", "peers", "trust")


def differences(before: Document, after: Document) -> list[str]:
    """Nothing, if only version and times differ."""
    return [
        *_pairs(before.pairs, after.pairs),
        *_peers(before.peers, after.peers),
        *_trust(before, after),
        *_lifetime(before, after),
        *(
            line
            for name in before.__struct_fields__
            if name not in _SAID_APART
            for line in _walk(name, getattr(before, name), getattr(after, name))
        ),
    ]


def introduction(document: Document) -> list[str]:
    """A site that had no document."""
    lans = ", ".join(f"{lan.name} {lan.subnet}" for lan in document.lans) or "none"
    return [
        f"a new {document.role} with the address {document.site_address}",
        f"uplinks: {', '.join(document.uplinks)}; LANs: {lans}",
        *_pairs((), document.pairs),
    ]


def counted(number: int, one: str) -> str:
    """1 hub, 2 hubs."""
    return f"{number} {one}" if number == 1 else f"{number} {one}s"


def _pairs(before: tuple[Pair, ...], after: tuple[Pair, ...]) -> Iterator[str]:
    old, new = ({pair.id: pair for pair in pairs} for pairs in (before, after))
    for name in old.keys() - new.keys() if old else ():
        yield f"may no longer talk: {_said(old[name])}"
    for name, pair in new.items():
        if name not in old:
            yield f"may talk: {_said(pair)}"
        elif pair != old[name]:
            yield from _walk(f"pair {name}", old[name], pair)
    common = [name for name in old if name in new]
    if common != [name for name in new if name in old]:
        yield "the pairs are in another order"


def _said(pair: Pair) -> str:
    what = pair.protocol or "anything"
    ports = f" {','.join(pair.ports)}" if pair.ports else ""
    return f"{pair.id} ({pair.local} with {pair.remote}, {what}{ports}, by way of {', '.join(pair.peers)})"


def _peers(before: Mapping[str, Peer], after: Mapping[str, Peer]) -> Iterator[str]:
    for name in before:
        if name not in after:
            yield f"peer {name} goes"
    for name, peer in after.items():
        if name not in before:
            yield f"peer {name} comes"
        elif peer.identity != before[name].identity:
            yield f"peer {name} is another box: {before[name].identity} becomes {peer.identity}"
        if name in before:
            yield from _walk(f"peer {name}", msgspec.structs.replace(before[name], identity=peer.identity), peer)


def _trust(before: Document, after: Document) -> Iterator[str]:
    old, new = before.trust, after.trust
    if old.signing_keys != new.signing_keys:
        yield f"believes documents signed by {', '.join(key.id for key in new.signing_keys)}"
    if old.cas != new.cas:
        yield f"trusts {len(new.cas)} authorities, {len(set(new.cas) - set(old.cas))} of them new"


def _lifetime(before: Document, after: Document) -> Iterator[str]:
    old, new = (each.expires_at - each.issued_at for each in (before, after))
    if old != new:
        yield f"lifetime_days: {old.days} becomes {new.days}"


def _walk(path: str, before: Any, after: Any) -> Iterator[str]:
    """Every leaf that differs, with its path."""
    if before == after:
        return
    old, new = _children(before), _children(after)
    if old is None or new is None:
        yield f"{path}: {_value(before)} becomes {_value(after)}"
        return
    for name in old:
        if name not in new:
            yield f"{path}.{name} goes"
    for name, value in new.items():
        if name not in old:
            yield f"{path}.{name} comes: {_value(value)}"
        else:
            yield from _walk(f"{path}.{name}", old[name], value)


def _children(value: Any) -> Mapping[str, Any] | None:
    """What has names inside, by name."""
    if isinstance(value, msgspec.Struct):
        return {name: getattr(value, name) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return value
    if isinstance(value, tuple) and value and all(hasattr(item, "name") for item in value):
        return {item.name: item for item in value}
    return None


def _value(value: Any) -> str:
    if value is None or value == ():
        return "nothing"
    if isinstance(value, tuple) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, str | int | float) else msgspec.json.encode(value).decode()
