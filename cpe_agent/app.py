"""Which edges and loops make the daemon? The composition root: for the daemon, nothing else imports the edges.

`run` is the whole life of the daemon: build the edges, load the last good document, start the loops, stop on SIGTERM.
The data plane stays when the daemon goes: tunnels, rules and routes belong to the kernel and charon, and are adopted.
"""

from __future__ import annotations

import faulthandler
import functools
import sys

import msgspec
import trio

from cpe_agent import __version__
from cpe_agent.comparison import authorities, charon_port, signing_keys
from cpe_agent.core import drill
from cpe_agent.core.certificate import Life
from cpe_agent.core.compile import Site
from cpe_agent.edge import ipsec
from cpe_agent.edge.box import box
from cpe_agent.edge.charon_care import CharonCare
from cpe_agent.edge.connector import TcpConnector
from cpe_agent.edge.control import ask, serve_control
from cpe_agent.edge.controller import HttpsController
from cpe_agent.edge.credentials import Credentials
from cpe_agent.edge.early import EarlyEsp
from cpe_agent.edge.identity import Identity, load_identity, vouched_by
from cpe_agent.edge.ipsecwatch import KernelIpsecPort
from cpe_agent.edge.metrics import serve_metrics
from cpe_agent.edge.names import Names
from cpe_agent.edge.netlink import Netlink
from cpe_agent.edge.nftables import NftablesFirewall
from cpe_agent.edge.prober import IcmpProber
from cpe_agent.edge.records import RecordFile
from cpe_agent.edge.store import FileStore
from cpe_agent.edge.systemd import ServiceSocket
from cpe_agent.edge.timesyncd import TimesyncdFile
from cpe_agent.log import configure, get_logger
from cpe_agent.loops.announce import Announcer
from cpe_agent.loops.cells import Cells
from cpe_agent.loops.charon_care import care_for_charon
from cpe_agent.loops.clock import FlooredClock
from cpe_agent.loops.confirm import InForce
from cpe_agent.loops.drill import Drills
from cpe_agent.loops.follow import Follower
from cpe_agent.loops.heartbeat import Heartbeat
from cpe_agent.loops.ipsec import keep_ipsec
from cpe_agent.loops.links import watch_links
from cpe_agent.loops.metering import Metering
from cpe_agent.loops.own_way import keep_own_way
from cpe_agent.loops.pathmtu import PathMtus
from cpe_agent.loops.planning import keep_plan
from cpe_agent.loops.probing import Probing
from cpe_agent.loops.readiness import ReadinessKeeper
from cpe_agent.loops.reconcile import Reconciler
from cpe_agent.loops.renew import Renewer
from cpe_agent.loops.report import Reporter
from cpe_agent.loops.services import ServiceProbing
from cpe_agent.loops.steering import steer_bundles
from cpe_agent.loops.time_servers import hand_over_time_servers
from cpe_agent.loops.trust import Trust
from cpe_agent.model.condition import DrainAnswer, RollbackAnswer, Status
from cpe_agent.model.dataplane import Backend
from cpe_agent.model.drill import DrillProgress, DrillRecord
from cpe_agent.newcomer import CONTROL_SOCKET, already, enrolled, stop_on_signal
from cpe_agent.ports import EdgeError
from cpe_agent.settings import Settings

log = get_logger()

# Worker threads read listings. A failover has some ten turns of the event loop, and at each a thread that computes
# keeps it waiting for this long; with Python's own 5 ms that is half of what a failover may take.
SWITCH_S = 0.0005


def run(settings: Settings) -> int:
    """Live until SIGTERM or SIGINT. Raises `EdgeError` when identity or kernel make a start impossible."""
    configure(settings.log, settings.log_level)
    # A stuck agent is ended by SIGABRT: where it was stuck is worth knowing.
    faulthandler.enable()
    sys.setswitchinterval(SWITCH_S)
    trio.run(_run, settings)
    return 0


