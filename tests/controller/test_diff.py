"""diff: which sites change, and how, in words that say it all."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpe_controller import commands, setup
from cpe_controller.commands import answering


@pytest.mark.parametrize(
    ("old", "new", "site", "said"),
    [
        ("failback_s: 60", "failback_s: 61", "van-1", ["policy.failback_s: 60 becomes 61"]),
        (
            "ports: [80, 443, 8000-8010]",
            "ports: [443]",
            "van-1",
            ["pair van-1.crew>imaging.ports: 80, 443, 8000-8010 becomes 443"],
        ),
        (
            "  - {from: branches, to: imaging}\n",
            "",
            "van-1",
            ["may no longer talk: van-1.crew>imaging (10.102.0.0/24 with 10.20.0.0/24, tcp 80,443,8000-8010, by way of "
             "cloud)"],
        ),
        (
            "lte: {kind: cellular}\n",
            "lte: {kind: cellular, mtu: 1400}\n      dsl: {kind: wired}\n",
            "van-1",
            ["uplinks.dsl comes: ", "uplinks.lte.mtu: nothing becomes 1400"],
        ),
        ("address: 198.51.100.20}", "address: 198.51.100.21}", "van-1",
         ["peer cloud.endpoints.wan.address: 198.51.100.20 becomes 198.51.100.21"]),
        ("controllers: [", "lifetime_days: 30\ncontrollers: [", "centre", ["lifetime_days: 90 becomes 30"]),
    ],
)  # fmt: skip
def test_a_change_is_told_in_words(state: Path, text: str, old: str, new: str, site: str, said: list[str]) -> None:
    setup.apply(state, text)
    assert old in text
    answer = answering.run(state, commands.Diff(text.replace(old, new, 1), "network.yaml"), "tester")
    words = answer.data[site]
    assert len(words) == len(said)
    for word, start in zip(words, said, strict=True):
        assert word.startswith(start)
    assert f"  {words[0]}" in answer.lines
    # Nothing was changed by asking.
    assert setup.apply(state, text).published == {}


def test_sites_that_come_and_go_are_told(state: Path, text: str) -> None:
    van = "  van-2:\n    uplinks: {lte: {kind: cellular}}\n    lans: {crew: {subnet: 10.103.0.0/24, interface: lan0}}\n"
    setup.apply(state, text)
    grown = text.replace("branches:\n", f"branches:\n{van}", 1)
    words = answering.run(state, commands.Diff(grown, "x"), "tester").data
    assert set(words) == {"centre", "cloud", "van-2"}
    assert words["van-2"][0] == "a new branch with the address 10.255.0.14"
    assert any(line.startswith("may talk: van-2.crew>records") for line in words["van-2"])
    assert "peer van-2 comes" in words["centre"]
    setup.apply(state, grown)
    words = answering.run(state, commands.Diff(text, "x"), "tester").data
    assert words["van-2"] == ["is no longer in the network: its document is withdrawn"]
    assert "peer van-2 goes" in words["cloud"]


def test_what_sites_would_refuse_is_said_before(state: Path, text: str) -> None:
    """By the very rule by which they do."""
    setup.apply(state, text)
    less = text.replace("  - {from: branches, to: imaging}\n", "", 1)
    assert "REFUSE" not in "".join(answering.run(state, commands.Diff(less, "x"), "tester").lines)
    least = less.replace("  - {from: [hospital-1, van-1], to: directory, initiator: either}\n", "", 1)
    assert least != less
    answer = answering.run(state, commands.Diff(least, "x"), "tester")
    assert answer.lines[-1].startswith("cloud, hospital-1, van-1 would REFUSE this")
    assert answer.lines[-1].endswith("apply --allow-mass-removal")
    assert answer.lines[-2] == "4 sites would change, 0 would not"
