"""What can somebody do by hand to a living router?

Each `Mutation` does one thing with nft or ip (to charon: charon_mutations.py), says what a reader of
`tests.scenarios.oracle` must then find lost and gained, and what `cpe-agent verify` must say. None knows how the
product reads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.lab.site import RunningSite
from tests.scenarios import oracle

# The lab's hospital-1: its LAN, and the subnets and paths of the hubs.
LAN, CENTRE_LAN = "10.101.0.0/24", "10.10.0.0/24"
_PAIR = f"{LAN} . {CENTRE_LAN} . 0-255 . 0-65535"
_OUR_TABLE, _INBOUND, _PROTOCOL = "15500", "15501", "155"


@dataclass(frozen=True)
class Mutation:
    """`facts`: (lost, gained) by kind, as the oracle sees it; `said`: part of a difference that verify must report.
    TUNNEL stands for the device of the site's backend."""

    name: str
    do: Callable[[RunningSite], None]
    facts: dict[str, tuple[int, int]]
    said: str

    def __str__(self) -> str:
        return self.name


def nft(site: RunningSite, *commands: str) -> None:
    """All in one transaction."""
    site.run("nft", "\n".join(commands))


def _chain(site: RunningSite, *, base: bool) -> tuple[str, list[dict[str, Any]]]:
    """The chain with most rules, of those with a hook or without, and its rules."""
    entries = oracle.table(site)
    names = {e["chain"]["name"] for e in entries if "chain" in e and ("hook" in e["chain"]) is base}
    rules = {name: [e["rule"] for e in entries if "rule" in e and e["rule"]["chain"] == name] for name in names}
    return max(rules.items(), key=lambda item: (len(item[1]), item[0]))


def _delete_final_drop(site: RunningSite) -> None:
    nft(site, f"delete rule inet cpe_agent forward handle {_last(site, 'forward')}")


def _replace_final_drop(site: RunningSite) -> None:
    nft(site, f"replace rule inet cpe_agent input handle {_last(site, 'input')} counter accept")


def _last(site: RunningSite, chain: str) -> int:
    return [int(e["rule"]["handle"]) for e in oracle.table(site) if e.get("rule", {}).get("chain") == chain][-1]


def _insert_in_the_middle(site: RunningSite) -> None:
    name, rules = _chain(site, base=False)
    nft(site, f"add rule inet cpe_agent {name} position {rules[len(rules) // 2]['handle']} tcp dport 2222 accept")


def _swap_two_rules(site: RunningSite) -> None:
    # The drop at the end, taken to the head: the same rules, and nothing passes.
    nft(
        site,
        f"delete rule inet cpe_agent forward handle {_last(site, 'forward')}",
        'insert rule inet cpe_agent forward counter drop comment "unlisted"',
    )


def _rename_chain(site: RunningSite) -> None:
    nft(site, f"rename chain inet cpe_agent {_chain(site, base=False)[0]} elsewhere")


def _flush_jumped_to(site: RunningSite) -> None:
    nft(site, f"flush chain inet cpe_agent {_chain(site, base=False)[0]}")


def _nft(*commands: str) -> Callable[[RunningSite], None]:
    return lambda site: nft(site, *(command.replace("TABLE", "inet cpe_agent") for command in commands))


def _ip(*commands: str) -> Callable[[RunningSite], None]:
    def do(site: RunningSite) -> None:
        for command in commands:
            site.run("ip", *command.replace("TUNNEL", site.ipsec.device).split())

    return do


def _forwarding(name: str, value: int) -> Callable[[RunningSite], None]:
    return lambda site: _quietly(site.run("sysctl", "-q", "-w", f"net.{name}={value}"))


def _quietly(_completed: object) -> None:
    """A command's output that says nothing."""


def _address(address: str) -> Callable[[RunningSite], None]:
    # Debian 12's ip cannot name an address's protocol.
    code = (
        "from pyroute2 import IPRoute\nwith IPRoute() as kernel:"
        f" kernel.addr('add', index=1, address='{address}', prefixlen=32, proto={_PROTOCOL})"
    )
    return lambda site: _quietly(site.run(sys.executable, "-c", code))


