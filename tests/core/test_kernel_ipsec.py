"""When kernel and charon disagree about IPsec, who is believed, and what goes?"""

from __future__ import annotations

import msgspec

from cpe_agent.core.kernel_ipsec import CONFIRM_S, MOVE_S, PRUNE_S, Seen, Step, broken, claimed, differences, step
from cpe_agent.model.dataplane import BLOCK_PRIORITY
from cpe_agent.model.difference import Kind
from cpe_agent.model.observed import Charon, ChildSa, IkeSa, KernelIpsec, KernelPolicy, KernelSa
from tests.core.documents import CENTRE_LAN, OWN_LAN, branch, hub

HERE, THERE = "198.51.100.10", "203.0.113.18"
WALL = 1_800_000_000.0
# The hospital's paths, as its hub knows them: the first carries traffic, the second only probes.
PATHS = ("10.255.101.1", "10.255.101.2")
PROBED = ("10.255.1.1/32", "10.255.1.2/32")


def child(number: int, name: str, local: tuple[str, ...], remote: tuple[str, ...], state: str = "INSTALLED") -> ChildSa:
    return ChildSa(name, number, state, local, remote, spi_in=100 + number, spi_out=200 + number)


def sas_of(one: ChildSa, port: int, added: float = WALL - 60) -> set[KernelSa]:
    return {
        KernelSa(THERE, HERE, one.spi_in, one.unique_id, port, 4500, added),
        KernelSa(HERE, THERE, one.spi_out, one.unique_id, 4500, port, added),
    }


def policies_of(one: ChildSa) -> set[KernelPolicy]:
    return {
        KernelPolicy(d, source, to, protocol, 0, 0, 370_000, one.unique_id, one.spi_out if d == "out" else 0)
        for d, source, to, protocol in claimed(one)
    }


def held(children: dict[int, list[ChildSa]], added: float = WALL - 60) -> KernelIpsec:
    """What the kernel holds of them, by the port of their path."""
    every = [(port, one) for port, found in children.items() for one in found]
    return KernelIpsec(
        frozenset(sa for port, one in every for sa in sas_of(one, port, added)),
        frozenset(policy for _, one in every for policy in policies_of(one)),
    )


def charon(*ike: list[ChildSa]) -> Charon:
    return Charon(
        {}, tuple(IkeSa("cpe-hospital-1-abc", n, "ESTABLISHED", False, children=tuple(c)) for n, c in enumerate(ike, 1))
    )


TRAFFIC = child(1, "traffic", (CENTRE_LAN,), (OWN_LAN, "10.255.0.101/32"))
PROBE_1 = child(2, "probe", PROBED, (f"{PATHS[0]}/32",))
PROBE_2 = child(3, "probe", PROBED, (f"{PATHS[1]}/32",))
ACTIVE, STANDBY = 40001, 40002
KERNEL = held({ACTIVE: [TRAFFIC, PROBE_1], STANDBY: [PROBE_2]})
WHOLE = charon([TRAFFIC, PROBE_1], [PROBE_2])
NOTHING = Charon()


def test_that_agreement_is_left_alone() -> None:
    found = step(Seen(), hub(), WHOLE, KERNEL, WHOLE, 10.0, WALL)
    assert found == Step(Seen())
    assert differences(hub(), WHOLE, KERNEL) == []


def test_that_an_ike_sa_without_its_sas_or_policies_is_broken() -> None:
    without_sas = msgspec.structs.replace(KERNEL, sas=frozenset())
    assert broken(WHOLE, without_sas, WHOLE) == {1, 2}
    one_way = msgspec.structs.replace(KERNEL, sas=frozenset(sa for sa in KERNEL.sas if sa.spi != PROBE_2.spi_out))
    assert broken(WHOLE, one_way, WHOLE) == {2}
    policies = frozenset(p for p in KERNEL.policies if not (p.direction == "fwd" and p.source == OWN_LAN))
    assert broken(WHOLE, msgspec.structs.replace(KERNEL, policies=policies), WHOLE) == {1}


def test_that_what_charon_is_about_is_not_broken() -> None:
    empty = KernelIpsec()
    assert broken(WHOLE, empty, NOTHING) == frozenset(), "it has gone meanwhile"
    assert broken(NOTHING, empty, WHOLE) == frozenset(), "it has come meanwhile"
    rekeyed = charon([msgspec.structs.replace(TRAFFIC, state="REKEYED")])
    assert broken(rekeyed, empty, rekeyed) == frozenset()
    unknown = charon([msgspec.structs.replace(TRAFFIC, spi_in=0, spi_out=0)])
    assert broken(unknown, empty, unknown) == frozenset()


