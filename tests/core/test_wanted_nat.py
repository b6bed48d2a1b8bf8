"""Is a branch hidden when, and only when, it is asked for?"""

from __future__ import annotations

from cpe_agent.core.wanted_nat import POSTROUTING, nat_chains
from cpe_agent.model.dataplane import Backend, NftChain


def test_nothing_unless_asked_for() -> None:
    assert nat_chains(False, Backend.USERLAND) == []


def test_what_came_through_ipsec_leaves_into_a_lan_with_our_address() -> None:
    rule = 'iifname "ipsec0" oifname @lans masquerade'
    assert nat_chains(True, Backend.USERLAND) == [NftChain("postrouting", POSTROUTING, (rule,))]
    (chain,) = nat_chains(True, Backend.KERNEL)
    assert chain.rules == ("meta ipsec exists oifname @lans masquerade",)
