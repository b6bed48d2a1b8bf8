"""Which edges and loops make the daemon? The composition root: with newcomer, nothing else imports the edges.

`run` is the whole life of the daemon: build the edges, load the last good document, start the loops, stop on SIGTERM.
The data plane stays when the daemon goes: tunnels, rules and routes belong to the kernel and charon, and are adopted.
"""

from __future__ import annotations

import functools
import sys

import msgspec
import trio

from cpe_agent import __version__
from cpe_agent.core import drill, kernel_ipsec, obey
from cpe_agent.core.certificate import Life
from cpe_agent.core.compile import Site
from cpe_agent.core.expected import expected
from cpe_agent.core.preview import Preview, preview
from cpe_agent.core.verify import TUNNELS
from cpe_agent.core.verify import verify as find_differences
from cpe_agent.core.wanted_ruleset import pair_elements
from cpe_agent.edge import ipsec
from cpe_agent.edge.box import box
from cpe_agent.edge.charon import CharonTunnels
from cpe_agent.edge.connector import TcpConnector
from cpe_agent.edge.control import ask, serve_control
from cpe_agent.edge.controller import HttpsController
from cpe_agent.edge.credentials import Credentials
from cpe_agent.edge.early import EarlyEsp
from cpe_agent.edge.identity import Identity, load_identity
from cpe_agent.edge.ipsecwatch import KernelIpsecPort
from cpe_agent.edge.metrics import serve_metrics
from cpe_agent.edge.names import Names
from cpe_agent.edge.netlink import Netlink
from cpe_agent.edge.nftables import NftablesFirewall
from cpe_agent.edge.prober import IcmpProber
from cpe_agent.edge.records import RecordFile
from cpe_agent.edge.store import FileStore
from cpe_agent.log import configure, get_logger
from cpe_agent.loops.announce import Announcer
from cpe_agent.loops.cells import Cells
from cpe_agent.loops.clock import FlooredClock
from cpe_agent.loops.confirm import InForce
from cpe_agent.loops.drill import Drills
from cpe_agent.loops.follow import Follower
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
from cpe_agent.loops.stored import read_stored
from cpe_agent.model.condition import Condition, DrainAnswer, RollbackAnswer, Status
from cpe_agent.model.dataplane import Backend, Dataplane, Routes, Ruleset
from cpe_agent.model.difference import Difference, Verification
from cpe_agent.model.document import Document, DocumentError
from cpe_agent.model.document_check import decode
from cpe_agent.model.drill import DrillProgress, DrillRecord
from cpe_agent.model.observed import Charon, KernelIpsec, Link, Links
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


class Living(msgspec.Struct, frozen=True):
    """What the kernel and charon hold now. `charon` None: it does not answer, and `charon_error` says why."""

    backend: Backend
    identity: str
    links: Links
    ruleset: Ruleset | None
    routes: Routes
    strangers: tuple[str, ...]
    charon: Charon | None
    charon_error: str
    drained: bool
    ipsec: KernelIpsec | None = None  # kernel backend

    def expected(self, document: Document) -> tuple[Dataplane, tuple[Condition, ...]]:
        """What must be here for `document`, and what is in the way. Raises `DocumentError`."""
        site = Site(self.identity, self.backend)
        return expected(document, self.links, site, self.drained, self.routes, self.ruleset, self.charon)


class NoDocument(Exception):
    """There is no document that this site could be compared with; the words say why."""


def verify(settings: Settings) -> Verification:
    """Compare the kernel and charon with the last good document, now; the daemon may run or not.

    Raises `NoDocument`, and `EdgeError` if kernel or credentials cannot be read.
    """
    settings = settled(settings)
    document = stored_document(settings)
    return compare(document, trio.run(look, settings))


