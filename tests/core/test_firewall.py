"""Does the diff end where it should, and is nothing admitted on the way that neither end admits?"""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from cpe_agent.core.firewall import diff
from cpe_agent.core.wanted_ruleset import ruleset
from cpe_agent.model.dataplane import Backend, NftChain, NftSet, Ruleset
from cpe_agent.model.ops import AddElements, DeleteElements, DeleteTable, FirewallOp, ReplaceSet, ReplaceTable
from tests.core import documents

elements = st.frozensets(st.integers(0, 9).map(lambda n: f"10.0.0.{n}"))


def tables(names: tuple[str, ...] = ("a", "b", "c")) -> st.SearchStrategy[Ruleset]:
    chains = (NftChain("forward", "type filter hook forward priority filter; policy drop;", ("counter drop",)),)
    return st.tuples(*(elements for _ in names)).map(
        lambda found: Ruleset(
            tuple(NftSet(n, "ipv4_addr", "interval", elements=e) for n, e in zip(names, found, strict=True)), chains
        )
    )


def apply(table: Ruleset | None, op: FirewallOp) -> Ruleset | None:
    """As nftables does it; what nftables would refuse or get wrong is an error."""
    match op:
        case ReplaceTable(wanted):
            return wanted
        case DeleteTable():
            return None
        case ReplaceSet(new):
            assert table is not None
            sets = tuple(new if s.name == new.name else s for s in table.sets)
            return Ruleset(sets, table.chains)
    assert table is not None
    by_name = {s.name: s for s in table.sets}
    edited = by_name[op.set_name]
    assert edited.type == op.set_type and op.elements
    if isinstance(op, DeleteElements):
        assert op.elements <= edited.elements, "deleting what is absent deletes what covers it"
        left = edited.elements - op.elements
    else:
        assert not op.elements & edited.elements
        left = edited.elements | op.elements
    by_name[op.set_name] = msgspec.structs.replace(edited, elements=left)
    return Ruleset(tuple(sorted(by_name.values())), table.chains)


def admitted(table: Ruleset | None) -> frozenset[tuple[str, str]]:
    return frozenset((s.name, e) for s in table.sets for e in s.elements) if table else frozenset()


@given(tables(), st.one_of(tables(), tables(("a", "b")), st.none()))
def test_the_diff_ends_at_the_wanted_table_without_a_detour(wanted: Ruleset, observed: Ruleset | None) -> None:
    closing, opening = diff(wanted, observed)
    table = observed
    for op in closing:
        table = apply(table, op)
        assert admitted(table) <= admitted(wanted) | admitted(observed)
    # Once closed, nothing is left that is not wanted: routes and tunnels are changed behind a closed door.
    assert admitted(table) <= admitted(wanted)
    for op in opening:
        assert isinstance(op, AddElements)
        table = apply(table, op)
        assert admitted(table) <= admitted(wanted)
    assert table == wanted
    assert diff(wanted, table) == ((), ())


@given(tables(), tables())
def test_what_only_goes_is_closing_and_what_only_comes_is_opening(one: Ruleset, other: Ruleset) -> None:
    fewer = Ruleset(
        tuple(
            msgspec.structs.replace(s, elements=s.elements & t.elements)
            for s, t in zip(one.sets, other.sets, strict=True)
        ),
        one.chains,
    )
    assert diff(fewer, one)[1] == ()
    assert diff(one, fewer)[0] == ()


def test_structure_is_replaced_whole() -> None:
    wanted = ruleset(documents.branch(), Backend.USERLAND)
    for observed in (None, ruleset(documents.branch(), Backend.KERNEL)):
        assert diff(wanted, observed) == ((ReplaceTable(wanted),), ())
    foreign = Ruleset(wanted.sets, (*wanted.chains[:-1], NftChain("x", "", ("accept",))))
    assert diff(wanted, foreign) == ((ReplaceTable(wanted),), ())


def test_every_base_chain_of_the_wanted_table_drops_by_rule_as_well() -> None:
    for document in (None, documents.branch(), documents.hub()):
        for backend in Backend:
            for chain in ruleset(document, backend).chains:
                if "policy drop" in chain.hook:
                    assert chain.rules[-1].startswith("counter drop")


def test_a_new_pair_is_one_element_and_no_rule() -> None:
    before = ruleset(documents.branch(), Backend.USERLAND)
    more = (*documents.PAIRS, documents.pair("more", documents.CENTRE_LAN, "centre", protocol="tcp", ports=("22",)))
    closing, opening = diff(ruleset(documents.branch(pairs=more), Backend.USERLAND), before)
    assert closing == ()
    assert [(op.set_name, op.elements) for op in opening if isinstance(op, AddElements)] == [
        ("local_pairs4", frozenset({"10.101.0.0/24 . 10.10.0.0/24 . 6 . 22"}))
    ]


def test_where_many_go_the_set_is_replaced() -> None:
    """Deleting a hundred of ten thousand takes the kernel seconds."""
    lan = documents.CENTRE_LAN
    many = tuple(
        documents.pair(f"p{port}", lan, "centre", protocol="tcp", ports=(str(port),)) for port in range(1, 2001, 2)
    )
    before = ruleset(documents.branch(pairs=many), Backend.USERLAND)
    wanted = ruleset(documents.branch(pairs=many[100:]), Backend.USERLAND)
    closing, opening = diff(wanted, before)
    assert opening == ()
    (op,) = closing
    assert isinstance(op, ReplaceSet) and op.new.name == "local_pairs4"
    # Every rule that looks into the set moves with it.
    assert {chain.name for chain in op.chains} == {
        chain.name for chain in wanted.chains if any(f"@{op.new.name} " in f"{rule} " for rule in chain.rules)
    }
    assert apply(before, op) == wanted
