"""What does a standby uplink cost? A byte model, fed by the real loops on a simulated clock.

`Probing` and `PathMtus` run as in the agent, over a prober that answers and takes note of every packet; when charon
would rekey, they are told of new SAs. What charon itself then sends (keepalives, DPD, rekeying, replacing) is worked
out from when packets passed, as charon does. `tests.bench.standby` holds the model against the counters of a real
interface.
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass, field

import trio

from cpe_agent.core.compile import Site, compile_dataplane
from cpe_agent.core.wanted_tunnels import dpd_s
from cpe_agent.loops.cells import Cells, Plan
from cpe_agent.loops.pathmtu import PathMtus
from cpe_agent.loops.probing import Probing
from cpe_agent.model.dataplane import Backend, Path, Probe
from cpe_agent.model.document import Document
from cpe_agent.model.observed import Charon, ChildSa, IkeSa, Links
from tests.fakes.prober import FakeProber

MONTH_S = 30 * 86400.0
# strongswan.conf of our charon.
KEEP_ALIVE_S = 25.0
# Wire bytes from the outer IPv4 header on, packet by packet, as captured on a lab's link: with a key exchange each, and
# with the end of the old one.
DPD = (89, 89)
CHILD_REKEY = (317, 305, 101, 101)
IKE_REKEY = (245, 245, 97, 89)
# As a network's own authority makes them, P-256: a certificate from each end, and the probe CHILD_SA.
REPLACEMENT = (288, 349, 907, 800, 97, 89)
KEEP_ALIVE_BYTES = 20 + 8 + 1
ECHO_BYTES = 20 + 8 + 16
RTT_S = 0.06


def esp_bytes(inner: int) -> int:
    """A packet in ESP with AES-GCM in UDP: IPv4, UDP, SPI and sequence, IV, what is inside padded to four bytes with
    its two-byte trailer, ICV."""
    return 20 + 8 + 8 + 8 + math.ceil((inner + 2) / 4) * 4 + 16


@dataclass(frozen=True)
class Wire:
    """How the uplink counts. `header`: of the link, 14 on Ethernet, none on a modem; `here`, `there`: NATs, which make
    charon send keepalives (there: how many of the hubs are behind one)."""

    header: int = 0
    here: bool = True
    there: int = 2


@dataclass
class Account:
    """Bytes of one uplink, by what they are for, both directions; packets as well, for a link's own headers."""

    spent: dict[str, float] = field(default_factory=dict)
    wire: Wire = field(default_factory=Wire)

    def add(self, what: str, packet_bytes: float, packets: float = 1) -> None:
        self.spent[what] = self.spent.get(what, 0.0) + packets * (packet_bytes + self.wire.header)

    @property
    def total(self) -> float:
        return sum(self.spent.values())


class _Counted(FakeProber):
    """Answers everything, but for a share `losing` of what leaves over other uplinks than `spared`; notes when and how
    large."""

    def __init__(self, probes: tuple[Probe, ...], spared: str, losing: float = 0.0) -> None:
        super().__init__()
        self._lossy = {probe.source for probe in probes if probe.path.uplink != spared}
        self._losing = losing
        self._chance = random.Random(1)
        self.passed: list[tuple[float, str, str, int]] = []
        for probe in probes:
            self.addresses.add(probe.source)
            for address in (probe.probe_address, probe.ready_address):
                self.rtt_s[probe.source, address] = RTT_S

    def send(self, source: str, target: str, sequence: int, size: int = 0) -> bool:
        self.passed.append((trio.current_time(), source, target, size or ECHO_BYTES))
        # A month of them is not kept twice.
        self.sent.clear()
        if source in self._lossy and self._chance.random() < self._losing:
            return True
        return super().send(source, target, sequence, size)