def test_that_protocols_are_told_apart() -> None:
    narrow = child(7, "traffic", (OWN_LAN,), ("10.10.0.0/24[tcp/443]", "10.20.0.0/24[47]", "fd00::/64"))
    assert claimed(narrow) == {
        ("out", OWN_LAN, "10.10.0.0/24", 6), ("in", "10.10.0.0/24", OWN_LAN, 6), ("fwd", "10.10.0.0/24", OWN_LAN, 6),
        ("out", OWN_LAN, "10.20.0.0/24", 47), ("in", "10.20.0.0/24", OWN_LAN, 47), ("fwd", "10.20.0.0/24", OWN_LAN, 47),
    }  # fmt: skip


def steps(*looks: tuple[float, Charon], kernel: KernelIpsec = KERNEL) -> list[frozenset[KernelSa]]:
    """What goes at each look (seconds after the first, what charon has then), at a hub whose charon was killed and is
    back. What went is gone."""
    found, seen = [], Seen()
    for at, charon_ in ((0.0, NOTHING), *looks):
        one = step(seen, hub(), charon_, kernel, charon_, 10.0 + at, WALL + at)
        kernel = msgspec.structs.replace(kernel, sas=kernel.sas - one.sas)
        seen = one.seen
        found.append(one.sas)
    assert not found[0], "nothing is decided by one look"
    return found[1:]


def spis(sas: frozenset[KernelSa]) -> set[int]:
    return {sa.spi for sa in sas}


def test_that_leftover_probes_fall_silent_on_the_standby_path_first() -> None:
    first, later, late = steps((CONFIRM_S, NOTHING), (1.0, NOTHING), (CONFIRM_S + MOVE_S, NOTHING))
    assert spis(first) == {PROBE_2.spi_out}
    assert not later, "the branch is on its way to the other path, and its traffic goes on"
    assert spis(late) == {PROBE_1.spi_out}, "it has had its time"


def test_that_the_active_path_falls_silent_when_its_site_is_back() -> None:
    anew = child(9, "probe", PROBED, (f"{PATHS[1]}/32",))
    kernel = KernelIpsec(KERNEL.sas | sas_of(anew, 50001), KERNEL.policies)
    first, later = steps((CONFIRM_S, charon([anew])), (1.0, charon([anew])), kernel=kernel)
    assert (spis(first), spis(later)) == ({PROBE_2.spi_out}, {PROBE_1.spi_out})


def test_that_of_paths_that_all_have_traffic_one_falls_silent() -> None:
    assert [spis(sas) for sas in steps((CONFIRM_S, NOTHING), kernel=held({ACTIVE: [TRAFFIC, PROBE_1]}))] == [
        {PROBE_1.spi_out}
    ]
    other = child(4, "traffic", ("10.50.0.0/24",), (OWN_LAN,))
    both = held({ACTIVE: [TRAFFIC, PROBE_1], STANDBY: [other, PROBE_2]})
    first, second, late = steps((CONFIRM_S, NOTHING), (1.0, NOTHING), (CONFIRM_S + MOVE_S, NOTHING), kernel=both)
    assert spis(first) == {PROBE_1.spi_out} and not second and spis(late) == {PROBE_2.spi_out}


def test_that_all_leftovers_go_in_the_end_and_their_policies_after_them() -> None:
    *_, last = steps((PRUNE_S - 1, NOTHING), (PRUNE_S, NOTHING))
    assert KERNEL.sas - last == {sa for sa in KERNEL.sas if sa.spi == PROBE_2.spi_out}, "that one went before"
    bare = msgspec.structs.replace(KERNEL, sas=frozenset())
    first = step(Seen(), hub(), NOTHING, bare, NOTHING, 10.0, WALL)
    assert step(first.seen, hub(), NOTHING, bare, NOTHING, 10.0 + CONFIRM_S, WALL).policies == KERNEL.policies


def test_that_a_young_sa_is_no_leftover() -> None:
    young = held({ACTIVE: [TRAFFIC, PROBE_1]}, added=WALL - 1)
    assert step(Seen(), hub(), NOTHING, young, NOTHING, 10.0, WALL).seen.orphans == {}
    # A clock that was put back does not make an SA young for ever.
    assert step(Seen(), hub(), NOTHING, young, NOTHING, 10.0, WALL - 100).seen.orphans