def compare(document: Document, living: Living) -> Verification:
    """What differs from `document`, which is in force, in what was looked at. Raises `NoDocument`."""
    # Who has lost the tunnels' device lacks the routes into it: they are wanted all the same.
    device = living.backend.device
    links = Links({device: Link(device, True), **living.links.by_name})
    try:
        wanted, obstacles = msgspec.structs.replace(living, links=links).expected(document)
    except DocumentError as error:
        raise NoDocument(f"the stored document cannot be carried out here: {error}") from None
    found = find_differences(
        wanted, obstacles, living.ruleset, living.routes, living.charon, living.charon_error, living.strangers
    )
    if living.charon is not None and living.ipsec is not None:
        disagreements = kernel_ipsec.differences(document, living.charon, living.ipsec)
        found += tuple(Difference(TUNNELS, kind, what) for kind, what in disagreements)
    return Verification(document.site, document.epoch, document.version, not found, found)


def plan(settings: Settings, candidate: bytes | None) -> Preview:
    """What the next pass would change or, with `candidate` (a document; nobody needs to have signed it), what would
    change if it were put in force. Raises `DocumentError`, and what `verify` raises."""
    settings = settled(settings)
    old: Document | None
    if candidate is None:
        document = old = stored_document(settings)
    else:
        document = decode(candidate)
        if document.site != settings.site:
            raise DocumentError("site", f"is {document.site!r}; this is {settings.site!r}")
        old = _stored_or_none(settings)
    living = trio.run(look, settings)
    wanted, obstacles = living.expected(document)
    pair_of = {**(pair_elements(old) if old else {}), **pair_elements(document)}
    operations = preview(
        wanted, living.ruleset, living.routes, living.charon, pair_of, to_the_end=candidate is not None
    )
    notes = [f"{condition.subject}: {condition.reason}" for condition in obstacles]
    if candidate is not None and old is not None:
        try:
            obey.obey(candidate, settings.site, None, old, obey.Clock(0.0, trusted=False))
        except DocumentError as error:
            notes.append(f"the agent would refuse this document: {error}")
    if living.charon is None:
        notes.append(f"nothing is known of the tunnels: charon does not answer: {living.charon_error}")
    return Preview(settings.site, document.epoch, document.version, len(operations), operations, tuple(notes))


def settled(settings: Settings) -> Settings:
    """With what this box was told when it was enrolled. Raises `NoDocument` if it never was."""
    if not settings.enrols:
        return settings
    try:
        enrolment = FileStore(settings.state_dir).load_enrolment()
    except EdgeError as error:
        raise NoDocument(error.cause) from None
    if enrolment is None:
        raise NoDocument("this box belongs to no site yet: run `cpe-agent enroll TOKEN`")
    return settings.enrolled(enrolment)


def stored_document(settings: Settings) -> Document:
    """The document in force by what is on the disk, verified again. Raises `NoDocument`."""
    stored = read_stored(FileStore(settings.state_dir), settings.site, _keys(settings))
    document = stored.in_force()
    if document is not None:
        return document
    for trouble in stored.troubles:
        if isinstance(trouble, EdgeError):
            raise NoDocument(trouble.cause)
        raise NoDocument(f"the stored document is refused: {trouble}")
    raise NoDocument("this site has never accepted a document")


async def look(settings: Settings) -> Living:
    """Read the kernel and charon themselves. Raises `EdgeError`, but for a charon that does not answer."""
    identity = load_identity(settings.certificate, settings.key)
    backend = ipsec.resolve(settings.backend)
    charon = charon_port(settings, identity, backend)
    netlink = Netlink()
    links, ruleset, routes = await netlink.links(), await NftablesFirewall().read(), await netlink.read()
    strangers = await netlink.strangers()
    ipsec_held = await KernelIpsecPort().read() if backend is Backend.KERNEL else None
    try:
        held: Charon | None = await charon.read()
        why = ""
    except EdgeError as error:
        held, why = None, error.cause
    finally:
        charon.close()
    return Living(backend, identity.name, links, ruleset, routes, strangers, held, why, _drained(settings), ipsec_held)


async def _run(settings: Settings) -> None:
    if settings.enrols:
        enrolment = await enrolled(settings)
        if enrolment is None:
            return
        settings = settings.enrolled(enrolment)
    await _live(settings)


