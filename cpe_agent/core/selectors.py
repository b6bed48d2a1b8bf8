"""Does one traffic selector cover another?

Selectors are charon's text: "10.1.0.0/24", "10.1.0.0/24[tcp]", "10.1.0.0/24[tcp/443]".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from cpe_agent.core.addresses import network


def covers(wide: str, narrow: str) -> bool:
    """Is everything that `narrow` selects selected by `wide`? Port ranges count only when they are written the same."""
    wide_net, wide_tail = _split(wide)
    narrow_net, narrow_tail = _split(narrow)
    outer, inner = network(wide_net), network(narrow_net)
    if outer.version != inner.version or not inner.subnet_of(outer):  # type: ignore[arg-type]
        return False
    return wide_tail in ("", narrow_tail) or narrow_tail.startswith(f"{wide_tail}/")


def uncovered(selectors: Iterable[str], wide: Collection[str]) -> list[str]:
    """Those that none of `wide` covers."""
    # What is written the same is by far the most common, and asks for no arithmetic.
    return [one for one in selectors if one not in wide and not any(covers(outer, one) for outer in wide)]


def outermost(selectors: Iterable[str]) -> tuple[str, ...]:
    """Without those that another one covers, sorted: charon drops these from a child, so asking for them would never
    come true."""
    kept: list[str] = []
    for selector in sorted(set(selectors), key=lambda ts: (_split(ts)[1] != "", network(_split(ts)[0]).prefixlen)):
        if not any(covers(other, selector) for other in kept):
            kept = [other for other in kept if not covers(selector, other)] + [selector]
    return tuple(sorted(kept))


def _split(selector: str) -> tuple[str, str]:
    subnet, _, tail = selector.partition("[")
    return subnet, tail.removesuffix("]")
