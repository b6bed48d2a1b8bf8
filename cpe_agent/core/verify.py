"""Does the living system hold exactly what the document asks for?

In: the wanted data plane, and what nftables, netlink and charon hold. Out: every `Difference`, in words; none when all
is as asked. Pure. What decides to repair compares for itself (`core.firewall`, `routes`, `tunnels`) and has other
questions: it may leave things alone that are on their way. Here nothing is excused: what is not as asked is told.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

from cpe_agent.core.verify_tunnels import tunnels
from cpe_agent.model.condition import Condition, Severity
from cpe_agent.model.dataplane import Dataplane, NftChain, NftSet, Routes, Ruleset
from cpe_agent.model.difference import Difference, Kind
from cpe_agent.model.observed import Charon
from cpe_agent.model.words import policy_words, route_words, rule_words

RULES = "rules"
ROUTES = "routes"
TUNNELS = "tunnels"
LINKS = "links"


def verify(
    wanted: Dataplane,
    obstacles: Iterable[Condition],
    ruleset: Ruleset | None,
    routes: Routes,
    charon: Charon | None,
    charon_error: str = "",
    strangers: Iterable[str] = (),
) -> tuple[Difference, ...]:
    """Everything that differs, by target. `obstacles`: why `wanted` could not be compiled in full, such as an uplink
    that is not there. `charon` None: it does not answer, `charon_error` says why. `strangers`: in words, what others
    hold where it could undo our routing."""
    found = [Difference(LINKS, Kind.MISSING, f"{c.subject}: {c.reason}") for c in hindering(obstacles)]
    found += [Difference(RULES, kind, what) for kind, what in _rules(wanted.ruleset, ruleset)]
    found += [Difference(ROUTES, kind, what) for kind, what in _routes(wanted.routes, routes)]
    found += [Difference(ROUTES, Kind.FOREIGN, what) for what in strangers]
    if charon is None:
        found.append(Difference(TUNNELS, Kind.MISSING, f"charon does not answer: {charon_error}"))
    else:
        found += [Difference(TUNNELS, kind, what) for kind, what in tunnels(wanted.tunnels, wanted.bundles, charon)]
    return tuple(found)


def hindering(conditions: Iterable[Condition]) -> tuple[Condition, ...]:
    """Those that are in the way. That an uplink was found by itself is a remark, and takes nothing from anybody."""
    return tuple(condition for condition in conditions if condition.severity is not Severity.OK)


def structure(wanted: Ruleset, observed: Ruleset | None) -> tuple[tuple[Kind, str], ...]:
    """What differs in the table's structure: all but the elements of sets that are as they should be."""
    return tuple(_rules(wanted, observed, elements=False))


def _rules(wanted: Ruleset, observed: Ruleset | None, *, elements: bool = True) -> Iterator[tuple[Kind, str]]:
    if observed is None:
        yield Kind.MISSING, "the whole table"
        return
    sets = {nft_set.name: nft_set for nft_set in observed.sets}
    for want in wanted.sets:
        have = sets.pop(want.name, None)
        if have is None:
            yield Kind.MISSING, f"set {want.name} with {len(want.elements)} elements"
            continue
        for name in ("type", "flags", "counter"):
            asked, found = getattr(want, name), getattr(have, name)
            if asked != found:
                yield Kind.ALTERED, f"set {want.name}: {name} is {_said(found)}, not {_said(asked)}"
        if elements:
            yield from _elements(want, have)
    for have in sets.values():
        yield _unasked(have)
    chains = {chain.name: chain for chain in observed.chains}
    for chain in wanted.chains:
        living = chains.pop(chain.name, None)
        if living is None:
            yield Kind.MISSING, f"chain {chain.name}"
        else:
            yield from _chain(chain, living)
    for chain in chains.values():
        yield Kind.FOREIGN, f"chain {chain.name}{f' ({chain.hook})' if chain.hook else ''}"


def _unasked(have: NftSet) -> tuple[Kind, str]:
    """A set that nobody asked for, or what the listing tells as one because a `Ruleset` has no place for it."""
    if have.type:
        return Kind.FOREIGN, f"set {have.name}"
    if have.name == "table":
        return Kind.ALTERED, f"the table itself: {have.flags}"
    return Kind.FOREIGN, have.name


