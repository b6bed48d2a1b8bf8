"""Whatever happens in a row to hubs and branches, do they end as the document says, and does nobody else lose a thing?

Every fault once and then more by chance, 50 in all (`FAULTS=500` for more, `SEED=n` for the same again, `KINDS` for
some alone: "flush ruleset,kill the agent and flush"). After each the site must hold exactly what it held before, by the
oracle's readers, and nothing may have leaked. In every site's kernel and charon somebody else has a table, routes, a
rule, an address and a connection, which must outlive it all.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest

from tests.lab import watch
from tests.lab.container import LabError, wait_until
from tests.lab.lab import Lab
from tests.lab.pace import patience
from tests.lab.provision import provision
from tests.lab.site import RunningSite
from tests.scenarios import faults, oracle, strangers
from tests.scenarios.conftest import START_S, wait_whole
from tests.scenarios.faults import FAULTS, LOOK_MS, Fault
from tests.scenarios.looking import CENTRE_PAGE

COUNT = int(os.environ.get("FAULTS", "50"))
KINDS = tuple(filter(None, os.environ.get("KINDS", "").split(",")))
CHOICE = tuple(fault for fault in FAULTS if not KINDS or fault.name in KINDS)
SITES = ("hospital-1", "centre", "van-1")
NEVER_S = 60.0
AT_REST_EVERY = 5
INTERVAL_S = 0.02
# By site and reader.
Held = dict[str, dict[faults.Reader, oracle.Facts]]
# Each takes one or two; a rest is waited for as long as an IKE_SA is dialled anew and traffic has earned its way back.
FAULT_S, REST_S = 2, 30


@dataclass(frozen=True)
class Mended:
    """`took_ms`: how long after the fault somebody who looked still found it unmended; None if nobody waited. (When a
    look began that found it mended says less: the look before it may have taken long.)"""

    number: int
    fault: Fault
    site: str
    took_ms: float | None

    @property
    def in_time(self) -> bool:
        return self.took_ms is None or self.took_ms <= patience(self.fault.mends_ms)

    def __str__(self) -> str:
        took = "" if self.took_ms is None else f"{self.took_ms:6.0f} ms"
        return f"{self.number:3} {self.site:10} {self.fault.name:26} {took}"


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab(name="faults") as running:
        provision(running)
        running.start()
        watch.wait_all_up(running, START_S)
        yield running
        if request.session.testsfailed:
            print(f"the lab's logs are in {running.save_logs()}")


@pytest.mark.timeout(patience(120 + COUNT * FAULT_S + COUNT / AT_REST_EVERY * REST_S))
def test_faults_in_a_row(lab: Lab, record_property: Callable[[str, object], None]) -> None:
    seed = int(os.environ.get("SEED", random.SystemRandom().randrange(1_000_000)))
    record_property("seed", seed)
    print(f"SEED={seed} FAULTS={COUNT} repeats these faults", flush=True)
    chance = random.Random(seed)
    sites = [lab.site(name) for name in SITES]
    for site in sites:
        strangers.move_in(site)
    before = _held(lab, sites)
    theirs = {site.name: strangers.possessions(site) for site in sites}
    told: list[Mended] = []
    with lab.flow("hospital-1-host", "centre-server", rate=50, seconds=3600) as flow:
        for number, fault in enumerate(_chosen(chance), 1):
            site = chance.choice(sites)
            seen = strangers.seen(site)
            fault.do(lab, site, random.Random(f"{seed} {number}"))  # how much chance one takes is not the next's matter
            done_s = time.monotonic()
            if fault.mends_ms <= LOOK_MS:
                told.append(_mended(number, fault, site, before[site.name][fault.reads], done_s))
            else:
                # The next may come before this one is over: only a rest is waited for.
                told.append(Mended(number, fault, site.name, None))
            if not fault.spares:
                strangers.move_in(site)
            elif strangers.seen(site) < seen:
                pytest.fail(f"{fault} at {site.name}: somebody else's counter began again")
            print(told[-1], flush=True)
            _none_leaked(lab, told)
            assert strangers.possessions(site) == theirs[site.name], str(told[-1])
            if number % AT_REST_EVERY == 0:
                print(f"    at rest after {_wait_calm(lab, before):.1f} s", flush=True)
        _wait_calm(lab, before)
        count = flow.received()
        wait_until("the flow goes on", lambda: all(n > b for n, b in zip(flow.received(), count, strict=True)), 5)
    for site in sites:
        # An IKE_SA whose address has gone takes a few seconds to be given up.
        wait_until(f"verify finds nothing at {site.name}", partial(_is_verified, site), NEVER_S, interval_s=1)
    assert lab.fetch("hospital-1-host", CENTRE_PAGE) is not None
    assert lab.offer("centre-server", "10.101.0.10", "udp", 20).arrived == {}
    _none_leaked(lab, told)
    late = [mended for mended in told if not mended.in_time]
    assert not late, "mended late:\n" + "\n".join(map(str, late))


def _held(lab: Lab, sites: list[RunningSite]) -> Held:
    """What the sites hold at rest. It takes a second to read, in which a busy machine may lose a path for a moment: two
    readings must agree."""
    looks: list[Held] = []

    def agree() -> bool:
        wait_whole(lab)
        looks.append({site.name: {reads: reads(site) for reads in faults.READERS} for site in sites})
        return looks[-1] == (looks[-2] if len(looks) > 1 else None)

    wait_until("two readings agree", agree, NEVER_S)
    return looks[-1]


def _is_verified(site: RunningSite) -> bool:
    config = str(site.inside / "agent.yaml")
    done = site.run(sys.executable, "-m", "cpe_agent", "verify", "--config", config, check=False)
    print(done.stdout, flush=True)
    return done.status == 0


def _chosen(chance: random.Random) -> list[Fault]:
    """Each once, in any order, then some more by their weight."""
    more = max(0, COUNT - len(CHOICE))
    chosen = chance.sample(CHOICE, len(CHOICE)) + chance.choices(CHOICE, [fault.weight for fault in CHOICE], k=more)
    return chosen[:COUNT]


def _none_leaked(lab: Lab, told: list[Mended]) -> None:
    """Says after which faults, the last of which need not be over, and which packets."""
    if lab.leaked():
        after = "\n".join(map(str, told[-AT_REST_EVERY:]))
        pytest.fail(f"private packets reached the internet:\n{lab.leaked_flows()}\nafter\n{after}")


def _mended(number: int, fault: Fault, site: RunningSite, wanted: oracle.Facts, done_s: float) -> Mended:
    """Waits until what the fault concerns is as it was."""
    unmended_s = done_s
    while True:
        asked_s = time.monotonic()
        try:
            left = oracle.changed(wanted, found := fault.reads(site))
        except LabError as error:  # charon is not there yet
            left, found = {str(error): (1, 0)}, wanted
        if not left:
            return Mended(number, fault, site.name, (unmended_s - done_s) * 1000)
        unmended_s = asked_s
        if time.monotonic() - done_s > patience(NEVER_S):
            words = "\n".join([*(f"- {fact}" for fact in wanted - found), *(f"+ {fact}" for fact in found - wanted)])
            pytest.fail(f"{number}: {fault} at {site.name} is never mended: {left}\n{words}")
        time.sleep(INTERVAL_S)


def _wait_calm(lab: Lab, before: Held) -> float:
    """Until all sites are well, by their own word and by the oracle's. How long it took, in seconds."""
    began_s = time.monotonic()
    watch.wait_all_up(lab, NEVER_S)
    for name, held in before.items():
        wanted = held[faults.everything]
        while (found := faults.everything(lab.site(name))) != wanted:
            if time.monotonic() - began_s > patience(NEVER_S):
                lost, gained = sorted((wanted - found).elements()), sorted((found - wanted).elements())
                pytest.fail(f"{name} does not come to rest: lost {lost}, gained {gained}")
            time.sleep(INTERVAL_S)
    return time.monotonic() - began_s
