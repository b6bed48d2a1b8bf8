"""Do the limits on IKE_SA_INIT stand where they must, and touch nothing else?"""

from __future__ import annotations

import re

import pytest

from cpe_agent.core.wanted_ruleset import INIT_SOURCES, ruleset
from cpe_agent.model.dataplane import Backend, Ruleset
from tests.core.documents import branch, hub

BOTH = pytest.mark.parametrize("backend", list(Backend))


def rules(table: Ruleset, chain: str) -> tuple[str, ...]:
    return next((found.rules for found in table.chains if found.name == chain), ())


@BOTH
def test_that_a_flood_cannot_hide_among_what_is_established(backend: Backend) -> None:
    """charon's answer to the first packet from a port makes conntrack take the rest for a flow."""
    judged = rules(ruleset(hub(), backend), "input")
    limits = next(i for i, rule in enumerate(judged) if rule.endswith("jump ike_init"))
    assert limits < judged.index("ct state established,related accept")
    # Nor may it come in by claiming a protected address, or touch what comes out of a tunnel.
    assert all(i < limits for i, rule in enumerate(judged) if "cleartext" in rule or "jump from_tunnel" in rule)


@BOTH
def test_that_nothing_but_ike_sa_init_from_outside_is_limited(backend: Backend) -> None:
    table = ruleset(hub(), backend)
    jumps = [rule for chain in table.chains for rule in chain.rules if rule.endswith("jump ike_init")]
    # Non-ESP marker, and no responder's SPI: neither ESP nor anything of an IKE_SA that has been answered.
    assert jumps == ["iifname @uplinks udp dport 4500 @th,64,32 0x0 @th,160,64 0x0 jump ike_init"]
    assert "udp dport 4500 accept" in rules(table, "from_uplink")


@BOTH
def test_that_who_is_known_passes_apart_from_the_crowd(backend: Backend) -> None:
    judged = rules(ruleset(hub(), backend), "ike_init")
    for version, family in ((4, "ip"), (6, "ip6")):
        known = judged.index(f"{family} saddr . udp sport @ike_known{version} accept")
        own = next(i for i, rule in enumerate(judged) if f"@ike_again{version}" in rule)
        crowd = [i for i, rule in enumerate(judged) if rule.endswith(("drop_ike_init_source", "drop_ike_init_all"))]
        assert own < known < min(crowd)
    # Each limit is counted, by its name.
    reasons = [found[1] for rule in judged if (found := re.search(r"jump drop_(\w+)$", rule))]
    assert reasons == ["ike_init_known"] * 2 + ["ike_init_source"] * 2 + ["ike_init_all"]


@BOTH
def test_that_only_esp_makes_known(backend: Backend) -> None:
    """An answer to a stranger's IKE_SA_INIT must not: the marker tells it from ESP."""
    adding = [rule for chain in ruleset(hub(), backend).chains for rule in chain.rules if "add @ike_known" in rule]
    assert len(adding) == 2
    assert all(rule.startswith("oifname @uplinks udp sport 4500 @th,64,32 != 0x0 ip") for rule in adding)
    assert set(adding) <= set(rules(ruleset(hub(), backend), "output"))


@BOTH
def test_that_what_sources_can_fill_is_bounded(backend: Backend) -> None:
    sets = {found.name: found.flags for found in ruleset(hub(), backend).sets if found.name.startswith("ike_")}
    assert len(sets) == 6
    assert all(re.fullmatch(rf"dynamic,timeout; size {INIT_SOURCES}; timeout 1[mh]", flags) for flags in sets.values())


@BOTH
def test_that_a_branch_answers_nobody_and_needs_no_limits(backend: Backend) -> None:
    table = ruleset(branch(), backend)
    # What is counted is not judged.
    assert not [r for chain in table.chains for r in chain.rules if "4500" in r and "@spent_on_ike" not in r]
    assert not [found for found in table.sets if found.name.startswith("ike_")]
    assert not [found for found in table.chains if "ike_" in found.name]
