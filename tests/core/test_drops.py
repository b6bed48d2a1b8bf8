"""Is everything that is dropped counted by its reason, and a sample of it logged?"""

from __future__ import annotations

import re

import pytest

from cpe_agent.core.wanted_chains import LOG_SAMPLE
from cpe_agent.core.wanted_ruleset import ruleset
from cpe_agent.model.dataplane import Backend, NftChain, Ruleset
from cpe_agent.model.document import Document
from tests.core.documents import branch, hub

_DROP = re.compile(r'counter drop comment "(\w+)"')
TABLES = [
    pytest.param(ruleset(document, backend), id=f"{document.role if document else 'blank'}-{backend.value}")
    for document in (branch(), hub(), None)
    for backend in Backend
]


def drops(table: Ruleset) -> list[tuple[NftChain, int, str]]:
    """(chain, index of the rule, reason) of every rule that drops."""
    found = []
    for chain in table.chains:
        for index, rule in enumerate(chain.rules):
            if "drop" in rule.split(" "):
                match = _DROP.fullmatch(rule)
                assert match, f"not counted, or under a condition of its own: {rule}"
                found.append((chain, index, match[1]))
    return found


@pytest.mark.parametrize("table", TABLES)
def test_each_reason_is_counted_and_sampled_in_one_place(table: Ruleset) -> None:
    found = drops(table)
    reasons = [reason for _, _, reason in found]
    assert len(reasons) == len(set(reasons))
    for chain, index, reason in found:
        assert chain.rules[index - 1] == f'{LOG_SAMPLE} log prefix "cpe_agent {reason}: "'
        assert index == len(chain.rules) - 1


@pytest.mark.parametrize("table", TABLES)
def test_what_is_jumped_to_is_there_and_used(table: Ruleset) -> None:
    names = {chain.name for chain in table.chains if not chain.hook}
    jumps = [rule.split(" ")[-1] for chain in table.chains for rule in chain.rules if " jump " in rule]
    assert set(jumps) == names


def test_what_there_is_to_be_told() -> None:
    common = {
        *("unlisted", "spoofed", "cleartext", "breakout"),
        *("input", "tunnel_input", "lan_input", "uplink_input", "uplink_output"),
    }
    known = {True: common | {"ike_init_known", "ike_init_source", "ike_init_all"}, False: common}
    document: Document
    for document in (branch(), hub()):
        found = {reason for _, _, reason in drops(ruleset(document, Backend.USERLAND))}
        assert found == known[document.role == "hub"]
