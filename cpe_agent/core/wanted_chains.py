"""Which rules judge a packet?

Pure. Theory of operation:

- A flow is admitted by who started it: packets in its original direction against the pairs that their side may start,
  replies against the same element the other way round, ICMP errors by the flow they speak of. Every packet is looked
  up, also of established flows, so a pair that goes takes its flows with it.
- The router itself is reached through a tunnel only for probes, by pairs that name its site address, and by the answers
  of servers that it asks for itself (pairs with a probe: from one address to one server, nothing else); from a LAN for
  neighbour discovery, echo, DHCP and what `management` lists; from an uplink for IKE on a hub, and for what a working
  host needs. What claims a protected address and did not come through a tunnel is dropped before "established" is
  asked: a forged echo reply in cleartext must never keep a dead path up.
- Everything else is dropped by the chain's policy and by a final rule as well: a base chain that is being replaced
  accepts until its policy is committed, the rule does not.
- What is dropped is counted by reason, and a sample of it is logged: each reason has one limit of its own, so that a
  flood of one hides no other. A reason that only some packets of a chain are dropped for has a chain `drop_REASON`.
- What IKE and its keepalives cost is counted by uplink (core.overhead), and goes on to be judged.
- IKE_SA_INIT is told apart from ESP, DPD and all else on UDP 4500 by its non-ESP marker and its zero responder SPI, so
  limits never touch what is established. They are asked before conntrack is: a flood from one port that charon has
  answered would be "established". Whom the hub has sent ESP to within the hour, by address and port, passes apart from
  the crowd: a branch that lost its IKE_SA comes back in the middle of a flood, also from behind its attacker's NAT.

Rules are written exactly as `nft -s list` prints them, so that what is read back compares equal.
"""

from __future__ import annotations

from cpe_agent.model.dataplane import IKE_BYTES_IN, IKE_BYTES_OUT, Backend, NftChain
from cpe_agent.model.document import METRICS_PORT

IP = {4: "ip", 6: "ip6"}
ICMP = {4: "icmp", 6: "ipv6-icmp"}
ECHO_REPLY = {4: "icmp type echo-reply", 6: "icmpv6 type echo-reply"}
ECHO = {4: "icmp type echo-request", 6: "icmpv6 type echo-request"}
DROP_POLICY = "type filter hook {hook} priority filter; policy drop;"
ACCEPT_POLICY = "type filter hook {hook} priority filter; policy accept;"
# UDP header 8 bytes, then the non-ESP marker (4 zero bytes), initiator SPI (8), responder SPI (8, zero in IKE_SA_INIT).
IKE_INIT = "udp dport 4500 @th,64,32 0x0 @th,160,64 0x0"
# What the router spends on keeping its paths: IKE of any kind, and keepalives, which are one byte. Nothing is judged
# here: the elements of the set count.
IKE_COUNTED = {
    IKE_BYTES_IN: ("udp dport 4500 @th,64,32 0x0 iifname", "udp dport 4500 udp length 9 iifname"),
    IKE_BYTES_OUT: ("udp sport 4500 @th,64,32 0x0 oifname", "udp sport 4500 udp length 9 oifname"),
}
ESP_OUT = "udp sport 4500 @th,64,32 != 0x0"
# What passes is still charon's to judge: it asks for a cookie, which costs it some 45 us (measured, on one 2.5 GHz core
# with ESP in user space), so 1500/s is 7 % of a core, and a fleet of 2,000 branches is through in a few seconds. Bursts
# are small because with ESP in user space its packets wait in the same queue, which holds a few hundred. One address
# may be a carrier's NAT: a third of all, so that of newcomers who share it with an attacker at 3000/s each sixth try
# passes. A known dialler needs two INITs for each of its paths to us.
INIT_KNOWN = "limit rate over 5/second burst 20 packets"
INIT_PER_SOURCE = "limit rate over 500/second burst 200 packets"
INIT_IN_ALL = "limit rate over 1500/second burst 300 packets"
LOG_SAMPLE = "limit rate 6/minute burst 10 packets"
# Reasons for which some packets of a chain are dropped, and others go on.
SOME_DROPPED = ("breakout", "spoofed", "cleartext", "uplink_output")
INIT_DROPPED = ("ike_init_known", "ike_init_source", "ike_init_all")