ANY = -1
"""For a count that depends on the document."""

FIREWALL = (
    Mutation(
        "delete the final drop", _delete_final_drop, {"rule": (1, 0), "order": (1, 1)}, "missing chain forward, rule"
    ),
    Mutation(
        "accept everything at the head",
        _nft("insert rule TABLE input accept"),
        {"rule": (0, 1), "order": (1, 1)},
        "foreign chain input, rule 1: accept",
    ),
    Mutation(
        "insert in the middle", _insert_in_the_middle, {"rule": (0, 1), "order": (1, 1)}, ": tcp dport 2222 accept"
    ),
    Mutation(
        "add at the end",
        _nft("add rule TABLE forward ip daddr 10.10.0.1 accept"),
        {"rule": (0, 1), "order": (1, 1)},
        ": ip daddr 10.10.0.1 accept",
    ),
    Mutation(
        "drop becomes accept", _replace_final_drop, {"rule": (1, 1), "order": (1, 1)}, "altered chain input, rule"
    ),
    Mutation("swap rules", _swap_two_rules, {"order": (1, 1)}, "foreign chain forward, rule 1: counter drop"),
    Mutation(
        "policy accept",
        _nft("chain TABLE forward { policy accept; }"),
        {"chain": (1, 1)},
        "altered chain forward: is 'type filter hook forward priority filter; policy accept;'",
    ),
    Mutation(
        "delete a pair",
        _nft(f"delete element TABLE local_pairs4 {{ {_PAIR} }}"),
        {"element": (1, 0)},
        f"missing set local_pairs4: element {_PAIR}",
    ),
    Mutation(
        "add a pair",
        _nft(f"add element TABLE local_pairs4 {{ {LAN} . 192.168.7.0/24 . 6 . 22 }}"),
        {"element": (0, 1)},
        f"foreign set local_pairs4: element {LAN} . 192.168.7.0/24 . 6 . 22",
    ),
    Mutation(
        "alter a pair",
        _nft(
            f"delete element TABLE local_pairs4 {{ {_PAIR} }}",
            f"add element TABLE local_pairs4 {{ {LAN} . 10.0.0.0/8 . 0-255 . 0-65535 }}",
        ),
        {"element": (ANY, 1)},
        f"foreign set local_pairs4: element {LAN} . 10.0.0.0/8",
    ),
    Mutation(
        "another LAN interface",
        _nft('add element TABLE lans { "eth9" }'),
        {"element": (0, 1)},
        "foreign set lans: element eth9",
    ),
    Mutation(
        "an uplink is no uplink",
        _nft('delete element TABLE uplinks { "lte" }'),
        {"element": (1, 0)},
        "missing set uplinks: element lte",
    ),
    Mutation(
        "a subnet is not protected",
        _nft(f"delete element TABLE protected4 {{ {CENTRE_LAN} }}"),
        {"element": (1, 0)},
        f"missing set protected4: element {CENTRE_LAN}",
    ),
    Mutation("empty a set", _nft("flush set TABLE local_pairs4"), {"element": (ANY, 0)}, "missing set local_pairs4"),
    Mutation(
        "a set of one's own",
        _nft("add set TABLE friends { type ipv4_addr; }"),
        {"set": (0, 1)},
        "foreign set friends",
    ),
    Mutation("a counter of one's own", _nft("add counter TABLE spare"), {"object": (0, 1)}, "foreign counter spare"),
    Mutation(
        "an idle chain", _nft("add chain TABLE backdoor"), {"chain": (0, 1), "order": (0, 1)}, "foreign chain backdoor"
    ),
    Mutation(
        "a chain that comes first",
        _nft("add chain TABLE early { type filter hook forward priority -10; policy accept; }"),
        {"chain": (0, 1), "order": (0, 1)},
        "foreign chain early (type filter hook forward",
    ),
    Mutation(
        "flush a base chain",
        _nft("flush chain TABLE input"),
        {"rule": (ANY, 0), "order": (1, 1)},
        "missing chain input",
    ),
    Mutation("flush a chain", _flush_jumped_to, {"rule": (ANY, 0), "order": (1, 1)}, ", rule 1"),
    # The rule that jumps there says so by name as well.
    Mutation(
        "rename a chain",
        _rename_chain,
        {"chain": (1, 1), "rule": (ANY, ANY), "order": (ANY, ANY)},
        "foreign chain elsewhere",
    ),
    Mutation(
        "flush the table",
        _nft("flush table TABLE"),
        {"rule": (ANY, 0), "order": (ANY, ANY)},
        "missing chain forward, rule 1",
    ),
    Mutation(
        "the table sleeps",
        _nft("add table TABLE { flags dormant; }"),
        {"table": (1, 1)},
        "altered the table itself: flags dormant",
    ),
    Mutation(
        "delete the table",
        _nft("delete table TABLE"),
        {"table": (1, 0), "chain": (ANY, 0), "order": (ANY, 0), "rule": (ANY, 0), "set": (ANY, 0), "element": (ANY, 0)},
        "missing the whole table",
    ),
    Mutation(
        "flush ruleset",
        _nft("flush ruleset"),
        {"table": (1, 0), "chain": (ANY, 0), "order": (ANY, 0), "rule": (ANY, 0), "set": (ANY, 0), "element": (ANY, 0)},
        "missing the whole table",
    ),
)

