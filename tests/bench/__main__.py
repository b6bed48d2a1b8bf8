"""`python -m tests.bench [NAME]` measures all figures, or one, on a lab of its own, and keeps them in build/bench.json.

Exits 0 if every figure is within its limit, 1 if one is not or could not be measured, 2 for an unknown name. N and SEED
in the environment (`make bench N=30`) are the same as --runs and --seed.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Sequence

from cpe_agent.edge.ipsec import resolve
from cpe_agent.model.dataplane import Backend
from cpe_agent.ports import EdgeError
from tests.bench.alone import in_namespace
from tests.bench.applying import apply_to_programmed
from tests.bench.bench import Bench, Measure, Setting
from tests.bench.brownout import BROWNOUT
from tests.bench.charonkill import charon_kill
from tests.bench.enrol import token_to_ping
from tests.bench.figure import Figure, keep, summarise
from tests.bench.flap import FLAP
from tests.bench.footprint import FOOTPRINT
from tests.bench.kernel import failover_after_restart, planned_move_lost
from tests.bench.leakage import forbidden_packets
from tests.bench.outage import OUTAGES
from tests.bench.planned import planned_move
from tests.bench.probecost import PROBE_COST
from tests.bench.restart import agent_restart
from tests.bench.standby import model_error
from tests.lab import watch
from tests.lab.container import REPOSITORY, LabError
from tests.lab.lab import Lab
from tests.lab.pace import BACKEND
from tests.lab.provision import provision
from tests.lab.topology import SMALL

FILE = REPOSITORY / "build" / "bench.json"
UP_S = 60.0
UNKNOWN_NAME = 2

MEASURES = (
    *OUTAGES,
    BROWNOUT,
    FLAP,
    PROBE_COST,
    *FOOTPRINT,
    Measure(
        "planned_move_lost_packets",
        "packets",
        "lost of 100 packets/s each way by a switch, a drill, a drained hub and a failback",
        limit=0,
        runs=10,
        take=planned_move,
    ),
    Measure(
        "forbidden_packets_delivered",
        "packets",
        "unlisted packets that arrive: tcp, udp, icmp, fragments, all hosts both ways",
        limit=0,
        runs=1,
        take=forbidden_packets,
    ),
    Measure(
        "agent_restart_lost_packets",
        "packets",
        "lost of 100 packets/s each way when agents restart, SIGTERM and kill -9",
        limit=0,
        runs=5,
        take=agent_restart,
    ),
    Measure(
        "charon_kill_recover_ms",
        "ms",
        "from a killed charon's successor taking commands to every path up, branch and hub",
        limit=3000,
        runs=5,
        take=charon_kill,
    ),
    Measure(
        "token_to_ping_s",
        "s",
        "from a token typed on a new box to the first ping through a tunnel",
        limit=5,
        runs=5,
        take=token_to_ping,
    ),
    Measure(
        "apply_to_programmed_p99_ms",
        "ms",
        "from an apply --now to rules, routes and tunnels of each site read back as it says, 100 samples",
        limit=1000,
        runs=1,
        take=apply_to_programmed,
    ),
    Measure(
        "pairs_10k_first_apply_ms",
        "ms",
        "from a hub's first document, decoded, to 10,000 pairs in the kernel",
        limit=500,
        runs=5,
        take=in_namespace("tests.bench.pairs:first_apply"),
        worst=False,
        needs_lab=False,
    ),
    Measure(
        "pair_added_10k_ms",
        "ms",
        "from the decoded document to one pair more among 10,000 in the kernel",
        limit=20,
        runs=10,
        take=in_namespace("tests.bench.pairs:pair_added"),
        worst=False,
        needs_lab=False,
    ),
    Measure(
        "pair_removed_10k_ms",
        "ms",
        "from the decoded document to one pair less among 10,000 in the kernel",
        limit=50,
        runs=10,
        take=in_namespace("tests.bench.pairs:pair_removed"),
        worst=False,
        needs_lab=False,
    ),
    Measure(
        "pair_edit_lost_packets",
        "packets",
        "lost of listed flows, 1,000 packets/s each way, while other pairs change and sets are swapped",
        limit=0,
        runs=3,
        take=in_namespace("tests.bench.pairs:edit_lost"),
        worst=True,
        needs_lab=False,
    ),
    Measure(
        "foreign_flush_repair_ms",
        "ms",
        "from somebody's `nft flush ruleset` to 10,000 pairs listed again as wanted",
        limit=1000,
        runs=10,
        take=in_namespace("tests.bench.pairs:foreign_flush"),
        worst=True,
        needs_lab=False,
    ),
    Measure(
        "controller_kb_per_agent",
        "kB",
        "the controller's memory for each of 2,000 agents: a held stream with its own certificate, and its report",
        limit=100,
        runs=1,
        take=in_namespace("tests.bench.fanout:kb_per_agent"),
        needs_lab=False,
    ),
    Measure(
        "fanout_2000_p99_ms",
        "ms",
        "from the first write of an apply to 2,000 sites until 99 % of the agents have verified their document",
        limit=1000,
        runs=5,
        take=in_namespace("tests.bench.fanout:fanout"),
        worst=False,
        needs_lab=False,
    ),
    Measure(
        "controller_restart_absorbed_s",
        "s",
        "from a new controller process until 2,000 agents hold a stream again, no error but a retry",
        limit=30,
        runs=2,
        take=in_namespace("tests.bench.fanout:restart"),
        needs_lab=False,
    ),
    Measure(
        "hub2000_idle_pass_cpu_ms",
        "ms",
        "processor time of a pass that finds nothing changed: 2,000 branches x 2 uplinks, 10,000 pairs",
        limit=50,
        runs=3,
        take=in_namespace("tests.bench.idle:idle_pass"),
        worst=False,
        needs_lab=False,
    ),
    Measure(
        "standby_month_mb",
        "MB",
        "a simulated month of a standby cellular uplink to two hubs, both ways, keepalives and rekeying included",
        limit=30,
        runs=1,
        take=in_namespace("tests.bench.standby:month"),
        needs_lab=False,
    ),
    Measure(
        "standby_model_error_percent",
        "%",
        "how far that model is off the interface's counters over SECONDS (960) of standing by in the lab",
        limit=10,
        runs=1,
        take=model_error,
        on_demand=True,
    ),
    Measure(
        "kernel_planned_move_lost_up",
        "packets",
        "lost of 100 packets/s from branch to hub by a planned move, kernel's ESP",
        limit=0,
        runs=5,
        take=planned_move_lost("up"),
        kernel_only=True,
        setting=Setting(network=SMALL),
    ),
    Measure(
        "kernel_planned_move_lost_down",
        "packets",
        "lost of 100 packets/s from hub to branch by a planned move, kernel's ESP",
        limit=6,
        runs=5,
        take=planned_move_lost("down"),
        kernel_only=True,
        setting=Setting(network=SMALL),
    ),
    Measure(
        "kernel_failover_after_restart_ratio",
        "times",
        "a failover 1, 5 or 30 s after the hub's charon was killed and restarted, to the usual one",
        limit=3,
        runs=10,
        take=failover_after_restart,
        kernel_only=True,
        setting=Setting(network=SMALL),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure figures by name.")
    parser.add_argument("name", nargs="?", help="which figure (default: all)")
    parser.add_argument("--runs", type=int, default=os.environ.get("N"), help="instead of each figure's own number")
    parser.add_argument("--seed", type=int, default=os.environ.get("SEED"), help="of the faults' moments")
    arguments = parser.parse_args(argv)
    wanted = [m for m in MEASURES if arguments.name == m.name or (arguments.name is None and not m.on_demand)]
    if resolve(BACKEND) is not Backend.KERNEL:
        elsewhere = [measure.name for measure in wanted if measure.kernel_only]
        if elsewhere:
            print(f"bench: not on this kernel, which has no ESP: {', '.join(elsewhere)}", file=sys.stderr)
            print("  make guest CMD='CPE_BACKEND=kernel .venv/bin/python -m tests.bench NAME'", file=sys.stderr)
        wanted = [measure for measure in wanted if not measure.kernel_only]
        if not wanted and elsewhere:
            return 1
    if not wanted:
        print(f"bench: there is no figure {arguments.name!r}. There are:", file=sys.stderr)
        for measure in MEASURES:
            print(f"  {measure.name:28}  {measure.about}", file=sys.stderr)
        return UNKNOWN_NAME
    if arguments.runs is not None and arguments.runs < 1:
        parser.error("--runs (or N) must be at least 1")
    if os.geteuid() != 0:
        print("bench: a lab is made of network namespaces: run this as root.", file=sys.stderr)
        return 1
    seed = random.SystemRandom().randrange(1_000_000) if arguments.seed is None else arguments.seed
    print(f"seed {seed} (SEED={seed} repeats the faults' moments)", flush=True)
    try:
        held = [_measure(measure, arguments.runs or measure.runs, seed) for measure in wanted]
    except KeyboardInterrupt:
        print("\nbench: interrupted; figures that were complete are kept.", file=sys.stderr)
        return 130
    print(f"figures are in {os.path.relpath(FILE)}")
    return 0 if all(held) else 1


def _measure(measure: Measure, runs: int, seed: int) -> bool:
    """Take one figure on a fresh lab, so that none inherits another's trouble, and keep it. Is it within its limit?"""
    print(f"\n{measure.name}: {measure.about}", flush=True)
    began = time.monotonic()
    try:
        backend, samples = _take(measure, runs, random.Random(seed))
    except (LabError, EdgeError) as error:
        print(f"  NOT MEASURED: {error}", flush=True)
        return False
    figure = summarise(measure.name, measure.unit, backend, samples, worst=measure.worst)
    keep(FILE, [figure])
    print(f"  {_told(figure, measure)}, {time.monotonic() - began:.0f} s", flush=True)
    return measure.holds(figure)


def _take(measure: Measure, runs: int, chance: random.Random) -> tuple[str, list[float]]:
    """(backend, samples)."""
    setting = measure.setting
    lab = Lab(setting.network, name="bench", say=_say_trouble)
    if not measure.needs_lab:
        return Backend.USERLAND.value, measure.take(Bench(lab, runs, chance, _say, setting))
    with lab:
        provision(lab, setting.network_yaml())
        lab.start()
        watch.wait_all_up(lab, UP_S)
        backend = watch.status(lab, setting.network.sites[0].name).backend
        return backend, measure.take(Bench(lab, runs, chance, _say, setting))


def _told(figure: Figure, measure: Measure) -> str:
    verdict = "held" if measure.holds(figure) else "NOT HELD"
    spread = f"min {figure.min:g}, median {figure.median:g}, max {figure.max:g}, n {figure.n}"
    return f"{figure.value:g} {figure.unit} ({spread}; {figure.backend}); {measure.limits}: {verdict}"


def _say(words: str) -> None:
    print(f"  {words}", flush=True)


def _say_trouble(words: str) -> None:
    if words.startswith("the lab's logs"):
        _say(words)


if __name__ == "__main__":
    sys.exit(main())