async def simulate(
    document: Document, links: Links, uplink: str, seconds: float, wire: Wire, losing: float = 0.0
) -> Account:
    """Let the loops run for `seconds` on trio's (simulated) clock, all paths up, traffic elsewhere, where a share of
    `losing` is lost; then count."""
    dataplane = compile_dataplane(document, links, Site("x.net.cpe", Backend.USERLAND))[0]
    probes = dataplane.probes
    cells, prober, large = Cells(), _Counted(probes, uplink, losing), _Counted(probes, uplink)
    cells.plan.set(Plan(document, dataplane, (), dict.fromkeys(document.uplinks, True)))
    carrying = {bundle.name: next(p for p in bundle.paths if p.uplink != uplink) for bundle in dataplane.bundles}
    cells.active.set(dict(carrying))
    rekey_s = min(document.ipsec.rekey_s, seconds + 1)
    async with trio.open_nursery() as nursery:
        # A search for the MTU stops at the first size on a path that takes all; a modem's takes some five.
        nursery.start_soon(PathMtus(cells, large).run)
        nursery.start_soon(Probing(cells, prober).run)
        for generation in range(math.ceil(seconds / rekey_s)):
            cells.charon.set(_charon(probes, set(carrying.values()), generation))
            await trio.sleep(min(rekey_s, seconds - generation * rekey_s))
        nursery.cancel_scope.cancel()
    account = Account(wire=wire)
    ours = [probe for probe in probes if probe.path.uplink == uplink]
    for number, probe in enumerate(ours):
        _count(account, document, probe, prober.passed, large.passed, seconds, number < wire.there)
    return account


def _count(
    account: Account,
    document: Document,
    probe: Probe,
    small: list[tuple[float, str, str, int]],
    large: list[tuple[float, str, str, int]],
    seconds: float,
    natted: bool,
) -> None:
    addresses = {probe.probe_address, probe.ready_address}
    passed: list[float] = []
    for what, packets in (("probes", small), ("path MTU", large)):
        for at, source, target, size in packets:
            if source == probe.source and target in addresses:
                account.add(what, esp_bytes(size), 2)
                passed.append(at)
    passed.sort()
    ends = int(account.wire.here) + int(natted)
    account.add("keepalives", KEEP_ALIVE_BYTES, ends * _keepalives(passed, seconds))
    patience = dpd_s(document, probe.path.uplink)
    rekeys, replacements = seconds // document.ipsec.rekey_s, seconds // document.ipsec.max_age_s
    for what, packets_bytes, times in (
        ("DPD", DPD, _silences(passed, patience, seconds)),
        ("rekeying", CHILD_REKEY + IKE_REKEY, rekeys),
        ("replacing", REPLACEMENT, replacements),
    ):
        account.add(what, sum(packets_bytes) / len(packets_bytes), len(packets_bytes) * times)


def _keepalives(passed: list[float], seconds: float) -> int:
    """charon looks every `KEEP_ALIVE_S` whether anything has left since; if so, again that long after it."""
    sent, last, upcoming = 0, 0.0, iter([*passed, math.inf])
    due, following = KEEP_ALIVE_S, next(upcoming)
    while due < seconds:
        while following <= due:
            last, following = following, next(upcoming)
        if due - last >= KEEP_ALIVE_S:
            sent += 1
            due += KEEP_ALIVE_S
        else:
            due = last + KEEP_ALIVE_S
    return sent


def _silences(passed: list[float], patience: float, seconds: float) -> int:
    """How often nothing came for so long; an answer to DPD is something."""
    times = [0.0, *passed, seconds]
    return sum(int((later - sooner) // patience) for sooner, later in itertools.pairwise(times))


def _charon(probes: tuple[Probe, ...], carrying: set[Path], generation: int) -> Charon:
    sas = []
    for number, probe in enumerate(probes):
        unique_id = generation * 1000 + number
        there = (f"{probe.probe_address}/32", f"{probe.ready_address}/32")
        children = [ChildSa("probe", unique_id, "INSTALLED", (f"{probe.source}/32",), there)]
        if probe.path in carrying:
            children.append(ChildSa("traffic-x", unique_id + 500, "INSTALLED", (), ()))
        sas.append(IkeSa(f"cpe-{probe.path}-00000000", unique_id, "ESTABLISHED", True, children=tuple(children)))
    return Charon({}, tuple(sas), True)
