"""Does the search find what a path carries, and do routes get what fits?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpe_agent.core import pathmtu, routes
from cpe_agent.core.compile import Site, compile_dataplane
from cpe_agent.core.pathmtu import LADDER, TRIES, Search, Target, with_mtus
from cpe_agent.model.dataplane import OVERLAY, Routes
from cpe_agent.model.document import Document
from cpe_agent.model.observed import Links
from tests.core.documents import (
    BRANCH,
    CENTRE_LAN,
    CENTRE_LAN_6,
    CLOUD_LAN,
    HUB,
    HUB_LINKS,
    LINKS,
    OWN_LAN,
    OWN_LAN_6,
    SHARED,
    branch,
    hub,
)

DEVICE = "ipsec0"
WIRED_CENTRE = Target("centre", "10.255.101.1", "10.255.1.1")
LTE_CENTRE = Target("centre", "10.255.101.2", "10.255.1.1")
WIRED_CLOUD = Target("cloud", "10.255.101.1", "10.255.2.1")


def searched(carries: int, own_mtu: int = 65535) -> tuple[int | None, list[int]]:
    """What the search finds on a path that carries so much, and the sizes it tried."""
    search, tried = Search(), []
    while (size := pathmtu.next_size(search)) is not None:
        tried.append(size)
        if size > own_mtu:
            search = pathmtu.missed(search, refused=True)
        else:
            search = pathmtu.answered(search) if size <= carries else pathmtu.missed(search)
    return pathmtu.result(search), tried


@given(st.integers(0, 1600), st.integers(500, 1600))
def test_that_the_largest_rung_that_passes_is_found(carries: int, own_mtu: int) -> None:
    fits = [size for size in LADDER if size <= min(carries, own_mtu)]
    found, tried = searched(carries, own_mtu)
    assert found == max(fits, default=None)
    # The top, then halves; each that fails as often as it may.
    assert len(set(tried)) <= 1 + (len(LADDER) - 1).bit_length()
    assert all(tried.count(size) <= (TRIES if size <= own_mtu else 1) for size in tried)


def test_that_the_common_case_costs_one_packet() -> None:
    assert searched(1500) == (LADDER[0], [LADDER[0]])


@pytest.mark.parametrize("lost", range(1, TRIES))
def test_that_a_lost_packet_shrinks_nothing(lost: int) -> None:
    search = Search()
    for _ in range(lost):
        search = pathmtu.missed(search)
        assert pathmtu.next_size(search) == LADDER[0]
    assert pathmtu.result(pathmtu.answered(search)) == LADDER[0]


def test_that_a_search_that_is_over_stays_as_it_is() -> None:
    over = pathmtu.answered(Search())
    assert pathmtu.next_size(over) is None
    assert pathmtu.answered(over) == pathmtu.missed(over) == over


def test_that_the_ladder_leads_down_to_what_every_host_takes() -> None:
    assert list(LADDER) == sorted(set(LADDER), reverse=True)
    # ESP around 1,438 bytes fills an Ethernet frame (measured with the kernel's ESP).
    assert LADDER[0] == 1438 and LADDER[-1] == 576


def test_that_a_dialler_measures_each_path() -> None:
    assert pathmtu.targets(branch()) == tuple(
        Target(peer, source, address)
        for peer, addresses in (("centre", ("10.255.1.1", "10.255.1.3")), ("cloud", ("10.255.2.1",)))
        for source in ("10.255.101.1", "10.255.101.2")
        for address in addresses
    )


def test_that_a_hub_measures_the_paths_of_who_dials_it_whichever_endpoint_they_dialled() -> None:
    assert pathmtu.targets(hub()) == tuple(
        Target("hospital-1", source, address)
        for source in ("10.255.1.1", "10.255.1.3")
        for address in ("10.255.101.1", "10.255.101.2")
    )


def test_that_a_subnet_gets_what_fits_on_every_path_to_every_peer_that_serves_it() -> None:
    measured = {WIRED_CENTRE: 1400, LTE_CENTRE: 1218, WIRED_CLOUD: 1378}
    found = sizes(applied(branch(), LINKS, BRANCH, measured))
    assert found[CENTRE_LAN] == 1218 and found[CLOUD_LAN] == 1378
    assert found[SHARED] == 1218
    # TCP's segments are clamped by it.
    assert found[CENTRE_LAN_6] == 1218
    # The inner addresses of paths keep the device's, or nothing larger could be measured again.
    assert found["10.255.1.1/32"] == found["10.255.2.2/32"] == 0
    assert found["10.255.0.1/32"] == 1218


def test_that_a_hub_fits_to_its_branch() -> None:
    measured = {Target("hospital-1", "10.255.1.1", "10.255.101.2"): 1218}
    found = sizes(applied(hub(), HUB_LINKS, HUB, measured))
    assert found[OWN_LAN] == 1218 and found[OWN_LAN_6] == 1218
    assert found["10.255.101.2/32"] == 0


def test_that_nothing_but_routes_into_the_tunnel_is_touched() -> None:
    plain, changed = wanted(branch(), LINKS, BRANCH), applied(branch(), LINKS, BRANCH, {WIRED_CENTRE: 1218})
    others = {r for r in plain.routes if not (r.table == OVERLAY and r.device == DEVICE)}
    assert others <= changed.routes
    assert not [route for route in changed.routes - plain.routes if route.device != DEVICE]
    assert len(changed.routes) == len(plain.routes)


def test_that_a_restarted_agent_changes_nothing_before_it_has_measured() -> None:
    living = applied(branch(), LINKS, BRANCH, {WIRED_CENTRE: 1218})
    after = with_mtus(wanted(branch(), LINKS, BRANCH), branch(), {}, DEVICE, living)
    assert routes.diff(after, living) == ()
    # What is measured is stronger than what lives.
    later = with_mtus(wanted(branch(), LINKS, BRANCH), branch(), {WIRED_CENTRE: 1400}, DEVICE, living)
    assert sizes(later)[CENTRE_LAN] == 1400


def test_that_without_any_measurement_the_device_decides() -> None:
    assert set(sizes(applied(branch(), LINKS, BRANCH, {})).values()) == {0}


def wanted(document: Document, links: Links, site: Site) -> Routes:
    return compile_dataplane(document, links, site)[0].routes


def applied(document: Document, links: Links, site: Site, measured: dict[Target, int]) -> Routes:
    return with_mtus(wanted(document, links, site), document, measured, DEVICE, Routes())


def sizes(found: Routes) -> dict[str, int]:
    return {r.destination: r.mtu for r in found.routes if r.table == OVERLAY and r.device == DEVICE}
