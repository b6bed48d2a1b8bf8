"""Is what the daemon may decide for itself taken from what lives, and nothing else?"""

from __future__ import annotations

import msgspec
import pytest

from cpe_agent.core.compile import compile_dataplane
from cpe_agent.core.expected import expected
from cpe_agent.core.pathmtu import LADDER
from cpe_agent.core.return_routes import return_routes
from cpe_agent.core.verify_tunnels import tunnels
from cpe_agent.core.wanted_ruleset import answers
from cpe_agent.model.dataplane import MAIN, METRIC_RETURN, Backend, Dataplane, Route, Routes, Ruleset
from cpe_agent.model.document import Class, Document, Lan
from cpe_agent.model.observed import Charon, ChildSa, IkeSa, Links
from tests.core.documents import BRANCH, CENTRE_LAN, HUB, HUB_LINKS, LINKS, OWN_LAN, branch, hub, link, pair

SERVING, _ = compile_dataplane(hub(), HUB_LINKS, HUB, ready=True)
SILENT, _ = compile_dataplane(hub(), HUB_LINKS, HUB, ready=False)
ASKED = hub(lans=(Lan("servers", CENTRE_LAN, "lan0", check="10.10.0.10"),))
CARRYING = Charon(
    ike_sas=(
        IkeSa(
            "cpe-hospital-1-00000000",
            1,
            "ESTABLISHED",
            False,
            children=(ChildSa("traffic", 2, "INSTALLED", (CENTRE_LAN,), (OWN_LAN,)),),
        ),
    )
)
ANNOUNCED = Route(MAIN, OWN_LAN, "ipsec0", "", METRIC_RETURN)


def of_hub(
    document: Document,
    table: Ruleset | None,
    *,
    found: Links = HUB_LINKS,
    drained: bool = False,
    living: Routes = SERVING.routes,
    charon: Charon | None = None,
) -> Dataplane:
    return expected(document, found, HUB, drained, living, table, charon)[0]


def willing(dataplane: Dataplane) -> bool:
    """Do all ready addresses answer? They do together or not at all; probe addresses always."""
    assert answers(dataplane.ruleset, "10.255.1.1") and answers(dataplane.ruleset, "10.255.1.3")
    first, second = (answers(dataplane.ruleset, address) for address in ("10.255.1.2", "10.255.1.4"))
    assert first == second
    return first


@pytest.mark.parametrize("table", [SERVING.ruleset, SILENT.ruleset, None])
def test_a_hub_whose_lans_only_need_carrier_is_willing_whatever_lives(table: Ruleset | None) -> None:
    assert willing(of_hub(hub(), table))
    assert not willing(of_hub(hub(), table, drained=True))
    assert not willing(of_hub(hub(drain=True), table))
    down = Links({**HUB_LINKS.by_name, "lan0": link("lan0", "10.10.0.1/24", up=False)})
    assert not willing(of_hub(hub(), table, found=down))


@pytest.mark.parametrize(("table", "serves"), [(SERVING.ruleset, True), (SILENT.ruleset, False), (None, False)])
def test_where_only_the_daemon_knows_whether_a_lan_answers_what_lives_is_right(
    table: Ruleset | None, serves: bool
) -> None:
    assert willing(of_hub(ASKED, table)) == serves
    assert not willing(of_hub(ASKED, table, drained=True)), "that is known without it"


def test_what_a_hub_carries_is_charon_s_to_say() -> None:
    announced = of_hub(hub(), None, charon=CARRYING).routes.routes - SERVING.routes.routes
    assert announced == return_routes(hub(), CARRYING, HUB_LINKS, Backend.USERLAND) == {ANNOUNCED}
    stale = msgspec.structs.replace(SERVING.routes, routes=SERVING.routes.routes | {ANNOUNCED})
    assert of_hub(hub(), None, living=stale, charon=Charon()).routes == SERVING.routes


