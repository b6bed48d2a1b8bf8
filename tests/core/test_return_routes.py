"""Does a hub announce what it carries, and nothing else?"""

from __future__ import annotations

import msgspec
import pytest

from cpe_agent.core.return_routes import return_routes
from cpe_agent.model.dataplane import MAIN, METRIC_RETURN, Backend, Route
from cpe_agent.model.observed import Charon, ChildSa, IkeSa
from tests.core.documents import CENTRE_LAN, HUB_LINKS, LINKS, OWN_LAN, OWN_LAN_6, WIRED, branch, hub, links

SITE = "10.255.0.101/32"
PATH = "10.255.101.1/32"


def _charon(
    *remote_ts: str,
    name: str = "traffic",
    state: str = "INSTALLED",
    ike_state: str = "ESTABLISHED",
    stem: str = "hospital-1",
) -> Charon:
    child = ChildSa(name, 1, state, (CENTRE_LAN,), remote_ts)
    return Charon(ike_sas=(IkeSa(f"cpe-{stem}-00000000", 1, ike_state, False, children=(child,)),))


@pytest.mark.parametrize(
    ("charon", "carried"),
    [
        (Charon(), set()),
        (_charon(OWN_LAN, OWN_LAN_6, SITE), {OWN_LAN, OWN_LAN_6, SITE}),
        (_charon(OWN_LAN), {OWN_LAN}),
        # Apart by protocol, wider than the LAN, and a part of it.
        (_charon(f"{OWN_LAN}[tcp/443]"), {OWN_LAN}),
        (_charon("10.101.0.0/16"), {OWN_LAN}),
        (_charon("10.101.0.128/25"), {"10.101.0.128/25"}),
        (_charon("10.99.0.0/24"), set()),
        (_charon(OWN_LAN, state="REKEYED"), {OWN_LAN}),
        (_charon(OWN_LAN, state="DELETING"), set()),
        (_charon(OWN_LAN, ike_state="CONNECTING"), set()),
        (_charon(OWN_LAN, stem="stranger"), set()),
        (_charon(PATH, name="probe"), set()),
    ],
)
def test_what_is_carried(charon: Charon, carried: set[str]) -> None:
    found = return_routes(hub(), charon, HUB_LINKS, Backend.USERLAND)
    assert found == {Route(MAIN, subnet, "ipsec0", "", METRIC_RETURN) for subnet in carried}


def test_that_no_route_leads_anywhere_but_into_the_tunnel_device() -> None:
    gone = links(*(link for name, link in HUB_LINKS.by_name.items() if name != "ipsec0"))
    assert return_routes(hub(), _charon(OWN_LAN), gone, Backend.USERLAND) == frozenset()


def test_that_its_own_lans_are_never_announced_as_a_branch_s() -> None:
    document = hub()
    peer = msgspec.structs.replace(document.peers["hospital-1"], lans=(CENTRE_LAN, OWN_LAN))
    document = msgspec.structs.replace(document, peers={"hospital-1": peer})
    found = return_routes(document, _charon(CENTRE_LAN, OWN_LAN), HUB_LINKS, Backend.USERLAND)
    assert {route.destination for route in found} == {OWN_LAN}


def test_that_a_branch_and_a_hub_that_dials_announce_nothing() -> None:
    assert return_routes(branch(), _charon(CENTRE_LAN, stem="centre"), LINKS, Backend.USERLAND) == frozenset()
    document = hub()
    dialled = msgspec.structs.replace(document.peers["hospital-1"], dial=True)
    document = msgspec.structs.replace(document, peers={"hospital-1": dialled})
    assert return_routes(document, _charon(OWN_LAN), links(WIRED, LINKS.by_name["ipsec0"]), Backend.USERLAND) == set()
