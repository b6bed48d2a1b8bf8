"""What holds for real nftables only: others' tables, the things of others in our table, packets, sockets."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import aclosing, suppress
from typing import TypeVar

import pytest
import trio
import trio.testing

from cpe_agent.core.firewall import diff
from cpe_agent.edge.nftables import LIST_AGAIN_S, NftablesFirewall
from cpe_agent.edge.nftables_listing import parse_counters, parse_table
from cpe_agent.edge.nftables_news import names_our_table
from cpe_agent.model.dataplane import TABLE, NftChain, NftSet, Ruleset
from cpe_agent.model.ops import AddElements, DeleteElements, FirewallOp, ReplaceSet, ReplaceTable
from cpe_agent.ports import EdgeError

T = TypeVar("T")

OUTPUT = "type filter hook output priority filter; policy accept;"
FLOWS = "ipv4_addr . inet_proto . inet_service"
COUNTED = Ruleset(
    (NftSet("flows", FLOWS, "interval", True, frozenset({"127.0.0.0/8 . 17 . 7000-7009", "127.0.0.1 . 17 . 53"})),),
    (
        NftChain("also", "", ('udp dport 7011 counter drop comment "tested"',)),
        NftChain(
            "output",
            OUTPUT,
            (
                "ip daddr . meta l4proto . udp dport @flows accept",
                'udp dport 7010 counter drop comment "tested"',
                "jump also",
            ),
        ),
    ),
)


def nft(command: str) -> str:
    return subprocess.run(["nft", "-f", "-"], input=command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def firewall() -> Iterator[NftablesFirewall]:
    yield NftablesFirewall()
    nft("flush ruleset")


async def test_packets_count_for_the_element_and_the_reason(firewall: NftablesFirewall) -> None:
    await firewall.apply([ReplaceTable(COUNTED)])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for port in (7001, 7002, 7010, 7011):
            try:
                sender.sendto(b"12345678", ("127.0.0.1", port))
            except PermissionError:
                assert port >= 7010  # dropped on output
            except ConnectionRefusedError:
                sender.sendto(b"12345678", ("127.0.0.1", port))
    # 20 bytes of IPv4, 8 of UDP, 8 of payload.
    assert await firewall.counters() == {
        "flows 127.0.0.0/8 . 17 . 7000-7009": (2, 72),
        "flows 127.0.0.1 . 17 . 53": (0, 0),
        "drop tested": (2, 72),
    }
    assert await firewall.read() == COUNTED


STRANGE = (
    f"add table inet {TABLE} {{ flags dormant; }}",
    f"add map inet {TABLE} verdicts {{ type ipv4_addr : verdict; }}",
    f"add counter inet {TABLE} strange",
    f"add set inet {TABLE} strange {{ type ipv4_addr; timeout 1h; }}",
    f'add rule inet {TABLE} also ip saddr {{ 10.0.0.1 comment "a, b", 10.0.0.2 }} accept',
    f"add rule inet {TABLE} also ip saddr 10.0.0.1 jump {{ accept; }}",
    f"add chain inet {TABLE} output {{ policy drop; }}",
    f"add chain inet {TABLE} early {{ type filter hook output priority -300; }}",
    f'insert rule inet {TABLE} output udp dport 7010 counter drop comment "tested"',
    f"delete table inet {TABLE}; add table inet {TABLE}",
)


@pytest.mark.parametrize("strange", STRANGE)
async def test_what_a_ruleset_has_no_words_for_is_seen_too(firewall: NftablesFirewall, strange: str) -> None:
    await firewall.apply([ReplaceTable(COUNTED)])
    nft(strange)
    observed = await firewall.read()
    assert observed != COUNTED
    assert diff(COUNTED, observed) == ((ReplaceTable(COUNTED),), ())
    await firewall.apply([ReplaceTable(COUNTED)])
    assert await firewall.read() == COUNTED


async def test_other_tables_are_left_alone_and_not_listened_to(firewall: NftablesFirewall) -> None:
    nft("table inet other { chain strange { accept; }; }")
    with trio.fail_after(10):
        async with aclosing(firewall.changes()) as changes:
            await anext(changes)
            await firewall.apply([ReplaceTable(COUNTED)])
            await anext(changes)
            nft("add chain inet other more; add table ip other; delete table ip other")
            with trio.move_on_after(0.05) as silence:
                await anext(changes)
            assert silence.cancelled_caught
    assert await firewall.read() == COUNTED
    assert "chain strange" in nft("list table inet other")


async def test_a_refusal_says_what_was_tried_and_why(firewall: NftablesFirewall) -> None:
    await firewall.apply([ReplaceTable(COUNTED)])
    flows = frozenset({"127.0.0.1 . 17 . 7003"})
    with pytest.raises(EdgeError) as caught:
        await firewall.apply([AddElements("flows", FLOWS, flows)])
    assert str(caught.value) == "nftables: add 1 to flows: Could not process rule: File exists"


@pytest.mark.parametrize("name", ['a"b', "a b", "wan*", "", "x" * 16, "a\nb"])
async def test_a_name_that_nft_would_misread_is_refused(firewall: NftablesFirewall, name: str) -> None:
    links = NftSet("links", "ifname", elements=frozenset({name}))
    with pytest.raises(EdgeError, match="is not an element of type ifname"):
        await firewall.apply([ReplaceTable(Ruleset((links,), ()))])
    assert await firewall.read() is None


async def test_interface_names_may_look_like_anything(firewall: NftablesFirewall) -> None:
    names = frozenset({"accept", "{", "a,b", "a;b", "#", "$x", "@lans", "10.0.0.1", "}", "-", "counter", "a.b-c"})
    wanted = Ruleset((NftSet("links", "ifname", elements=names),), ())
    await firewall.apply([ReplaceTable(wanted)])
    assert await firewall.read() == wanted


async def test_programs_that_we_start_do_not_inherit_its_sockets(firewall: NftablesFirewall) -> None:
    """Of which there are as many after a while as at first: to list, to edit, and to ask for the generation."""
    before = open_sockets()
    await firewall.apply([ReplaceTable(COUNTED)])
    await firewall.read()
    opened = open_sockets() - before
    assert len(opened) == 3
    await firewall.apply([AddElements("flows", FLOWS, frozenset({"127.0.0.1 . 17 . 7020"}))])
    await firewall.read()
    await firewall.counters()
    assert open_sockets() - before == opened
    assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd, _ in opened)


def open_sockets() -> set[tuple[int, str]]:
    links = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            links[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return {(fd, link) for fd, link in links.items() if link.startswith("socket:")}


LISTING = """table inet cpe_agent {
\tset pairs {
\t\ttype ipv4_addr . inet_proto . inet_service
\t\tflags interval
\t\tcounter
\t\telements = { 10.1.0.0/24 . tcp . 443 counter packets 3 bytes 180,
\t\t\t     10.1.1.0/24 . ipv6-icmp . 0-65535 counter packets 0 bytes 0 comment "a, b",
\t\t\t     10.1.2.0/24 . 6-17 . 0-65535 counter packets 1 bytes 60 }
\t}

\tchain empty {
\t}

\tchain input {
\t\ttype filter hook input priority filter; policy drop;
\t\tcounter packets 2 bytes 120 drop comment "input"
\t\tudp dport 7 counter packets 1 bytes 60 drop comment "input"
\t\tcounter packets 9 bytes 900 accept comment "no drop"
\t}
}
"""


def test_a_listing_is_read_to_the_last_line() -> None:
    table = parse_table(LISTING)
    elements = {"10.1.0.0/24 . 6 . 443", "10.1.1.0/24 . 58 . 0-65535", "10.1.2.0/24 . 6-17 . 0-65535"}
    assert table.sets == (
        NftSet("pairs", "ipv4_addr . inet_proto . inet_service", "interval", True, frozenset(elements)),
    )
    assert [(chain.name, len(chain.rules)) for chain in table.chains] == [("empty", 0), ("input", 3)]
    assert table.chains[1].hook == "type filter hook input priority filter; policy drop;"
    assert parse_counters(LISTING) == {
        "pairs 10.1.0.0/24 . 6 . 443": (3, 180),
        "pairs 10.1.1.0/24 . 58 . 0-65535": (0, 0),
        "pairs 10.1.2.0/24 . 6-17 . 0-65535": (1, 60),
        "drop input": (3, 180),
    }


def test_what_is_not_understood_counts_as_a_change() -> None:
    new_generation = (20).to_bytes(4, "little") + (10 << 8 | 15).to_bytes(2, "little") + bytes(14)
    assert not names_our_table(new_generation)
    assert names_our_table(bytes(16))
    assert names_our_table((20).to_bytes(4, "little") + (10 << 8).to_bytes(2, "little") + bytes(14))


class Listening(NftablesFirewall):
    """Counts its listings; `between` runs when it is about to commit."""

    def __init__(self) -> None:
        super().__init__()
        self.listings = 0
        self.between: list[str] = []

    def _list(self, stateless: bool, parse: Callable[[str], T]) -> T | None:
        self.listings += 1
        return super()._list(stateless, parse)

    def _commit(self, commands: str, doing: str) -> None:
        while self.between:
            nft(self.between.pop())
        super()._commit(commands, doing)


async def test_what_was_listed_is_not_listed_again(firewall: NftablesFirewall) -> None:
    listening = Listening()
    await listening.apply([ReplaceTable(COUNTED)])
    assert await listening.read() == await listening.read() == COUNTED
    assert listening.listings == 1
    added, gone = frozenset({"127.0.0.1 . 17 . 99", "127.0.0.1 . 17 . 98"}), frozenset({"127.0.0.1 . 17 . 53"})
    await listening.apply([AddElements("flows", FLOWS, added)])
    await listening.apply([DeleteElements("flows", FLOWS, gone), AddElements("flows", FLOWS, frozenset())])
    found = await listening.read()
    assert listening.listings == 1
    assert found == await firewall.read()
    assert found is not None and found.sets[0].elements == (COUNTED.sets[0].elements | added) - gone
    nft("add table inet other")
    assert await listening.read() == found
    assert listening.listings == 2


async def test_it_is_listed_again_in_time_all_the_same(
    firewall: NftablesFirewall, autojump_clock: trio.testing.MockClock
) -> None:
    listening = Listening()
    for listings in (1, 1, 2):
        await listening.read()
        assert listening.listings == listings
        await trio.sleep(LIST_AGAIN_S * 0.6)


TWO = frozenset({"127.0.0.1 . 17 . 99"})
FOREIGN = (
    f"add element inet {TABLE} flows {{ 127.0.0.1 . 17 . 99 }}; insert rule inet {TABLE} output accept",
    f"add rule inet {TABLE} also accept",
    f"delete element inet {TABLE} flows {{ 127.0.0.1 . 17 . 53 }}",
    f"delete element inet {TABLE} flows {{ 127.0.0.1 . 17 . 53 }}; add rule inet {TABLE} also accept",
    f"flush chain inet {TABLE} output",
)


@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("op", [AddElements("flows", FLOWS, TWO), ReplaceSet(COUNTED.sets[0], COUNTED.chains)])
async def test_what_others_do_just_before_our_edit_is_seen(
    firewall: NftablesFirewall, foreign: str, op: FirewallOp
) -> None:
    listening = Listening()
    await listening.apply([ReplaceTable(COUNTED)])
    await listening.read()
    listening.between = [foreign]
    await listening.apply([op])
    assert not listening.between
    assert await listening.read() == await firewall.read()


async def test_what_others_do_at_any_moment_is_never_hidden(firewall: NftablesFirewall) -> None:
    """Somebody edits as fast as nft can while we read and edit: when both rest, what we believe is what is listed."""
    chance = random.Random(7)
    ours = Listening()
    await ours.apply([ReplaceTable(COUNTED)])
    kept = 0
    for turn in range(60):
        number = turn * 10
        same, other = f"127.0.0.1 . 17 . {20000 + number}", f"127.0.0.2 . 17 . {10000 + number}"
        commands = [
            f"add element inet {TABLE} flows {{ {other} }}",
            f"add element inet {TABLE} flows {{ {same} }}; add rule inet {TABLE} also accept",
            "add table inet other; delete table inet other",
            f"flush chain inet {TABLE} also",
        ]
        command = chance.choice(commands)
        delay_s = chance.uniform(0, 0.006)

        async def interfere(command: str = command) -> None:
            await trio.run_process(["nft", "-f", "-"], stdin=command.encode())

        async with trio.open_nursery() as nursery:
            await ours.read()
            nursery.start_soon(interfere)
            await trio.sleep(delay_s)
            await ours.apply([AddElements("flows", FLOWS, frozenset({same}))])
            await ours.read()
            await ours.apply([DeleteElements("flows", FLOWS, frozenset({same}))])
        listings = ours.listings
        assert await ours.read() == await firewall.read(), (turn, command, delay_s)
        kept += ours.listings == listings
    assert 0 < kept < 60  # both ways of reading were tried