# With how each is undone.
ROUTING = (
    (
        Mutation(
            "delete a rule", _ip("rule del priority 110 iif wired"), {"rule": (1, 0)}, "missing v4 rule 110 iif wired"
        ),
        _ip(f"rule add priority 110 iif wired table {_INBOUND} protocol {_PROTOCOL}"),
    ),
    (
        Mutation(
            "a rule of one's own",
            _ip(f"rule add from 10.101.0.0/24 priority 105 table main protocol {_PROTOCOL}"),
            {"rule": (0, 1)},
            "foreign v4 rule 105 from 10.101.0.0/24 table 254",
        ),
        _ip("rule del priority 105"),
    ),
    (
        Mutation(
            "a rule leads elsewhere",
            _ip("rule del priority 130 iif lan0", f"rule add priority 130 iif lan0 table main protocol {_PROTOCOL}"),
            {"rule": (1, 1)},
            "altered is v4 rule 130 iif lan0 table 254, not v4 rule 130 iif lan0 table 15501",
        ),
        _ip("rule del priority 130 iif lan0", f"rule add priority 130 iif lan0 table {_INBOUND} protocol {_PROTOCOL}"),
    ),
    (
        Mutation(
            "the lock is open",
            _ip(f"route del unreachable default table {_INBOUND}"),
            {"route": (1, 0)},
            "missing route 0.0.0.0/0 unreachable table 15501",
        ),
        _ip(f"route add unreachable default table {_INBOUND} metric 1000 proto {_PROTOCOL}"),
    ),
    (
        Mutation(
            "a route into the tunnels goes",
            _ip(f"route del {CENTRE_LAN} dev TUNNEL table {_OUR_TABLE}"),
            {"route": (1, 0)},
            f"missing route {CENTRE_LAN} dev TUNNEL",
        ),
        _ip(f"route add {CENTRE_LAN} dev TUNNEL table {_OUR_TABLE} metric 100 proto {_PROTOCOL} scope link"),
    ),
    (
        Mutation(
            "a route leads to the internet",
            _ip(f"route replace {CENTRE_LAN} dev wired table {_OUR_TABLE} metric 100 proto {_PROTOCOL} scope link"),
            {"route": (1, 1)},
            f"altered is route {CENTRE_LAN} dev wired table 15500 metric 100, not route {CENTRE_LAN} dev TUNNEL",
        ),
        _ip(f"route replace {CENTRE_LAN} dev TUNNEL table {_OUR_TABLE} metric 100 proto {_PROTOCOL} scope link"),
    ),
    (
        Mutation(
            "a route of one's own",
            _ip(f"route add 10.99.0.0/24 dev wired table {_OUR_TABLE} metric 50 proto {_PROTOCOL}"),
            {"route": (0, 1)},
            "foreign route 10.99.0.0/24 dev wired table 15500 metric 50",
        ),
        _ip(f"route del 10.99.0.0/24 table {_OUR_TABLE}"),
    ),
    (
        Mutation(
            "one in the main table",
            _ip(f"route add 10.98.0.0/24 dev wired metric 7 proto {_PROTOCOL}"),
            {"route": (0, 1)},
            "foreign route 10.98.0.0/24 dev wired table 254 metric 7",
        ),
        _ip("route del 10.98.0.0/24 dev wired"),
    ),
    (
        Mutation(
            "somebody's route before ours",
            _ip(f"route add {CENTRE_LAN} dev wired table {_OUR_TABLE} metric 5"),
            {"route": (0, 1)},
            f"foreign route {CENTRE_LAN} table 15500 metric 5 is somebody else's",
        ),
        _ip(f"route del {CENTRE_LAN} dev wired table {_OUR_TABLE}"),
    ),
    (
        Mutation(
            "somebody's rule before ours",
            _ip("rule add priority 50 table main"),
            {"rule": (0, 1)},
            "foreign v4 rule 50 table 254 is somebody else's and comes before ours",
        ),
        _ip("rule del priority 50"),
    ),
    (
        Mutation(
            "a rule that matches less",
            _ip(
                "rule del priority 130 iif lan0",
                f"rule add priority 130 iif lan0 fwmark 7 table {_INBOUND} protocol {_PROTOCOL}",
            ),
            {"rule": (1, 1)},
            "foreign v4 rule 130 table 15501 says more than the agent's do (fwmark, fwmask)",
        ),
        _ip("rule del priority 130 iif lan0", f"rule add priority 130 iif lan0 table {_INBOUND} protocol {_PROTOCOL}"),
    ),
    (
        Mutation(
            "an address goes",
            _ip("addr del 10.255.0.9/32 dev lo"),
            {"address": (1, 0)},
            "missing address 10.255.0.9/32",
        ),
        _address("10.255.0.9"),
    ),
    (
        Mutation("an address of one's own", _address("10.99.9.9"), {"address": (0, 1)}, "foreign address 10.99.9.9/32"),
        _ip("addr del 10.99.9.9/32 dev lo"),
    ),
    (
        Mutation(
            "no forwarding",
            _forwarding("ipv4.ip_forward", 0),
            {"forwarding": (1, 1)},
            "altered v4 forwarding is off, not on",
        ),
        _forwarding("ipv4.ip_forward", 1),
    ),
    (
        Mutation(
            "IPv6 forwarding",
            _forwarding("ipv6.conf.all.forwarding", 1),
            {"forwarding": (1, 1)},
            "altered v6 forwarding is on, not off",
        ),
        _forwarding("ipv6.conf.all.forwarding", 0),
    ),
)