def test_what_is_announced_may_stay_while_charon_does_not_answer() -> None:
    others = Route(MAIN, "10.99.0.0/24", "lan0", "10.10.0.254", 0)
    living = msgspec.structs.replace(SERVING.routes, routes=SERVING.routes.routes | {ANNOUNCED, others})
    assert of_hub(hub(), None, living=living, charon=None).routes.routes == SERVING.routes.routes | {ANNOUNCED}
    wanted, _ = compile_dataplane(branch(), LINKS, BRANCH)
    living = msgspec.structs.replace(wanted.routes, routes=wanted.routes.routes | {ANNOUNCED})
    assert expected(branch(), LINKS, BRANCH, False, living, None, None)[0].routes == wanted.routes


@pytest.mark.parametrize(("size", "stays"), [(LADDER[1], True), (LADDER[-1], True), (LADDER[0] + 1, False)])
def test_a_size_that_the_daemon_tries_may_be_there_and_no_other(size: int, stays: bool) -> None:
    wanted, obstacles = compile_dataplane(branch(), LINKS, BRANCH)
    (route,) = (r for r in wanted.routes.routes if r.destination == CENTRE_LAN and r.device == "ipsec0")
    measured = msgspec.structs.replace(route, mtu=size)
    living = msgspec.structs.replace(wanted.routes, routes=wanted.routes.routes - {route} | {measured})
    found, conditions = expected(branch(), LINKS, BRANCH, False, living, wanted.ruleset, None)
    assert found.routes == (living if stays else wanted.routes)
    assert found == msgspec.structs.replace(wanted, routes=found.routes) and conditions == obstacles


# --- A budget that is spent ---


def told_of_bundles(metered: str, spent: set[str], up: set[str], carried_by: str | None) -> list[str]:
    """What `verify` says of bundles. `up`: uplinks over which charon has paths; `carried_by`: the one with traffic."""
    needs = Class(metered=metered)  # type: ignore[arg-type]
    document = branch(pairs=(pair("web", CENTRE_LAN, "centre", class_="frugal"),), classes={"frugal": needs})
    wanted, _ = compile_dataplane(document, LINKS, BRANCH)
    (bundle,) = wanted.bundles
    place = next((path for path in bundle.paths if path.uplink == carried_by), None)
    sas = []
    for number, connection in enumerate(wanted.tunnels.connections):
        if connection.path is None or connection.path.uplink not in up:
            continue
        held = ("probe", bundle.child) if connection.path == place else ("probe",)
        children = tuple(
            ChildSa(child.name, 10 * number + nth, "INSTALLED", child.local_ts, child.remote_ts)
            for nth, child in enumerate(connection.children)
            if child.name in held
        )
        sas.append(IkeSa(connection.name, number, "ESTABLISHED", True, children=children))
    charon = Charon({}, tuple(sas), True)
    asked, _ = expected(document, LINKS, BRANCH, False, wanted.routes, wanted.ruleset, charon, spent)
    return [what for _, what in tunnels(asked.tunnels, asked.bundles, charon) if what.startswith("bundle ")]


NOBODY = ["bundle centre/frugal: no CHILD_SA carries it"]
TOO_LONG = ["bundle centre/frugal: carried on lte.centre.a, whose uplink it may not use (any more)"]


@pytest.mark.parametrize(
    ("metered", "spent", "up", "carried_by", "told"),
    [
        ("budget", {"lte"}, {"lte"}, None, []),
        ("budget", {"lte", "wired"}, {"lte", "wired"}, None, []),
        # It stays off a spent uplink, and only there.
        ("budget", {"lte"}, {"lte"}, "lte", TOO_LONG),
        ("budget", {"lte"}, {"lte", "wired"}, "wired", []),
        # The daemon may know that the wired path is dead. Nobody else does.
        ("budget", {"lte"}, {"lte", "wired"}, None, NOBODY),
        ("budget", set(), {"lte"}, None, NOBODY),
        # It never uses that uplink: no budget keeps it from anything.
        ("never", {"lte"}, {"lte"}, None, NOBODY),
        ("budget", set(), {"lte"}, "lte", []),
        ("always", {"lte"}, {"lte"}, None, NOBODY),
        ("always", {"lte"}, {"lte"}, "lte", []),
    ],
)
def test_a_bundle_whose_budget_is_spent(
    metered: str, spent: set[str], up: set[str], carried_by: str | None, told: list[str]
) -> None:
    assert told_of_bundles(metered, spent, up, carried_by) == told
