"""Is the firewall that the loops are tested with like nftables? Each test here runs on both."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

import msgspec
import pytest
import trio

from cpe_agent.core.firewall import diff
from cpe_agent.core.wanted_ruleset import ruleset
from cpe_agent.edge.nftables import NftablesFirewall
from cpe_agent.model.dataplane import TABLE, Backend, NftChain, NftSet, Ruleset
from cpe_agent.model.ops import AddElements, DeleteElements, DeleteTable, FirewallOp, ReplaceTable
from cpe_agent.ports import EdgeError, FirewallPort
from tests.fakes.firewall import FirewallFake

PAIRS4 = "ipv4_addr . ipv4_addr . inet_proto . inet_service"
PAIRS6 = "ipv6_addr . ipv6_addr . inet_proto . inet_service"
NETS4 = "ipv4_addr . ipv4_addr"
FOUR = ("10.1.0.0/24 . 10.2.0.0/24 . 0-255 . 0-65535", "10.1.1.0/24 . 10.2.0.1 . 6 . 443")


class Stranger(Protocol):
    """Somebody else with the same rights."""

    def flush(self) -> None: ...

    def delete_rule(self, chain: str, index: int) -> None: ...

    def insert_rule(self, chain: str, rule: str) -> None: ...

    def edit_element(self, verb: str, set_name: str, element: str) -> None: ...

    def add_set(self, name: str, set_type: str) -> None: ...

    def add_chain(self, name: str) -> None: ...


@dataclass(frozen=True)
class Bed:
    firewall: FirewallPort
    stranger: Stranger


class StrangerToFake:
    def __init__(self, fake: FirewallFake) -> None:
        self.fake = fake

    def flush(self) -> None:
        self.fake.change(None)

    def delete_rule(self, chain: str, index: int) -> None:
        rules = [*self._chain(chain).rules]
        del rules[index]
        self._put_chain(chain, tuple(rules))

    def insert_rule(self, chain: str, rule: str) -> None:
        self._put_chain(chain, (rule, *self._chain(chain).rules))

    def edit_element(self, verb: str, set_name: str, element: str) -> None:
        found = next(s for s in self._table().sets if s.name == set_name)
        elements = found.elements | {element} if verb == "add" else found.elements - {element}
        rest = [s for s in self._table().sets if s.name != set_name]
        self._put(sets=tuple(sorted([*rest, msgspec.structs.replace(found, elements=elements)])))

    def add_set(self, name: str, set_type: str) -> None:
        self._put(sets=tuple(sorted([*self._table().sets, NftSet(name, set_type)])))

    def add_chain(self, name: str) -> None:
        self._put(chains=tuple(sorted([*self._table().chains, NftChain(name, "", ())])))

    def _table(self) -> Ruleset:
        assert self.fake.table is not None
        return self.fake.table

    def _chain(self, name: str) -> NftChain:
        return next(c for c in self._table().chains if c.name == name)

    def _put_chain(self, name: str, rules: tuple[str, ...]) -> None:
        chains = (msgspec.structs.replace(c, rules=rules) if c.name == name else c for c in self._table().chains)
        self._put(chains=tuple(chains))

    def _put(self, **changed: object) -> None:
        self.fake.change(msgspec.structs.replace(self._table(), **changed))


class StrangerWithNft:
    def flush(self) -> None:
        nft("flush ruleset")

    def delete_rule(self, chain: str, index: int) -> None:
        listing = nft(f"list chain inet {TABLE} {chain}", "--handle")
        handles = re.findall(r"^\t\t.* # handle ([0-9]+)$", listing, re.MULTILINE)
        nft(f"delete rule inet {TABLE} {chain} handle {handles[index]}")

    def insert_rule(self, chain: str, rule: str) -> None:
        nft(f"insert rule inet {TABLE} {chain} {rule}")

    def edit_element(self, verb: str, set_name: str, element: str) -> None:
        nft(f"{verb} element inet {TABLE} {set_name} {{ {element} }}")

    def add_set(self, name: str, set_type: str) -> None:
        nft(f"add set inet {TABLE} {name} {{ type {set_type}; }}")

    def add_chain(self, name: str) -> None:
        nft(f"add chain inet {TABLE} {name}")


class Checked(NftablesFirewall):
    """Whatever it remembers must be what one without a memory finds."""

    async def read(self) -> Ruleset | None:
        remembered = await super().read()
        assert remembered == await NftablesFirewall().read()
        return remembered


def nft(command: str, *options: str) -> str:
    run = subprocess.run(["nft", *options, "-f", "-"], input=command, capture_output=True, text=True, timeout=30)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(params=["fake", "nftables"])
def bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    if request.param == "fake":
        fake = FirewallFake()
        yield Bed(fake, StrangerToFake(fake))
    else:
        yield Bed(Checked(), StrangerWithNft())
        nft(f"add table inet {TABLE}; delete table inet {TABLE}")


def filled(backend: Backend = Backend.USERLAND) -> Ruleset:
    """The table that the compiler makes, with elements of each kind in its sets."""
    elements = {
        "lans": {"br-lan", "eth1", "fwd", "eth0.5", "accept"},
        "uplinks": {"wan0"},
        "local_pairs4": {
            *FOUR,
            "10.1.1.0-10.1.1.6 . 10.2.0.9 . 6-17 . 8000-8010",
            "0.0.0.0/0 . 10.9.0.0/16 . 1 . 0-65535",
            "0.0.0.0 . 0.0.0.0 . 0 . 0",
            "224.0.0.0/3 . 255.255.255.255 . 255 . 65535",
            "10.7.0.0/24 . 10.8.0.0/24 . 6-7 . 8000-8007",
            "10.7.0.0/24 . 10.8.0.0/24 . 132 . 80-81",
        },
        "local_pairs6": {
            "fd00:1::/64 . fd00:2::/64 . 0-255 . 0-65535",
            "fd00:1:0:1::1 . ::/0 . 58 . 0-65535",
            "fd00:3::/64 . fd00:7::1-fd00:7::9 . 17 . 53",
        },
        "local_nets4": {"10.1.0.0/24 . 10.2.0.0/24", "10.1.1.1 . 0.0.0.0/0"},
        "local_nets6": {"fd00:1::/64 . fd00:2::/64"},
        "protected4": {"10.1.0.0/24", "10.1.1.0/24", "10.9.0.0-10.9.0.6", "10.3.0.1", "224.0.0.0/3"},
        "protected6": {"::/1", "fd00:1::/64", "fd00:2::1", "fd00:7::1-fd00:7::9", "ff00::/8"},
        "ssh_from4": {"0.0.0.0/0"},
        "ssh_from6": {"::/0"},
    }
    wanted = ruleset(None, backend)
    assert elements.keys() <= {s.name for s in wanted.sets}
    sets = (msgspec.structs.replace(s, elements=frozenset(elements.get(s.name, ()))) for s in wanted.sets)
    return Ruleset(tuple(sets), wanted.chains)


def small(**elements: set[str]) -> Ruleset:
    sets = (
        NftSet("nets", NETS4, "interval", False, frozenset(elements.get("nets", ()))),
        NftSet("pairs", PAIRS4, "interval", True, frozenset(elements.get("pairs", ()))),
        NftSet("subnets", "ipv4_addr", "interval", False, frozenset(elements.get("subnets", ()))),
    )
    rules = (
        "ip saddr . ip daddr . meta l4proto . th dport @pairs accept",
        "ip saddr . ip daddr @nets accept",
        'counter drop comment "unlisted"',
    )
    return Ruleset(sets, (NftChain("forward", "type filter hook forward priority filter; policy drop;", rules),))


async def bring(firewall: FirewallPort, wanted: Ruleset) -> None:
    """Apply what the diff says, then there is nothing left to say."""
    for ops in diff(wanted, await firewall.read()):
        await firewall.apply(ops)
    assert await firewall.read() == wanted
    assert diff(wanted, await firewall.read()) == ((), ())


async def test_without_a_table_there_is_nothing(bed: Bed) -> None:
    assert await bed.firewall.read() is None
    assert await bed.firewall.counters() == {}
    await bed.firewall.apply([])
    await bed.firewall.apply([DeleteTable()])
    assert await bed.firewall.read() is None


@pytest.mark.parametrize("backend", Backend)
async def test_what_was_applied_is_what_is_read(bed: Bed, backend: Backend) -> None:
    for wanted in (ruleset(None, backend), filled(backend)):
        await bed.firewall.apply([ReplaceTable(wanted)])
        assert await bed.firewall.read() == wanted
    await bed.firewall.apply([DeleteTable()])
    assert await bed.firewall.read() is None


async def test_elements_come_and_go(bed: Bed) -> None:
    before, after = "10.1.0.0/24 . 10.2.0.0/24", "10.1.0.0/23 . 10.2.0.0/24"
    await bring(bed.firewall, small(nets={before}, pairs={FOUR[0]}, subnets={"10.1.0.0/24", "10.1.1.0/24"}))
    await bring(bed.firewall, small(nets={before}, pairs={*FOUR}, subnets={"10.1.0.0/24"}))
    # Old and new overlap: only one transaction can do it.
    await bring(bed.firewall, small(nets={after}, pairs={FOUR[1]}, subnets={"10.1.0.0/23"}))
    await bring(bed.firewall, small())


async def test_adding_what_is_there_changes_nothing(bed: Bed) -> None:
    wanted = small(pairs={*FOUR}, subnets={"10.1.0.0/24"})
    await bring(bed.firewall, wanted)
    await bed.firewall.apply(
        [
            AddElements("pairs", PAIRS4, frozenset(FOUR)),
            AddElements("subnets", "ipv4_addr", frozenset({"10.1.0.0/24"})),
            DeleteElements("pairs", PAIRS4, frozenset()),
        ]
    )
    assert await bed.firewall.read() == wanted


REFUSED: dict[str, FirewallOp] = {
    "missing set": AddElements("nosuch", NETS4, frozenset({"10.5.0.0/24 . 10.2.0.0/24"})),
    "missing element of a concatenation": DeleteElements("nets", NETS4, frozenset({"10.5.0.0/24 . 10.2.0.0/24"})),
    "missing element": DeleteElements("subnets", "ipv4_addr", frozenset({"10.5.0.0/24"})),
    "overlap in a concatenation": AddElements("nets", NETS4, frozenset({"10.1.0.1 . 10.2.0.0/24"})),
    "overlap": AddElements("subnets", "ipv4_addr", frozenset({"10.1.0.1"})),
    "other type": AddElements("nets", "ipv4_addr", frozenset({"10.5.0.0/24"})),
    "no element": AddElements("subnets", "ipv4_addr", frozenset({"10.5.0.0/24 }; flush ruleset; #"})),
    "rule on a missing set": ReplaceTable(Ruleset((), (NftChain("c", "", ("ip saddr @nosuch accept",)),))),
    "jump nowhere": ReplaceTable(Ruleset((), (NftChain("c", "", ("jump nowhere",)),))),
}


@pytest.mark.parametrize("refused", REFUSED)
async def test_a_refused_operation_undoes_the_others(bed: Bed, refused: str) -> None:
    wanted = small(nets={"10.1.0.0/24 . 10.2.0.0/24"}, pairs={*FOUR}, subnets={"10.1.0.0/24"})
    await bring(bed.firewall, wanted)
    good = AddElements("subnets", "ipv4_addr", frozenset({"10.77.0.0/24"}))
    with pytest.raises(EdgeError) as caught:
        await bed.firewall.apply([good, REFUSED[refused]])
    assert caught.value.target == "nftables"
    assert caught.value.cause
    assert await bed.firewall.read() == wanted
    await bed.firewall.apply([good])
    assert await bed.firewall.read() != wanted


async def test_without_a_table_elements_are_refused(bed: Bed) -> None:
    with pytest.raises(EdgeError, match="No such file or directory"):
        await bed.firewall.apply([AddElements("subnets", "ipv4_addr", frozenset({"10.1.0.0/24"}))])
    assert await bed.firewall.read() is None


STRANGE = {
    "flush": lambda s: s.flush(),
    "deleted rule": lambda s: s.delete_rule("forward", -1),
    "added accept": lambda s: s.insert_rule("forward", "accept"),
    "added rule like another": lambda s: s.insert_rule("output", 'oifname "lo" accept'),
    "added element": lambda s: s.edit_element("add", "local_pairs4", "10.66.0.0/16 . 10.2.0.0/24 . 0-255 . 0-65535"),
    "added interface": lambda s: s.edit_element("add", "lans", "tun9"),
    "deleted element": lambda s: s.edit_element("delete", "local_pairs4", FOUR[0]),
    "added set": lambda s: s.add_set("strange", "ipv4_addr"),
    "added chain": lambda s: s.add_chain("strange"),
}


@pytest.mark.parametrize("strange", STRANGE)
async def test_what_a_stranger_did_is_seen_and_put_right(bed: Bed, strange: str) -> None:
    wanted = filled()
    await bring(bed.firewall, wanted)
    STRANGE[strange](bed.stranger)
    assert await bed.firewall.read() != wanted
    await bring(bed.firewall, wanted)


async def test_counters_are_named_by_element_and_reason(bed: Bed) -> None:
    wanted = filled()
    await bring(bed.firewall, wanted)
    counters = await bed.firewall.counters()
    elements = {f"{s.name} {e}" for s in wanted.sets if s.counter for e in s.elements}
    drops = {"unlisted", "spoofed", "cleartext", "breakout", "input", "tunnel_input", "lan_input", "uplink_input"}
    drops |= {"uplink_output"}
    assert counters.keys() == elements | {f"drop {reason}" for reason in drops}
    assert all(value == (0, 0) for value in counters.values())


async def test_no_change_is_missed_after_the_first_step(bed: Bed) -> None:
    wanted = small(pairs={*FOUR})
    await bring(bed.firewall, wanted)
    with trio.fail_after(10):
        async with aclosing(bed.firewall.changes()) as changes:
            await anext(changes)
            bed.stranger.insert_rule("forward", "accept")
            await anext(changes)
            bed.stranger.edit_element("add", "subnets", "10.1.0.0/24")
            bed.stranger.flush()
            await anext(changes)
            assert await bed.firewall.read() is None
            await bed.firewall.apply([ReplaceTable(wanted)])
            await anext(changes)
            with trio.move_on_after(0.05) as silence:
                await anext(changes)
            assert silence.cancelled_caught


async def test_five_thousand_elements(bed: Bed, capsys: pytest.CaptureFixture[str]) -> None:
    many = {f"10.{n // 250}.{n % 250}.0/24 . 10.200.0.0/24 . 6 . 443" for n in range(5000)}
    wanted = small(pairs=many)
    begun = time.perf_counter()
    await bed.firewall.apply([ReplaceTable(wanted)])
    applied = time.perf_counter()
    assert await bed.firewall.read() == wanted
    read = time.perf_counter()
    counters = await bed.firewall.counters()
    counted = time.perf_counter()
    assert len(counters) == 5001
    with capsys.disabled():
        times = f"replace {applied - begun:.3f} s, read {read - applied:.3f} s, counters {counted - read:.3f} s"
        print(f"\n5,000 elements, {type(bed.firewall).__name__}: {times}")