def test_that_an_sa_of_others_is_none_of_ours() -> None:
    theirs = KernelIpsec(frozenset({KernelSa(THERE, HERE, 7, 7, 5000, 5000, WALL - 60)}))
    assert step(Seen(), hub(), NOTHING, theirs, NOTHING, 10.0, WALL) == Step(Seen())


def test_that_a_stray_policy_goes_and_others_stay() -> None:
    leak = KernelPolicy("out", OWN_LAN, "10.10.0.0/25", 0, 0, 0, 5)
    own = KernelPolicy("out", "0.0.0.0/0", CENTRE_LAN, 0, 0, 0, BLOCK_PRIORITY)
    elsewhere = KernelPolicy("out", "192.168.1.0/24", "192.168.2.0/24", 0, 0, 0, 5)
    kernel = KernelIpsec(frozenset(), frozenset({leak, own, elsewhere}))
    first = step(Seen(), branch(), NOTHING, kernel, NOTHING, 10.0, WALL)
    assert first.wake_at == 10.0 + CONFIRM_S
    assert step(first.seen, branch(), NOTHING, kernel, NOTHING, 10.0 + CONFIRM_S, WALL).policies == {leak}
    assert differences(branch(), NOTHING, kernel) == [(Kind.FOREIGN, f"policy out {OWN_LAN} to 10.10.0.0/25")]


def test_that_a_policy_without_esp_in_a_tunnels_place_goes() -> None:
    """The kernel has one policy for each selector: who updates charon's to one without ESP has opened it."""
    open_ = KernelPolicy("out", CENTRE_LAN, OWN_LAN, 0, 0, 0, 5)
    kernel = msgspec.structs.replace(
        KERNEL,
        policies=frozenset(p for p in KERNEL.policies if p.direction != "out" or p.source != CENTRE_LAN) | {open_},
    )
    first = step(Seen(), hub(), WHOLE, kernel, WHOLE, 10.0, WALL)
    assert first.broken == {1}
    assert step(first.seen, hub(), WHOLE, kernel, WHOLE, 10.0 + CONFIRM_S, WALL).policies >= {open_}
    assert (Kind.FOREIGN, f"policy out {CENTRE_LAN} to {OWN_LAN}") in differences(hub(), WHOLE, kernel)


def marked(policies: set[KernelPolicy], mark: int) -> set[KernelPolicy]:
    """As a hub's traffic children have them: told apart by a mark on the way in."""
    return {p if p.direction == "out" else msgspec.structs.replace(p, mark=mark, mask=0xFFFFFFFF) for p in policies}


def test_that_a_mark_that_no_sa_makes_any_more_goes_with_its_policies() -> None:
    # The one that was killed had counted to 7, its successor has begun anew; reqids begin anew as well.
    sas = {msgspec.structs.replace(sa, mark=1 if sa.spi == TRAFFIC.spi_in else 0) for sa in KERNEL.sas}
    others = {p for p in KERNEL.policies if p.reqid != TRAFFIC.unique_id}
    own, left = (marked(policies_of(TRAFFIC), mark) for mark in (1, 7))
    kernel = KernelIpsec(frozenset(sas), frozenset(others | own | left))
    first = step(Seen(), hub(), WHOLE, kernel, WHOLE, 10.0, WALL)
    assert not first.broken and not first.policies
    gone = step(first.seen, hub(), WHOLE, kernel, WHOLE, 10.0 + CONFIRM_S, WALL).policies
    assert gone == left - own, "and what the successor has stays"
    kernel = msgspec.structs.replace(kernel, policies=kernel.policies - gone)
    assert step(Seen(), hub(), WHOLE, kernel, WHOLE, 20.0, WALL) == Step(Seen())


def test_that_verify_names_what_is_missing() -> None:
    told = differences(hub(), WHOLE, msgspec.structs.replace(KERNEL, sas=frozenset()))
    assert (Kind.MISSING, "hospital-1, CHILD_SA traffic: the kernel has no SA out") in told
    told = differences(hub(), WHOLE, msgspec.structs.replace(KERNEL, policies=frozenset()))
    assert (
        Kind.MISSING,
        f"hospital-1, CHILD_SA traffic: the kernel has no policy fwd {OWN_LAN} to {CENTRE_LAN}",
    ) in told
