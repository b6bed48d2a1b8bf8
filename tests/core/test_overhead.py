"""Is what the agent spends counted once, by uplink, whatever counters do?"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cpe_agent.core.overhead import ESP_BYTES, Overhead, of_ike, of_probes, step
from cpe_agent.model.observed import Charon, ChildSa, IkeSa


def child(name: str, number: int, packets: int, inner_bytes: int) -> ChildSa:
    return ChildSa(name, number, "INSTALLED", (), (), inner_bytes, inner_bytes, packets, packets)


def test_probes_are_counted_as_they_are_on_the_wire() -> None:
    charon = Charon(
        ike_sas=(
            IkeSa(
                "cpe-lte.centre.wan-0f1e2d3c",
                1,
                "ESTABLISHED",
                True,
                children=(child("probe", 4, 10, 440), child("traffic-centre", 5, 1000, 10**6)),
            ),
            IkeSa("cpe-wired.centre.wan-0f1e2d3c", 2, "ESTABLISHED", True, children=(child("probe", 6, 1, 44),)),
            IkeSa("cpe-van-1-0f1e2d3c", 3, "ESTABLISHED", False, children=(child("probe", 7, 1, 44),)),
        )
    )
    assert of_probes(charon, ("lte", "wired")) == {
        ("lte", "child 4"): 2 * (440 + 10 * ESP_BYTES),
        ("wired", "child 6"): 2 * (44 + ESP_BYTES),
    }
    # A hub with one uplink knows by which its branches come.
    assert of_probes(Charon(ike_sas=charon.ike_sas[2:]), ("wan",)) == {("wan", "child 7"): 2 * (44 + ESP_BYTES)}


def test_ike_is_counted_by_the_uplinks_interface() -> None:
    counters = {
        "spent_on_ike_in wwan0": (3, 300),
        "spent_on_ike_out wwan0": (2, 200),
        "spent_on_ike_out eth0": (1, 9),
        "local_pairs4 10.1.0.0/24": (5, 500),
        "drop unlisted": (7, 700),
    }
    assert sorted(of_ike(counters, {"lte": "wwan0", "wired": "eth0", "other": "eth9"}).items()) == [
        (("lte", "spent_on_ike_in wwan0"), 300),
        (("lte", "spent_on_ike_out wwan0"), 200),
        (("wired", "spent_on_ike_out eth0"), 9),
    ]


def test_what_was_there_before_is_not_ours_and_what_falls_begins_anew() -> None:
    overhead = step(Overhead(), {("lte", "child 4"): 1000})
    overhead = step(overhead, {("lte", "child 4"): 1010, ("lte", "child 5"): 7})
    assert overhead.by_uplink == {"lte": 17}
    # Rekeyed: the old one is gone. And somebody has replaced the table.
    overhead = step(overhead, {("lte", "child 5"): 3, ("wired", "child 6"): 1})
    assert overhead.by_uplink == {"lte": 20, "wired": 1}


@given(looks=st.lists(st.dictionaries(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz")), st.integers(0, 100))))
def test_it_never_falls(looks: list[dict[tuple[str, str], int]]) -> None:
    overhead = Overhead()
    for counters in looks:
        before = overhead
        overhead = step(overhead, counters)
        assert all(overhead.by_uplink.get(uplink, 0) >= count for uplink, count in before.by_uplink.items())
