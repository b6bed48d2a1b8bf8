"""What a plan foresees is what the diffs would do, to the end, and in the order of a pass."""

from __future__ import annotations

import msgspec

from cpe_agent.core.compile import compile_dataplane
from cpe_agent.core.preview import Operation, Stage, preview
from cpe_agent.core.wanted_ruleset import pair_elements
from cpe_agent.model.dataplane import Dataplane, Routes, Ruleset
from cpe_agent.model.document import Document
from cpe_agent.model.observed import Charon
from tests.core.documents import BRANCH, LINKS, PAIRS, branch
from tests.core.test_verify import in_sync

DOCUMENT = branch()
WANTED, _ = compile_dataplane(DOCUMENT, LINKS, BRANCH)
CHARON = in_sync(WANTED)


def plan(
    wanted: Dataplane = WANTED,
    *,
    document: Document = DOCUMENT,
    ruleset: Ruleset | None = WANTED.ruleset,
    routes: Routes = WANTED.routes,
    charon: Charon | None = CHARON,
    to_the_end: bool = True,
) -> tuple[Operation, ...]:
    return preview(wanted, ruleset, routes, charon, pair_elements(document), to_the_end=to_the_end)


def words(operations: tuple[Operation, ...], stage: Stage) -> list[str]:
    return [operation.what for operation in operations if operation.stage is stage]


def test_nothing_to_do() -> None:
    assert plan() == ()
    assert plan(to_the_end=False) == ()


def test_a_new_box_gets_everything_in_the_order_of_a_pass() -> None:
    found = plan(ruleset=None, routes=Routes(), charon=Charon())
    order = list(Stage)
    assert [operation.stage for operation in found] == sorted((o.stage for o in found), key=order.index)
    assert words(found, Stage.CLOSE_RULES) == ["replace the table"]
    tunnels = words(found, Stage.TUNNELS)
    assert tunnels[0] == "load our key, our certificates and the authorities"
    paths = [connection.stem for connection in WANTED.tunnels.connections]
    assert sorted(w for w in tunnels if w.startswith("load connection")) == [f"load connection {p}" for p in paths]
    assert sorted(w for w in tunnels if w.startswith("start probe")) == [f"start probe on {p}" for p in paths]
    assert sorted(w for w in tunnels if w.startswith("start traffic")) == sorted(
        f"start {bundle.child} on {bundle.paths[0]}" for bundle in WANTED.bundles
    )


def test_the_next_pass_alone_waits_for_charon() -> None:
    found = plan(charon=msgspec.structs.replace(CHARON, ike_sas=()), to_the_end=False)
    assert len(found) == len(WANTED.tunnels.connections)
    assert len(plan(charon=msgspec.structs.replace(CHARON, ike_sas=()))) > len(found)


def test_a_silent_charon_is_not_foreseen() -> None:
    assert plan(ruleset=None, charon=None) == plan(ruleset=None)
    assert plan(charon=None) == ()


def test_elements_are_told_with_their_pairs() -> None:
    fewer = branch(pairs=PAIRS[:-1])
    wanted, _ = compile_dataplane(fewer, LINKS, BRANCH)
    found = plan(wanted)
    (closed,) = [o for o in found if o.what.endswith("from set remote_pairs4")]
    assert closed.stage is Stage.CLOSE_RULES
    assert closed.details == ("10.10.0.0/24 . 10.101.0.0/24 . 17 . 53 (pair back)",)
    opened = plan(WANTED, ruleset=wanted.ruleset)
    assert [(o.stage, o.details) for o in opened if "remote_pairs4" in o.what] == [(Stage.OPEN_RULES, closed.details)]


def test_a_bundle_that_goes_is_unloaded_and_ended() -> None:
    wanted, _ = compile_dataplane(branch(pairs=PAIRS[:1]), LINKS, BRANCH)
    found = plan(wanted)
    gone = {bundle.child for bundle in WANTED.bundles} - {bundle.child for bundle in wanted.bundles}
    ends = [w for w in words(found, Stage.TUNNELS) if w.startswith("end CHILD_SA")]
    assert len(ends) == len(gone) and all(any(f"({child}) of " in end for end in ends) for child in gone)
    loads = [o for o in found if o.what.startswith("load connection")]
    assert loads and all(any(detail.startswith("removes ") for detail in o.details) for o in loads)


def test_a_structure_that_is_replaced_says_why() -> None:
    chains = tuple(c for c in WANTED.ruleset.chains if c.name != "forward")
    (replaced,) = plan(ruleset=msgspec.structs.replace(WANTED.ruleset, chains=chains))
    assert (replaced.what, replaced.details) == ("replace the table", ("adds chain forward",))