def _elements(want: NftSet, have: NftSet) -> Iterator[tuple[Kind, str]]:
    for element in sorted(want.elements - have.elements):
        yield Kind.MISSING, f"set {want.name}: element {element}"
    for element in sorted(have.elements - want.elements):
        yield Kind.FOREIGN, f"set {want.name}: element {element}"


def _chain(want: NftChain, have: NftChain) -> Iterator[tuple[Kind, str]]:
    if want.hook != have.hook:
        yield Kind.ALTERED, f"chain {want.name}: is {_said(have.hook)}, not {_said(want.hook)}"
    matcher = difflib.SequenceMatcher(None, want.rules, have.rules, autojunk=False)
    for tag, start, end, from_, to in matcher.get_opcodes():
        if tag == "equal":
            continue
        asked, found = want.rules[start:end], have.rules[from_:to]
        if len(asked) == len(found):
            for number, (rule, other) in enumerate(zip(asked, found, strict=True), from_ + 1):
                yield Kind.ALTERED, f"chain {want.name}, rule {number}: is {_said(other)}, not {_said(rule)}"
            continue
        # A rule that has moved is told twice, where it is and where it should be: order is what rules mean.
        for number, rule in enumerate(asked, start + 1):
            yield Kind.MISSING, f"chain {want.name}, rule {number}: {rule}"
        for number, rule in enumerate(found, from_ + 1):
            yield Kind.FOREIGN, f"chain {want.name}, rule {number}: {rule}"


def _routes(wanted: Routes, observed: Routes) -> Iterator[tuple[Kind, str]]:
    for address in sorted(wanted.addresses - observed.addresses):
        yield Kind.MISSING, f"address {address}"
    for address in sorted(observed.addresses - wanted.addresses):
        yield Kind.FOREIGN, f"address {address}"
    for device in sorted(wanted.devices - observed.devices):
        yield Kind.MISSING, f"device {device}"
    for device in sorted(observed.devices - wanted.devices):
        yield Kind.FOREIGN, f"device {device}"
    for policy in sorted(wanted.policies - observed.policies):
        yield Kind.MISSING, policy_words(policy)
    for policy in sorted(observed.policies - wanted.policies):
        yield Kind.FOREIGN, policy_words(policy)
    for family in sorted(wanted.forwarding - observed.forwarding):
        yield Kind.ALTERED, f"v{family} forwarding is off, not on"
    for family in sorted(observed.forwarding - wanted.forwarding):
        yield Kind.ALTERED, f"v{family} forwarding is on, not off"
    if wanted.lenient and not observed.lenient:
        yield Kind.ALTERED, "connection tracking is strict: TCP flows that come back from another hub stop"
    missing, foreign = sorted(wanted.rules - observed.rules), sorted(observed.rules - wanted.rules)
    yield from _paired(
        [((r.family, r.priority, r.iif, r.source), rule_words(r)) for r in missing],
        [((r.family, r.priority, r.iif, r.source), rule_words(r)) for r in foreign],
    )
    lacking, stray = sorted(wanted.routes - observed.routes), sorted(observed.routes - wanted.routes)
    yield from _paired(
        [((r.table, r.destination, r.metric), route_words(r)) for r in lacking],
        [((r.table, r.destination, r.metric), route_words(r)) for r in stray],
    )


def _paired(missing: Iterable[tuple[object, str]], foreign: Iterable[tuple[object, str]]) -> Iterator[tuple[Kind, str]]:
    """What stands in a wanted thing's place has altered it; all others are missing or foreign."""
    places: dict[object, list[str]] = {}
    for place, what in foreign:
        places.setdefault(place, []).append(what)
    for place, what in missing:
        if place in places:
            yield Kind.ALTERED, f"is {places[place].pop(0)}, not {what}"
            if not places[place]:
                del places[place]
        else:
            yield Kind.MISSING, what
    for left in places.values():
        for what in left:
            yield Kind.FOREIGN, what


def _said(value: object) -> str:
    return f"'{value}'" if value != "" else "nothing"