_BLOCK = "action block priority 900155"
# Of the kernel's ESP alone, with what undoes each.
POLICIES = (
    (
        Mutation(
            "a policy that shuts goes",
            _ip(f"xfrm policy del src 0.0.0.0/0 dst {CENTRE_LAN} dir out"),
            {"policy": (1, 0)},
            f"missing policy out block 0.0.0.0/0 to {CENTRE_LAN}",
        ),
        _ip(f"xfrm policy add src 0.0.0.0/0 dst {CENTRE_LAN} dir out {_BLOCK}"),
    ),
    (
        Mutation(
            "a policy of one's own that shuts",
            _ip(f"xfrm policy add src 0.0.0.0/0 dst 10.99.0.0/24 dir out {_BLOCK}"),
            {"policy": (0, 1)},
            "foreign policy out block 0.0.0.0/0 to 10.99.0.0/24",
        ),
        _ip("xfrm policy del src 0.0.0.0/0 dst 10.99.0.0/24 dir out"),
    ),
    (
        Mutation(
            "a policy that opens",
            _ip(f"xfrm policy add src {LAN} dst 10.10.0.0/25 dir out action allow priority 5"),
            {},
            f"foreign policy out {LAN} to 10.10.0.0/25",
        ),
        _ip(f"xfrm policy del src {LAN} dst 10.10.0.0/25 dir out"),
    ),
)
