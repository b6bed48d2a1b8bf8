"""Do branches stay, and does one come back, while somebody floods their hub with IKE_SA_INIT?

Three attackers: one with an address of his own, one who forges his sources, and one behind the carrier's NAT that the
van and the hospital's cellular uplink are behind too. The first also from one port only, which connection tracking
would take for an established flow as soon as charon has answered it.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass

import pytest

from tests.lab import watch
from tests.lab.container import wait_until
from tests.lab.flooding import flooding
from tests.lab.lab import Lab

OUTSIDE = "203.0.113.202/32"
FORGED = "198.18.0.0/15"  # RFC 2544: nobody's, and answers end in the core
CARRIER = "203.0.113.100/32"
RATE = 3000
SECONDS = 12.0
# From the moment in which the van could, if it had the hub to itself. A try is made each second, and takes two INITs.
JOIN_S = 11.0
# A cookie costs charon some 50 us, and never more than 2,000 are asked for in a second.
CPU_SHARE_MAX = 0.5
RSS_GROWTH_MAX_KB = 8192
# With ESP in user space an overloaded machine that stands still for 0.2 s loses what its queues cannot hold.
LOST_MAX = 10
# Before and behind the product's own input chain: what is not IKE_SA_INIT must get from one to the other.
SEEN = """
table inet lab_seen {
  counter before {}
  counter behind {}
  chain before { type filter hook input priority -10;
    iifname "wan" udp dport 4500 @th,160,64 != 0 counter name before
    iifname "wan" udp dport 4500 @th,64,32 != 0 @th,160,64 0 counter name before
  }
  chain behind { type filter hook input priority 10;
    iifname "wan" udp dport 4500 @th,160,64 != 0 counter name behind
    iifname "wan" udp dport 4500 @th,64,32 != 0 @th,160,64 0 counter name behind
  }
}
"""


@dataclass(frozen=True)
class Attack:
    """`known`: the hub still knows the van that comes back; otherwise it is a stranger in the crowd. `reasons`: by
    which limits packets are dropped."""

    source: str
    port: int
    known: bool
    reasons: frozenset[str]


ATTACKS = {
    "one address": Attack(OUTSIDE, 0, False, frozenset({"ike_init_source"})),
    "one port": Attack(OUTSIDE, 4500, False, frozenset({"ike_init_source"})),
    "forged": Attack(FORGED, 0, False, frozenset({"ike_init_all"})),
    "same carrier": Attack(CARRIER, 0, True, frozenset({"ike_init_source"})),
}


@pytest.mark.parametrize("name", list(ATTACKS))
def test_that_branches_stay_and_one_joins_in_a_flood(lab: Lab, name: str) -> None:
    attack = ATTACKS[name]
    hub, van = lab.site("centre"), lab.site("van-1")
    van.kill()
    van.uplink("lte").blackhole()
    van.start()
    watch.wait_for(lab, "van-1", "its agent answers", lambda report: report.document_version is not None, 20)
    if not attack.known:
        hub.run("nft", "flush", "set", "inet", "cpe_agent", "ike_known4")
    lab.run("centre", "nft", "-f", "-", input=SEEN)
    try:
        drops, failures, (cpu_s, rss_kb) = _drops(lab), _failures(lab), _usage(lab)
        with lab.flow("hospital-1-host", "centre-server") as flow:
            flow.wait_flowing(5)
            start = time.monotonic()
            with flooding(
                lab, "198.51.100.10", source=attack.source, port=attack.port, rate=RATE, seconds=SECONDS
            ) as flood:
                van.uplink("lte").heal()
                watch.wait_for(lab, "van-1", "it is back", watch.all_up, JOIN_S)
                joined_s = time.monotonic() - start
                during = watch.status(lab, "hospital-1")
        then_cpu_s, then_rss_kb = _usage(lab)
        grown = {reason: count - drops.get(reason, 0) for reason, count in _drops(lab).items()}
        # One that is between the two just now is behind them the next time; one that was dropped never is.
        wait_until("all that came got behind the rules", lambda: _none_lost(_seen(lab)), 5)
    finally:
        lab.run("centre", "nft", "delete", "table", "inet", "lab_seen")
    assert joined_s < SECONDS, "the flood was over before"
    assert flood.sent > RATE * SECONDS / 2, "that was no flood"
    # Who was there stays, and feels nothing.
    assert all(path.state == "up" for path in during.paths)
    assert _failures(lab) == failures
    assert flow.result.lost <= LOST_MAX
    # The limits did it; they took nothing else.
    dropped = {reason for reason, count in grown.items() if count > 0}
    assert attack.reasons <= dropped <= attack.reasons | {"ike_init_all"}, grown
    assert sum(grown.values()) <= flood.sent + 20
    # charon has hardly noticed.
    assert then_cpu_s - cpu_s < CPU_SHARE_MAX * (time.monotonic() - start)
    assert then_rss_kb - rss_kb < RSS_GROWTH_MAX_KB


def _drops(lab: Lab) -> dict[str, int]:
    """By the hub's own metrics page, which must have them all, also before the first."""
    page = lab.run("centre", "curl", "-sf", "--max-time", "3", "http://127.0.0.1:9273/metrics").stdout
    pattern = r'^cpe_agent_ike_init_dropped_packets_total\{limit="(\w+)"\} (\S+)$'
    found = {f"ike_init_{limit}": int(float(count)) for limit, count in re.findall(pattern, page, re.MULTILINE)}
    assert set(found) == {"ike_init_known", "ike_init_source", "ike_init_all"}
    return found


def _failures(lab: Lab) -> int:
    """How often the hospital found a path dead."""
    return lab.site("hospital-1").agent.log.read_text(errors="replace").count("path_down")


def _usage(lab: Lab) -> tuple[float, int]:
    """charon of the hub: seconds of CPU so far, kB of memory now."""
    pid = lab.site("centre").charon.pid
    fields = lab.run("centre", "cat", f"/proc/{pid}/stat").stdout.rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    resident_pages = int(fields[21])
    return ticks / os.sysconf("SC_CLK_TCK"), resident_pages * os.sysconf("SC_PAGE_SIZE") // 1024


def _none_lost(seen: dict[str, int]) -> bool:
    return seen["before"] == seen["behind"] > 0


def _seen(lab: Lab) -> dict[str, int]:
    """Packets on UDP 4500 that were not IKE_SA_INIT, before and behind the product's rules."""
    listing = json.loads(lab.run("centre", "nft", "-j", "list", "counters", "table", "inet", "lab_seen").stdout)
    counters = (item["counter"] for item in listing["nftables"] if "counter" in item)
    return {counter["name"]: int(counter["packets"]) for counter in counters}