def fetch_status(settings: Settings) -> Status:
    """Ask the running daemon. Raises `EdgeError` if there is none."""
    return msgspec.json.decode(ask(settings.run_dir / CONTROL_SOCKET, "status"), type=Status)


def drain(settings: Settings, drained: bool) -> DrainAnswer:
    """Tell the running daemon of a hub to be drained, or no longer. Raises `EdgeError` if there is none."""
    command = "drain" if drained else "undrain"
    return msgspec.json.decode(ask(settings.run_dir / CONTROL_SOCKET, command), type=DrainAnswer)


def rollback(settings: Settings) -> RollbackAnswer:
    """Tell the running daemon to go back to the document before. Raises `EdgeError` if there is none of either."""
    return msgspec.json.decode(ask(settings.run_dir / CONTROL_SOCKET, "rollback"), type=RollbackAnswer)


def start_drill(settings: Settings, kind: str, name: str) -> DrillProgress:
    """Begin a drill. Raises `EdgeError` if there is no daemon, or it refuses."""
    return msgspec.json.decode(ask(settings.run_dir / CONTROL_SOCKET, f"drill {kind} {name}"), type=DrillProgress)


def drill_progress(settings: Settings) -> DrillProgress:
    """How far it is. Raises `EdgeError`."""
    return msgspec.json.decode(ask(settings.run_dir / CONTROL_SOCKET, "drill"), type=DrillProgress)


def drill_lines(settings: Settings) -> tuple[bytes, ...]:
    """The records as they are on the disk; the daemon may run or not. Raises `EdgeError`."""
    return RecordFile(settings.state_dir).lines()


def drill_records(lines: tuple[bytes, ...]) -> tuple[DrillRecord, ...]:
    """Those of the lines that can be read."""
    return drill.records(lines)


def check_drills(lines: tuple[bytes, ...]) -> str:
    """What is wrong with the chain of records; "" if nothing is."""
    return drill.check(lines)


async def _run(settings: Settings) -> None:
    service = ServiceSocket()
    heartbeat = Heartbeat(service)
    if settings.enrols:
        enrolment = await enrolled(settings, heartbeat)
        if enrolment is None:
            heartbeat.ending()
            return
        settings = settings.enrolled(enrolment)
    await _live(settings, heartbeat)
    service.close()