def chains(backend: Backend, hub: bool) -> list[NftChain]:
    """All chains of the table."""
    came, goes = backend.came_through, backend.goes_through
    forward = (
        f"iifname @lans {goes} jump lan_to_tunnel",
        f"{came} oifname @lans jump tunnel_to_lan",
        *_drop("unlisted"),
    )
    found = [
        NftChain("prerouting", ACCEPT_POLICY.format(hook="prerouting"), _breakout()),
        NftChain("forward", DROP_POLICY.format(hook="forward"), forward),
        NftChain("lan_to_tunnel", "", (*_unspoofed(), *_clamp(), *_admit("local", "remote"))),
        NftChain("tunnel_to_lan", "", (*_clamp(), *_admit("remote", "local"))),
        NftChain("input", DROP_POLICY.format(hook="input"), _input(came, hub)),
        NftChain("from_tunnel", "", (*_from_tunnel(), *_drop("tunnel_input"))),
        NftChain("from_lan", "", (*_from_lan(), *_drop("lan_input"))),
        NftChain("from_uplink", "", (*_from_uplink(hub), *_drop("uplink_input"))),
        NftChain("output", ACCEPT_POLICY.format(hook="output"), _output(goes, hub)),
    ]
    if hub:
        found.append(NftChain("ike_init", "", _ike_init()))
    reasons = (*SOME_DROPPED, *(INIT_DROPPED if hub else ()))
    return found + [NftChain(f"drop_{reason}", "", _drop(reason)) for reason in reasons]


def _drop(reason: str) -> tuple[str, str]:
    return (f'{LOG_SAMPLE} log prefix "cpe_agent {reason}: "', f'counter drop comment "{reason}"')


def _breakout() -> tuple[str, ...]:
    # There is no way from a LAN to anything that is not protected. Routing says so too, but counts nothing.
    return tuple(
        f"iifname @lans {IP[v]} daddr != @protected{v} fib daddr type unicast jump drop_breakout" for v in (4, 6)
    )


def _unspoofed() -> list[str]:
    # Only the source is judged: where it goes is the pairs' matter.
    return [f"iifname . {IP[v]} saddr != @lan_sources{v} jump drop_spoofed" for v in (4, 6)]


def _clamp() -> tuple[str, ...]:
    # Both ends clamp what they encrypt; together that covers both directions of a connection.
    return ("tcp flags syn tcp option maxseg size set rt mtu",)


def _admit(starter: str, answerer: str) -> list[str]:
    """Packets in one direction: of flows that this side starts, and replies to flows that the other side starts."""
    rules: list[str] = []
    for v in (4, 6):
        errors = f"meta l4proto {ICMP[v]} ct state related ct original {IP[v]} saddr . ct original {IP[v]} daddr"
        rules += [
            f"{_original(v)} @{starter}_pairs{v} accept",
            f"{_reply(v)} @{answerer}_pairs{v} accept",
            f"{errors} @{starter}_nets{v} accept",
            f"{errors} @{answerer}_nets{v} accept",
        ]
    return rules


def _original(v: int) -> str:
    return f"ct direction original {IP[v]} saddr . {IP[v]} daddr . meta l4proto . th dport"


def _reply(v: int) -> str:
    return f"ct direction reply {IP[v]} daddr . {IP[v]} saddr . meta l4proto . th sport"


def _input(came: str, hub: bool) -> tuple[str, ...]:
    cleartext = [
        f"iifname @uplinks {IP[v]} {side} @protected{v} jump drop_cleartext"
        for side in ("saddr", "daddr")
        for v in (4, 6)
    ]
    return (
        'iifname "lo" accept',
        *_ike_counted(IKE_BYTES_IN),
        f"{came} jump from_tunnel",
        *cleartext,
        *((f"iifname @uplinks {IKE_INIT} jump ike_init",) if hub else ()),
        "ct state established,related accept",
        # What a working host needs on any link, also before a document has said which is which: neighbours, router
        # advertisements, and its own DHCP client's answers.
        "icmpv6 type { nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept",
        "udp sport 67 udp dport 68 accept",
        "udp sport 547 udp dport 546 accept",
        "iifname @lans jump from_lan",
        "iifname @uplinks jump from_uplink",
        *_drop("input"),
    )


def _ike_counted(name: str) -> tuple[str, ...]:
    return tuple(f"{what} @{name}" for what in IKE_COUNTED[name])


