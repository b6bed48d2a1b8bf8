"""By which operations does the living nftables table become the wanted one?

In: wanted `Ruleset`, observed `Ruleset` (None: there is no table). Out: operations, closing ones apart from opening
ones, because the order across targets is: close rules, routes, tunnels, open rules. Structure (chains, set types) is
replaced whole, in one transaction with an explicit final drop in every base chain, so nothing passes in between that
should not. Elements are edited one by one, or, where so many go that the kernel would take longer over that, the set is
replaced. Only elements that were read are deleted: nftables would otherwise delete the element that covers them.
"""

from __future__ import annotations

from cpe_agent.model.dataplane import NftChain, NftSet, Ruleset
from cpe_agent.model.ops import AddElements, DeleteElements, FirewallOp, ReplaceSet, ReplaceTable

# Deleting takes the kernel about 4 us x elements in the set x elements deleted; replacing a set of 10,000 takes about
# 0.1 s whatever goes.
REPLACE_FROM = 30_000
LOCKS = frozenset({"protected4", "protected6", "uplinks"})


def diff(wanted: Ruleset, observed: Ruleset | None) -> tuple[tuple[FirewallOp, ...], tuple[FirewallOp, ...]]:
    """(closing, opening) operations. Each tuple is one transaction; both are empty when all is as wanted."""
    if observed is None or _structure(wanted) != _structure(observed):
        return (ReplaceTable(wanted),), ()
    closing: list[FirewallOp] = []
    opening: list[FirewallOp] = []
    for want, have in zip(wanted.sets, observed.sets, strict=True):
        gone, new = have.elements - want.elements, want.elements - have.elements
        if len(gone) * len(have.elements) > REPLACE_FROM:
            closing.append(ReplaceSet(want, tuple(c for c in wanted.chains if _looks_into(c, want.name))))
            continue
        # What is protected or an uplink is a lock itself: more of it closes.
        if new and not gone and want.name in LOCKS:
            closing.append(AddElements(want.name, want.type, new))
            continue
        # An interval set refuses an element that overlaps one still there, so old and new of one set go together.
        if gone and new:
            closing += [DeleteElements(want.name, want.type, gone), AddElements(want.name, want.type, new)]
        elif gone:
            closing.append(DeleteElements(want.name, want.type, gone))
        elif new:
            opening.append(AddElements(want.name, want.type, new))
    return tuple(closing), tuple(opening)


def _looks_into(chain: NftChain, name: str) -> bool:
    return any(f"@{name}" in rule.split() for rule in chain.rules)


def _structure(ruleset: Ruleset) -> tuple[object, object]:
    bare = tuple(NftSet(s.name, s.type, s.flags, s.counter) for s in ruleset.sets)
    return bare, ruleset.chains
