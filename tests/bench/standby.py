"""What does a standby cellular uplink cost in a month, and is the model right that says so?

`month`: 30 days on a simulated clock (`tests.loops.standby`), the example network, both hubs behind a NAT; megabytes
from the outer IP header on, as a modem counts and a carrier charges them.

`model_error`: the same model against the counters of hospital-1's real `lte` interface, over SECONDS (environment; 960
by default, which is eight rounds of the controller's default). The lab's wire is an Ethernet: the model is told so, and
each end is told the other's address there, since a modem has no neighbours to ask for it. With a shorter time paths are
asked more often, so that there are eight rounds all the same.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import random
import time
from collections.abc import Callable
from functools import partial

import trio
import yaml
from trio.testing import MockClock

from cpe_agent.model.condition import Status
from cpe_agent.model.document import Document
from cpe_agent.model.observed import Links
from cpe_controller.compile import rehearse
from cpe_controller.parse import parse
from tests.bench.bench import Bench
from tests.bench.onwire import by_kind as by_kind_on_wire
from tests.lab import provision, watch
from tests.lab.capture import record, uplink_wire
from tests.lab.lab import Lab
from tests.lab.wiring import TO_CPE
from tests.loops.standby import MONTH_S, Account, Wire, simulate
from tests.loops.test_standby import hospital
from tests.loops.world import LINKS

SITE, UPLINK = "hospital-1", "lte"
ROUNDS = 8
DEFAULT_S = 960.0
UP_S = 120.0
# Paths settle, are measured, and probes fall into their slow step. Counting begins between two rounds of the model's.
SETTLE_ROUNDS = 1.5


def month(_runs: int, _chance: random.Random, say: Callable[[str], None]) -> list[float]:
    """MB in 30 days; every run would be the same."""
    account = _simulated(hospital(), MONTH_S, Wire())
    say("MB: " + ", ".join(f"{what} {spent / 1e6:.2f}" for what, spent in account.spent.items()))
    ethernet = _simulated(hospital(), MONTH_S / 30, Wire(header=14)).total * 30 / 1e6
    say(f"on a modem that is an Ethernet interface {ethernet:.1f} MB")
    return [account.total / 1e6]


def model_error(bench: Bench) -> list[float]:
    """Percent that the model is off what the interface counted, either way."""
    seconds = float(os.environ.get("SECONDS", DEFAULT_S))
    text = _network(bench.lab, round(seconds / ROUNDS * 1000))
    versions = provision.apply(bench.lab, text)
    for site, version in versions.items():
        # A hub calls IKE_SAs that were made under its old settings out of sync.
        watch.wait_for(bench.lab, site, "it obeys", partial(_has, version), UP_S)
    # A hub asks for life as it was told when the IKE_SA was made: all are made anew. The old ones are ended, or the
    # hubs would still end them, with eleven packets each, while bytes are counted.
    branch = bench.lab.site(SITE)
    branch.charon.stop()
    branch.start_charon()
    watch.wait_all_up(bench.lab, UP_S, [SITE])
    _introduce(bench.lab)
    document = rehearse(parse(text), dt.datetime(2026, 1, 1, tzinfo=dt.UTC))[SITE]
    settle = SETTLE_ROUNDS * seconds / ROUNDS
    wire = Wire(header=14, here=True, there=1)
    until, before_that = _simulated(document, settle + seconds, wire), _simulated(document, settle, wire)
    modelled = until.total - before_that.total
    by_kind = {what: spent - before_that.spent.get(what, 0.0) for what, spent in until.spent.items()}
    bench.say("modelled: " + ", ".join(f"{what} {spent:.0f}" for what, spent in by_kind.items() if spent))
    samples = []
    time.sleep(settle)
    for run in range(1, bench.runs + 1):
        before, spent_before, began = _counted(bench.lab), _overhead(bench.lab), time.monotonic()
        with record(bench.lab, [uplink_wire(SITE, UPLINK)]) as recording:
            time.sleep(seconds)
        counted = (_counted(bench.lab) - before) * seconds / (time.monotonic() - began)
        samples.append(abs(modelled / counted - 1) * 100)
        kinds = by_kind_on_wire(recording.packets)
        bench.say("on the wire: " + ", ".join(f"{what} {size} ({count})" for what, (count, size) in kinds.items()))
        spent = _overhead(bench.lab) - spent_before
        bench.say(
            f"run {run}: {counted:.0f} bytes counted in {seconds:.0f} s, {modelled:.0f} modelled, "
            f"{spent} of them the agent's own by its metric (from the IP header on)"
        )
    return samples


def _simulated(document: Document, seconds: float, wire: Wire) -> Account:
    async def run() -> Account:
        return await simulate(document, Links({link.name: link for link in LINKS}), UPLINK, seconds, wire)

    return trio.run(run, clock=MockClock(autojump_threshold=0))


def _network(lab: Lab, standby_ms: int) -> str:
    described = yaml.safe_load(provision.network_yaml(lab.network))
    # The active link is not what is measured; asked calmly, a busy machine does not put it in doubt, for which standby
    # paths would be asked at the quick pace.
    described["probe"] = {"active_interval_ms": 1000, "misses": 3}
    uplinks = described["branches"][SITE]["uplinks"]
    if standby_ms < 120_000:
        uplinks[UPLINK]["probe"] = {"standby_interval_ms": standby_ms}
    return yaml.safe_dump(described, sort_keys=False)


def _introduce(lab: Lab) -> None:
    uplink = lab.site(SITE).uplink(UPLINK)
    ends = ((SITE, UPLINK, uplink.gateway), (uplink.router, TO_CPE, uplink.address.ip))
    addresses = [
        json.loads(lab.run(name, "ip", "-j", "link", "show", device).stdout)[0]["address"] for name, device, _ in ends
    ]
    for (name, device, asked), known in zip(ends, reversed(addresses), strict=True):
        # Nor is it asked for routers.
        lab.run(name, "sysctl", "-q", "-w", f"net.ipv6.conf.{device}.router_solicitations=0")
        lab.run(name, "ip", "neigh", "replace", str(asked), "lladdr", known, "nud", "permanent", "dev", device)


def _has(version: int, report: Status) -> bool:
    return (report.document_version or 0) >= version


def _counted(lab: Lab) -> int:
    (found,) = json.loads(lab.run(SITE, "ip", "-s", "-j", "link", "show", UPLINK).stdout)
    counters = found["stats64"]
    return int(counters["rx"]["bytes"]) + int(counters["tx"]["bytes"])


def _overhead(lab: Lab) -> int:
    return next(u.overhead_bytes or 0 for u in watch.status(lab, SITE).uplinks if u.name == UPLINK)