def _from_tunnel() -> list[str]:
    rules: list[str] = []
    for v in (4, 6):
        rules += [
            f"{IP[v]} daddr @answering{v} {ECHO[v]} accept",
            # Replies alone: a running probe is "established" too, and must fall silent when its address does.
            f"{IP[v]} saddr @probed{v} {ECHO_REPLY[v]} ct state established accept",
            # What the servers say that this router asks for itself.
            f"{IP[v]} daddr . {IP[v]} saddr @asked_echo{v} {ECHO_REPLY[v]} ct state established accept",
            f"ct direction reply {IP[v]} daddr . {IP[v]} saddr . tcp sport @asked_tcp{v} accept",
            f"{IP[v]} daddr @site{v} {_original(v)} @remote_pairs{v} accept",
            f"{IP[v]} daddr @site{v} {_reply(v)} @local_pairs{v} accept",
            f"meta l4proto {ICMP[v]} ct state related accept",
        ]
    return rules + _management()


def _from_lan() -> list[str]:
    return [
        "icmp type echo-request accept",
        "icmpv6 type { echo-request, nd-router-solicit } accept",
        # Hosts ask for an address before they have one. Who gives it (a DHCP server on the router, or none) is the
        # operator's matter, and nothing is forwarded for it.
        "udp sport 68 udp dport 67 accept",
        *_management(),
    ]


def _management() -> list[str]:
    rules: list[str] = []
    for v in (4, 6):
        rules += [
            f"{IP[v]} saddr @ssh_from{v} tcp dport 22 accept",
            f"{IP[v]} saddr @metrics_from{v} tcp dport {METRICS_PORT} accept",
            # OSPF, BGP and BFD: what a data centre's routers speak to learn our return routes.
            f"{IP[v]} saddr @routing_from{v} meta l4proto ospf accept",
            f"{IP[v]} saddr @routing_from{v} tcp dport 179 accept",
            f"{IP[v]} saddr @routing_from{v} udp dport 3784 accept",
        ]
    return rules


def _from_uplink(hub: bool) -> tuple[str, ...]:
    return ("udp dport 4500 accept",) if hub else ()


def _ike_init() -> tuple[str, ...]:
    rules: list[str] = []
    for v in (4, 6):
        known = f"{IP[v]} saddr . udp sport @ike_known{v}"
        again = f"update @ike_again{v} {{ {IP[v]} saddr . udp sport {INIT_KNOWN} }}"
        rules += [f"{known} {again} jump drop_ike_init_known", f"{known} accept"]
    for v in (4, 6):
        source = f"update @ike_init{v} {{ {IP[v]} saddr {INIT_PER_SOURCE} }}"
        rules.append(f"{source} jump drop_ike_init_source")
    return (*rules, f"{INIT_IN_ALL} jump drop_ike_init_all")


def _acquaint() -> list[str]:
    """Remember where our ESP goes: there an IKE_SA is established, which no attacker's is. Looked up before it is
    added, because a lookup is all that a packet may cost."""
    return [
        f"oifname @uplinks {ESP_OUT} {IP[v]} daddr . udp dport != @ike_known{v} "
        f"add @ike_known{v} {{ {IP[v]} daddr . udp dport }}"
        for v in (4, 6)
    ]


def _output(goes: str, hub: bool) -> tuple[str, ...]:
    rules = ['oifname "lo" accept', *_ike_counted(IKE_BYTES_OUT), *(_acquaint() if hub else ())]
    for v in (4, 6):
        to_protected = f"{IP[v]} daddr @protected{v}"
        rules += [
            f"{to_protected} oifname @lans accept",
            f"{to_protected} {goes} ct direction reply accept",
            f"{to_protected} {goes} meta l4proto {ICMP[v]} ct state related accept",
            f"{IP[v]} daddr @probed{v} {goes} {ECHO[v]} accept",
            f"{IP[v]} saddr . {IP[v]} daddr @asked_echo{v} {goes} {ECHO[v]} accept",
            f"{goes} {IP[v]} saddr . {IP[v]} daddr . tcp dport @asked_tcp{v} accept",
            f"{IP[v]} saddr @site{v} {goes} {_original(v)} @local_pairs{v} accept",
            f"{to_protected} jump drop_cleartext",
            # An inner address has no business on an uplink, wherever it goes: also not what was begun while its way
            # still led through a tunnel.
            f"oifname @uplinks {IP[v]} saddr @protected{v} jump drop_cleartext",
        ]
    # Our kernel would answer what it does not forward, and fragments that never become whole, to whatever source they
    # claim: a site says nothing to the internet, least of all to a protected address.
    errors = "{ destination-unreachable, time-exceeded, parameter-problem }"
    for icmp in ("icmp", "icmpv6"):
        rules.append(f"oifname @uplinks {icmp} type {errors} jump drop_uplink_output")
    return tuple(rules)