async def _live(settings: Settings) -> None:
    identity = load_identity(settings.certificate, settings.key)
    backend = ipsec.resolve(settings.backend)
    cells = Cells()
    firewall, netlink, prober, lan_prober = NftablesFirewall(), Netlink(), IcmpProber(), IcmpProber()
    store = FileStore(settings.state_dir)
    mtu_prober = IcmpProber(whole=True)
    early = EarlyEsp()
    charon = charon_port(settings, identity, backend)
    clock = FlooredClock(store)
    clock.load()
    controller = HttpsController(
        settings.controllers, settings.ca, settings.certificate, settings.key, names=Names(store), now=clock.now_s
    )
    readiness = ReadinessKeeper(cells, lan_prober, firewall, store)
    probing = Probing(cells, prober)
    in_force = InForce(cells, store, clock, settings.site, _keys(settings), probing.tracks)
    follower = Follower(cells, controller, in_force)
    service_prober = IcmpProber()
    service_probing = ServiceProbing(cells, service_prober, TcpConnector())
    drill_prober = IcmpProber()
    drills = Drills(cells, drill_prober, RecordFile(settings.state_dir), settings.site)
    reconciler = Reconciler(cells, firewall, netlink, charon, backend, early)
    reporter = Reporter(cells, probing, firewall, settings.site, backend)
    cells.certificate.set(_life(identity))

    def renewed() -> Life:
        fresh = load_identity(settings.certificate, settings.key)
        charon.use_credentials(fresh.chain_pem, fresh.key_pem, _read_ca(settings))
        reconciler.tunnels_bell.ring("credentials")
        return _life(fresh)

    credentials = Credentials(settings.state_dir) if settings.enrols else None
    renewer = Renewer(cells, controller, credentials, clock, renewed, follower.ways)
    announcer = Announcer(cells, controller, reporter, box(store), follower.ways)
    log.info("agent_started", site=settings.site, agent_version=__version__, backend=backend.value)
    metering = Metering(cells, netlink, store)
    readiness.load()
    drills.load()
    in_force.load()
    metering.load()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_on_signal, nursery.cancel_scope)
        # First of all: it holds the lock, and of two agents the second must not have touched anything.
        answer = functools.partial(_answer, reporter, readiness, drills, in_force)
        await nursery.start(serve_control, settings.run_dir / CONTROL_SOCKET, answer)
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
        nursery.start_soon(reporter.run)
        if backend is Backend.KERNEL:
            nursery.start_soon(keep_ipsec, cells, KernelIpsecPort(), charon, reconciler.bell)
        await reconciler.firewall_seen_to.wait()
        nursery.start_soon(follower.run)
        nursery.start_soon(in_force.run, follower.reach)
        nursery.start_soon(announcer.run)
        nursery.start_soon(clock.run, cells)
        nursery.start_soon(renewer.run)
        if settings.metrics is not None:
            await nursery.start(serve_metrics, settings.metrics.host, settings.metrics.port, reporter.status)
    in_force.stopped()
    await prober.aclose()
    await lan_prober.aclose()
    await mtu_prober.aclose()
    await service_prober.aclose()
    await drill_prober.aclose()
    await controller.aclose()
    charon.close()
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


def charon_port(settings: Settings, identity: Identity, backend: Backend) -> CharonTunnels:
    """This site's charon. Raises `EdgeError` for credentials that cannot be read."""
    return CharonTunnels(settings.vici_socket, identity.chain_pem, identity.key_pem, _read_ca(settings), backend)


def _drained(settings: Settings) -> bool:
    try:
        return FileStore(settings.state_dir).load_drained()
    except EdgeError:
        return True  # as the daemon takes it


def _stored_or_none(settings: Settings) -> Document | None:
    try:
        return stored_document(settings)
    except NoDocument:
        return None


def _life(identity: Identity) -> Life:
    return Life(identity.not_before.timestamp(), identity.not_after.timestamp())


def _read_ca(settings: Settings) -> bytes:
    try:
        return settings.ca.read_bytes()
    except OSError as error:
        cause = f"{settings.ca}: {error.strerror}; name the authority's certificate as ca in agent.yaml"
        raise EdgeError("identity", "read ca", cause) from None


def _keys(settings: Settings) -> dict[str, str]:
    return {key.id: key.key for key in settings.signing_keys}
