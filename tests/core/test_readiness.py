"""Is a hub ready when its table says so?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpe_agent.core.readiness import ROUNDS, Check, Standing, Watch, checks, conditions, follow, ready, round_ended
from cpe_agent.model.document import Document, Lan
from tests.core.documents import CENTRE_LAN, HUB_LINKS, SHARED, branch, hub, link, links

CHECK = Check("servers", "lan0", "10.10.0.1", "10.10.0.10")
FAULTY = Check("servers", "lan0", fault="lan0 is down or has no carrier")
UNKNOWN, SERVING, FAILED = Watch(), Watch(Standing.SERVING), Watch(Standing.FAILED)


def _hub(*lans: Lan, **changes: object) -> Document:
    return hub(lans=lans, **changes)


def _after(watch: Watch, *rounds: bool, check: Check = CHECK) -> Watch:
    for answered in rounds:
        watch = round_ended(watch, check, answered)
    return watch


class TestWhichLansCount:
    def test_one_with_a_check_is_asked_from_its_own_side(self) -> None:
        document = _hub(Lan("servers", CENTRE_LAN, "lan0", check="10.10.0.10"))
        assert checks(document, HUB_LINKS) == (CHECK,)

    def test_one_with_pairs_needs_carrier_and_a_spare_one_nothing(self) -> None:
        document = _hub(Lan("servers", CENTRE_LAN, "lan0"), Lan("shared", SHARED, "lan1"))
        assert checks(document, HUB_LINKS) == (Check("servers", "lan0"),)

    def test_one_behind_a_lan_router_is_asked_through_the_router_s_lan(self) -> None:
        document = _hub(
            Lan("servers", CENTRE_LAN, "lan0"), Lan("far", "10.60.0.0/24", via="10.10.0.254", check="10.60.0.9")
        )
        assert checks(document, HUB_LINKS)[1] == Check("far", "lan0", "10.10.0.1", "10.60.0.9")

    @pytest.mark.parametrize(
        ("lan", "found", "fault"),
        [
            (Lan("servers", CENTRE_LAN, "lan7", check="10.10.0.10"), HUB_LINKS, "there is no interface lan7"),
            (Lan("servers", CENTRE_LAN, "lan0"), links(link("lan0", "10.10.0.1/24", up=False)), "no carrier"),
            # It would be asked for in the internet.
            (Lan("servers", CENTRE_LAN, "lan0", check="8.8.8.8"), HUB_LINKS, "8.8.8.8 is in no LAN"),
            (Lan("servers", CENTRE_LAN, "lan0", check="10.10.0.10"), links(link("lan0")), "has no address"),
        ],
    )
    def test_what_cannot_hold(self, lan: Lan, found: object, fault: str) -> None:
        (check,) = checks(_hub(lan), found)  # type: ignore[arg-type]
        assert fault in check.fault


class TestHysteresis:
    def test_the_first_answer_of_a_fresh_hub_is_enough(self) -> None:
        assert _after(UNKNOWN, True).standing is Standing.SERVING

    def test_a_fresh_hub_that_gets_no_answer_says_so(self) -> None:
        assert _after(UNKNOWN, False, False).standing is Standing.UNKNOWN
        failed = _after(UNKNOWN, False, False, False)
        assert failed.standing is Standing.FAILED
        assert failed.reason == "10.10.0.10 does not answer ICMP echo from 10.10.0.1"

    @pytest.mark.parametrize(
        ("rounds", "standing"),
        [
            ((False, False), Standing.SERVING),
            ((False, False, True, False, False), Standing.SERVING),
            ((False, False, False), Standing.FAILED),
            ((False, False, False, True, True), Standing.FAILED),
            ((False, False, False, True, True, False, True, True), Standing.FAILED),
            ((False, False, False, True, True, True), Standing.SERVING),
        ],
    )
    def test_three_in_a_row_count(self, rounds: tuple[bool, ...], standing: Standing) -> None:
        assert _after(SERVING, *rounds).standing is standing

    def test_a_certain_fault_counts_at_once_and_is_forgotten_like_any_other(self) -> None:
        (failed,) = follow({"servers": SERVING}, (FAULTY,), serving=True).values()
        assert failed.standing is Standing.FAILED
        (still,) = follow({"servers": failed}, (CHECK,), serving=False).values()
        assert _after(still, True, True).standing is Standing.FAILED
        assert _after(still, True, True, True).standing is Standing.SERVING

    @given(st.lists(st.booleans(), max_size=30))
    def test_it_never_changes_within_fewer_rounds(self, rounds: list[bool]) -> None:
        watch, changed_at = SERVING, 0
        for number, answered in enumerate(rounds, 1):
            after = round_ended(watch, CHECK, answered)
            if after.standing is not watch.standing:
                assert number - changed_at >= ROUNDS
                assert rounds[number - ROUNDS : number] == [answered] * ROUNDS
                changed_at = number
            watch = after


def test_a_new_check_stands_as_the_hub_does() -> None:
    assert follow({}, (CHECK,), serving=True) == {"servers": SERVING}
    assert follow({}, (CHECK,), serving=False) == {"servers": UNKNOWN}
    assert follow({"gone": FAILED}, (CHECK,), serving=True) == {"servers": SERVING}


@pytest.mark.parametrize(
    ("document", "drained", "watches", "expected", "why"),
    [
        (hub(), False, {}, True, []),
        (hub(), False, {"a": SERVING}, True, []),
        # All or nothing.
        (hub(), False, {"a": SERVING, "b": FAILED}, False, ["LanCheckFailed b"]),
        (hub(), False, {"a": UNKNOWN}, False, []),
        (hub(), True, {"a": SERVING}, False, ["Draining hub"]),
        (hub(drain=True), False, {"a": SERVING}, False, ["Draining document"]),
        (hub(drain=True), True, {"a": FAILED}, False, ["Draining hub", "Draining document", "LanCheckFailed a"]),
        (branch(), False, {}, False, []),
    ],
)
def test_who_is_ready(
    document: Document, drained: bool, watches: dict[str, Watch], expected: bool, why: list[str]
) -> None:
    assert ready(document, drained, watches) is expected
    assert [f"{c.type} {c.subject}" for c in conditions(document, drained, watches)] == why
