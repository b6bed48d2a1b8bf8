"""What is a second IKE_SA of one path: a replacement, a leftover, or a cloned key? Told by what comes in, over time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cpe_agent.core.doubled import HEARD_S, MEET_AGAIN_S, OVERLAP_S, Doubled, by_path, step
from cpe_agent.core.duplicates import duplicates
from cpe_agent.core.stale import stale
from cpe_agent.core.tunnels import step as tunnels_step
from cpe_agent.core.wanted_tunnels import connections
from cpe_agent.model.dataplane import Tunnels
from cpe_agent.model.observed import Charon, ChildSa, IkeSa
from cpe_agent.model.ops import Initiate, TerminateIke
from tests.core.documents import HUB, hub

HERE = ("10.255.1.1/32", "10.255.1.2/32")
THERE = ("10.255.101.1/32",)
OTHER_UPLINK = ("10.255.101.2/32",)
OTHER_ENDPOINT = ("10.255.1.3/32", "10.255.1.4/32")
LOOK_S = 10.0

Bytes = Callable[[float], int]


def grows(at: float) -> int:
    return int(at * 100) + 84


def rests(at: float) -> int:
    return 84


def sa(
    number: int,
    probed: int = 0,
    traffic: tuple[int, int] = (0, 0),
    *,
    host: str = "203.0.113.1",
    there: tuple[str, ...] = THERE,
    here: tuple[str, ...] = HERE,
    initiator: bool = False,
    busy: bool = False,
    connection: str = "cpe-hospital-1-0f1e2d3c",
) -> IkeSa:
    children = (
        ChildSa("probe", number * 10, "INSTALLED", here, there, probed, probed),
        ChildSa("traffic", number * 10 + 1, "INSTALLED", ("10.10.0.0/24",), ("10.101.0.0/24",), *traffic),
    )
    return IkeSa(connection, number, "ESTABLISHED", initiator, "hospital-1.city", host, busy, children)


def watch(look: Callable[[float], Charon], seconds: float) -> Doubled:
    """One look every ten seconds, as on an idle hub."""
    doubled = Doubled()
    now = 0.0
    while now <= seconds:
        doubled = step(doubled, look(now), now)
        now += LOOK_S
    return doubled


def two(old: Bytes, new: Bytes, seconds: float, old_host: str = "203.0.113.1") -> tuple[frozenset[int], list[str]]:
    """What is said of two IKE_SAs of one path whose probes come in so, after so long."""
    doubled = watch(lambda at: Charon(ike_sas=(sa(1, old(at), host=old_host), sa(2, new(at)))), seconds)
    now = seconds // LOOK_S * LOOK_S
    return stale(doubled, now), [condition.subject for condition in duplicates(doubled, hub(), now)]


def test_paths_are_told_apart_by_the_probe_s_selectors() -> None:
    sas = (
        sa(1),
        sa(2, there=OTHER_UPLINK),
        sa(3, here=OTHER_ENDPOINT),
        sa(4, connection="cpe-van-1-0f1e2d3c"),
        sa(5, initiator=True),
        sa(6),
    )
    assert sorted([one.unique_id for one in found] for found in by_path(sas).values()) == [[1, 6], [2], [3], [4]]
    assert [len(uses) for uses in step(Doubled(), Charon(ike_sas=sas), 0.0).uses.values()] == [2]


class TestLeftover:
    def test_the_older_goes_once_only_the_newer_is_used(self) -> None:
        assert two(rests, grows, OVERLAP_S) == (frozenset(), [])
        assert two(rests, grows, OVERLAP_S + 2 * LOOK_S) == (frozenset({1}), [])

    def test_the_newest_is_never_ended(self) -> None:
        assert two(grows, rests, 10_000) == (frozenset(), [])

    def test_when_nothing_comes_in_at_all_nobody_knows(self) -> None:
        assert two(rests, rests, 10_000) == (frozenset(), [])

    def test_what_still_carries_traffic_is_no_leftover(self) -> None:
        def receives(at: float) -> Charon:
            return Charon(ike_sas=(sa(1, 0, (int(at), 0)), sa(2, grows(at))))

        def sends(at: float) -> Charon:
            return Charon(ike_sas=(sa(1, 0, (0, int(at))), sa(2, grows(at))))

        for look in (receives, sends):
            assert stale(watch(look, 600), 600) == frozenset()

    def test_a_path_that_is_probed_rarely_is_waited_for(self) -> None:
        """Once in ten minutes: the older could be a twin's, whose next probe is still to come."""
        slow: Bytes = lambda at: int(at // 600) + 1  # noqa: E731
        assert two(rests, slow, 1500)[0] == frozenset()
        assert two(rests, slow, 2000)[0] == frozenset({1})
        assert two(slow, slow, 10_000)[0] == frozenset()

    def test_of_three_both_older_ones_go(self) -> None:
        doubled = watch(lambda at: Charon(ike_sas=(sa(1, 5), sa(3, grows(at)), sa(2, 5))), 60)
        assert stale(doubled, 60) == {1, 2}

    def test_the_hub_ends_it_and_starts_nothing(self) -> None:
        document = hub()
        wanted = Tunnels(connections(document, (), HUB.identity, HUB.backend), stale=frozenset({1}))
        (connection,) = wanted.connections
        sas = tuple(sa(number, connection=connection.name) for number in (1, 2))
        ops = tunnels_step(wanted, Charon(ike_sas=sas, credentials_loaded=True), {}, 0.0).ops
        assert TerminateIke(1, force=False) in ops
        assert not [op for op in ops if isinstance(op, Initiate) or op == TerminateIke(2, force=False)]
        busy = (sa(1, connection=connection.name, busy=True), sas[1])
        assert not [
            op
            for op in tunnels_step(wanted, Charon(ike_sas=busy, credentials_loaded=True), {}, 0.0).ops
            if isinstance(op, TerminateIke)
        ]


class TestClone:
    def test_two_that_are_probed_for_long_are_two_boxes(self) -> None:
        assert two(grows, grows, OVERLAP_S)[1] == []  # counted from the second look
        assert two(grows, grows, OVERLAP_S + 2 * LOOK_S)[1] == ["hospital-1"]

    def test_a_twin_is_never_taken_for_a_leftover(self) -> None:
        assert two(grows, grows, 10_000)[0] == frozenset()

    def test_a_replacement_is_no_clone(self) -> None:
        """Make before break: for some seconds both are probed, then only the newer is."""
        overlaps: Bytes = lambda at: grows(min(at, OVERLAP_S))  # noqa: E731
        assert two(overlaps, grows, 5 * OVERLAP_S)[1] == []

    def test_a_bundle_left_in_the_older_one_is_no_clone(self) -> None:
        doubled = watch(lambda at: Charon(ike_sas=(sa(1, 84, (grows(at), grows(at))), sa(2, grows(at)))), 600)
        assert duplicates(doubled, hub(), 600) == ()

    def test_two_uplinks_are_no_clone(self) -> None:
        doubled = watch(lambda at: Charon(ike_sas=(sa(1, grows(at)), sa(2, grows(at), there=OTHER_UPLINK))), 600)
        assert doubled == Doubled() and duplicates(doubled, hub(), 600) == ()

    def test_a_rekeyed_child_that_counts_anew_is_still_heard(self) -> None:
        def look(at: float) -> Charon:
            probe = ChildSa("probe", 1000 + int(at), "INSTALLED", HERE, THERE, 84, 84)
            rekeyed = IkeSa("cpe-hospital-1-0f1e2d3c", 1, "ESTABLISHED", False, children=(probe,))
            return Charon(ike_sas=(rekeyed, sa(2, grows(at))))

        doubled = watch(look, 60)
        assert [c.subject for c in duplicates(doubled, hub(), 60)] == ["hospital-1"]

    @pytest.mark.parametrize(
        ("other_host", "words"),
        [
            ("198.51.100.7", "from 198.51.100.7 and 203.0.113.1"),
            ("203.0.113.1", "both from 203.0.113.1 (behind one NAT)"),
        ],
    )
    def test_it_names_the_branch_both_places_and_what_to_do(self, other_host: str, words: str) -> None:
        doubled = watch(lambda at: Charon(ike_sas=(sa(1, grows(at), host=other_host), sa(2, grows(at)))), 60)
        (found,) = duplicates(doubled, hub(), 60)
        assert (found.type, found.subject, found.severity.value) == ("IdentityDuplicated", "hospital-1", "degraded")
        assert words in found.reason and "hospital-1.city" in found.reason
        assert "cpe-controller replace hospital-1" in found.reason

    def test_it_ends_soon_after_one_of_them(self) -> None:
        doubled = watch(lambda at: Charon(ike_sas=(sa(1, grows(at)), sa(2, grows(at)))), 60)
        alone = step(doubled, Charon(ike_sas=(sa(2, grows(70)),)), 70)
        assert duplicates(alone, hub(), 60 + MEET_AGAIN_S) != ()
        assert duplicates(alone, hub(), 61 + MEET_AGAIN_S) == ()

    def test_two_boxes_that_drive_each_other_out_are_noticed(self) -> None:
        """Each finds its path dead when the other has dialled, and dials again: no IKE_SA lives long."""
        doubled = Doubled()
        for number, second in enumerate(range(0, 60, 2), 1):
            for tenth in (0.1, 0.6):
                now = second + tenth
                hosts = ("198.51.100.7", "203.0.113.1") if number % 2 else ("203.0.113.1", "198.51.100.7")
                sas = (sa(number, grows(now), host=hosts[0]), sa(number + 1, grows(now), host=hosts[1]))
                doubled = step(doubled, Charon(ike_sas=sas), now)
        (found,) = duplicates(doubled, hub(), 60)
        assert "from 198.51.100.7 and 203.0.113.1" in found.reason

    def test_an_uplink_that_comes_and_goes_is_no_clone(self) -> None:
        """It dials anew each time, from another address of its carrier's; what it left behind is silent."""
        doubled = Doubled()
        for number in range(1, 60):
            for look in (0.1, 1.0, 1.9):
                now = number * 2 + look
                sas = (sa(number, 84, host="203.0.113.1"), sa(number + 1, grows(now), host="203.0.113.2"))
                doubled = step(doubled, Charon(ike_sas=sas), now)
        assert duplicates(doubled, hub(), 120) == ()

    def test_frequent_replacements_are_no_clone(self) -> None:
        """As often as a document can ask for: each overlaps for a moment."""
        doubled = Doubled()
        for number in range(1, 20):
            start = number * 54.0
            for now, both in ((start, True), (start + 1, True), (start + 2, True), (start + 3, False)):
                old = (sa(number, grows(now)),) if both else ()
                doubled = step(doubled, Charon(ike_sas=(*old, sa(number + 1, grows(now)))), now)
            assert duplicates(doubled, hub(), start + 3) == ()

    def test_it_ends_when_one_of_them_is_long_silent(self) -> None:
        stops: Bytes = lambda at: grows(min(at, 100))  # noqa: E731
        assert two(stops, grows, 100 + HEARD_S - LOOK_S)[1] == ["hospital-1"]
        assert two(stops, grows, 100 + HEARD_S + LOOK_S)[1] == []