async def _live(settings: Settings, heartbeat: Heartbeat) -> None:
    identity = load_identity(settings.certificate, settings.key)
    backend = ipsec.resolve(settings.backend)
    cells = Cells()
    firewall, netlink, prober, lan_prober = NftablesFirewall(), Netlink(), IcmpProber(), IcmpProber()
    store = FileStore(settings.state_dir)
    mtu_prober = IcmpProber(whole=True)
    early = EarlyEsp()
    charon = charon_port(settings, identity, backend)
    charon_care = CharonCare(settings.vici_socket, settings.run_dir)
    clock = FlooredClock(store)
    clock.load()
    controller = HttpsController(
        settings.controllers, settings.ca, settings.certificate, settings.key, names=Names(store), now=clock.now_s
    )
    readiness = ReadinessKeeper(cells, lan_prober, firewall, store)
    probing = Probing(cells, prober)
    in_force = InForce(cells, store, clock, settings.site, signing_keys(settings), probing.tracks)
    follower = Follower(cells, controller, in_force)
    service_prober = IcmpProber()
    service_probing = ServiceProbing(cells, service_prober, TcpConnector())
    drill_prober = IcmpProber()
    drills = Drills(cells, drill_prober, RecordFile(settings.state_dir), settings.site)
    reconciler = Reconciler(cells, firewall, netlink, charon, backend, early)
    reporter = Reporter(cells, probing, firewall, settings.site, backend)
    cells.certificate.set(_life(identity))

    def cas() -> tuple[str, ...]:
        document = cells.document.value
        return document.trust.cas if document is not None else ()

    def load_credentials() -> Identity:
        fresh = load_identity(settings.certificate, settings.key)
        charon.use_credentials(fresh.chain_pem, fresh.key_pem, authorities(settings, cas()))
        reconciler.tunnels_bell.ring("credentials")
        return fresh

    def believe(named: tuple[str, ...]) -> None:
        controller.trust(named)
        load_credentials()

    def vouched() -> bool:
        return vouched_by(load_identity(settings.certificate, settings.key), cas())

    trust = Trust(cells, believe)
    credentials = Credentials(settings.state_dir) if settings.enrols else None
    renewer = Renewer(cells, controller, credentials, clock, lambda: _life(load_credentials()), follower.ways, vouched)
    announcer = Announcer(cells, controller, reporter, box(store), follower.ways, follower.asked)
    log.info("agent_started", site=settings.site, agent_version=__version__, backend=backend.value)
    metering = Metering(cells, netlink, store)
    readiness.load()
    drills.load()
    in_force.load()
    trust.load()
    metering.load()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_on_signal, nursery.cancel_scope)
        # First of all: it holds the lock, and of two agents the second must not have touched anything.
        answer = functools.partial(_answer, reporter, readiness, drills, in_force)
        await nursery.start(serve_control, settings.run_dir / CONTROL_SOCKET, answer)
        nursery.start_soon(trust.run)
        nursery.start_soon(watch_links, cells, netlink, reconciler.bell)
        nursery.start_soon(readiness.run)
        nursery.start_soon(keep_plan, cells, Site(identity.name, backend))
        nursery.start_soon(probing.run)
        nursery.start_soon(steer_bundles, cells)
        nursery.start_soon(metering.run)
        nursery.start_soon(keep_own_way, cells)
        nursery.start_soon(service_probing.run)
        nursery.start_soon(drills.run)
        nursery.start_soon(PathMtus(cells, mtu_prober).run)
        nursery.start_soon(reconciler.run)
        nursery.start_soon(care_for_charon, cells, charon_care)
        nursery.start_soon(reporter.run)
        nursery.start_soon(heartbeat.run, reporter.line, reconciler.progress.last)
        if backend is Backend.KERNEL:
            nursery.start_soon(keep_ipsec, cells, KernelIpsecPort(), charon, reconciler.bell)
        await reconciler.firewall_seen_to.wait()
        nursery.start_soon(follower.run)
        nursery.start_soon(in_force.run, follower.reach)
        nursery.start_soon(announcer.run)
        nursery.start_soon(clock.run, cells)
        nursery.start_soon(hand_over_time_servers, cells, TimesyncdFile(settings.run_dir))
        nursery.start_soon(renewer.run)
        if settings.metrics is not None:
            await nursery.start(serve_metrics, settings.metrics.host, settings.metrics.port, reporter.status)
        heartbeat.began()
    heartbeat.ending()
    in_force.stopped()
    await prober.aclose()
    await lan_prober.aclose()
    await mtu_prober.aclose()
    await service_prober.aclose()
    await drill_prober.aclose()
    await controller.aclose()
    charon.close()
    charon_care.close()
    early.close()
    log.info("agent_stopped")


async def _answer(
    reporter: Reporter, readiness: ReadinessKeeper, drills: Drills, in_force: InForce, command: str
) -> bytes:
    """Answer of the control socket. Raises EdgeError for a command that it does not know."""
    if command == "status":
        return msgspec.json.encode(await reporter.status())
    if command == "drill":
        return msgspec.json.encode(drills.progress())
    match command.split(" "):
        case ["drill", ("uplink" | "hub") as kind, name]:
            return msgspec.json.encode(drills.start(kind, name))
    if command in ("drain", "undrain"):
        return msgspec.json.encode(readiness.set_drained(command == "drain"))
    if command == "rollback":
        return msgspec.json.encode(in_force.roll_back())
    if command.startswith("enroll "):
        raise already((await reporter.status()).site)
    raise EdgeError("control", command, "is no command of this agent's version")


def _life(identity: Identity) -> Life:
    return Life(identity.not_before.timestamp(), identity.not_after.timestamp())
