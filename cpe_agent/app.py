"""Which edges and loops make the daemon? The composition root: nothing else imports the edges.

`run` is the whole life of the daemon: build the edges, load the last good document, start the loops, stop on SIGTERM.
The data plane stays when the daemon goes: tunnels, rules and routes belong to the kernel and charon, and are adopted.
"""

from __future__ import annotations

import functools
import signal
import sys

import msgspec
import trio

from cpe_agent import __version__
from cpe_agent.core import kernel_ipsec, obey
from cpe_agent.core.compile import Site
from cpe_agent.core.expected import expected
from cpe_agent.core.preview import Preview, preview
from cpe_agent.core.verify import TUNNELS
from cpe_agent.core.verify import verify as find_differences
from cpe_agent.core.wanted_ruleset import pair_elements
from cpe_agent.edge import ipsec
from cpe_agent.edge.charon import CharonTunnels
from cpe_agent.edge.control import ask, serve_control
from cpe_agent.edge.controller import HttpsController
from cpe_agent.edge.identity import Identity, load_identity
from cpe_agent.edge.ipsecwatch import KernelIpsecPort
from cpe_agent.edge.metrics import serve_metrics
from cpe_agent.edge.netlink import Netlink
from cpe_agent.edge.nftables import NftablesFirewall
from cpe_agent.edge.prober import IcmpProber
from cpe_agent.edge.store import FileStore
from cpe_agent.log import configure, get_logger
from cpe_agent.loops.cells import Cells
from cpe_agent.loops.follow import Follower
from cpe_agent.loops.ipsec import keep_ipsec
from cpe_agent.loops.links import watch_links
from cpe_agent.loops.pathmtu import PathMtus
from cpe_agent.loops.planning import keep_plan
from cpe_agent.loops.probing import Probing
from cpe_agent.loops.readiness import ReadinessKeeper
from cpe_agent.loops.reconcile import Reconciler
from cpe_agent.loops.report import Reporter
from cpe_agent.loops.steering import steer_bundles
from cpe_agent.model.condition import Condition, DrainAnswer, Status
from cpe_agent.model.dataplane import Backend, Dataplane, Routes, Ruleset
from cpe_agent.model.difference import Difference, Verification
from cpe_agent.model.document import Document, DocumentError
from cpe_agent.model.document_check import decode
from cpe_agent.model.observed import Charon, KernelIpsec, Link, Links
from cpe_agent.ports import EdgeError
from cpe_agent.settings import Settings

log = get_logger()

CONTROL_SOCKET = "control.sock"
# Worker threads read listings. A failover has some ten turns of the event loop, and at each a thread that computes
# keeps it waiting for this long; with Python's own 5 ms that is half of what a failover may take.
SWITCH_S = 0.0005


def run(settings: Settings) -> int:
    """Live until SIGTERM or SIGINT. Raises `EdgeError` when identity or kernel make a start impossible."""
    configure(settings.log, settings.log_level)
    sys.setswitchinterval(SWITCH_S)
    trio.run(_live, settings)
    return 0


def fetch_status(settings: Settings) -> Status:
    """Ask the running daemon. Raises `EdgeError` if there is none."""
    return msgspec.json.decode(ask(settings.run_dir / CONTROL_SOCKET, "status"), type=Status)


def drain(settings: Settings, drained: bool) -> DrainAnswer:
    """Tell the running daemon of a hub to be drained, or no longer. Raises `EdgeError` if there is none."""
    command = "drain" if drained else "undrain"
    return msgspec.json.decode(ask(settings.run_dir / CONTROL_SOCKET, command), type=DrainAnswer)


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


def stored_document(settings: Settings) -> Document:
    """The last good document, verified again. Raises `NoDocument`."""
    try:
        signed = FileStore(settings.state_dir).load_document()
        if signed is None:
            raise NoDocument("this site has never accepted a document")
        keys = obey.signing_keys(None, _keys(settings))
        obey.verify(signed.raw, signed.signature, signed.key_id, keys)
        # Its age speaks neither for nor against it: it is in force.
        return obey.obey(signed.raw, settings.site, None, None, obey.Clock(0.0, trusted=False), stored=True)
    except DocumentError as error:
        raise NoDocument(f"the stored document is refused: {error}") from None
    except EdgeError as error:
        raise NoDocument(error.cause) from None


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


async def _live(settings: Settings) -> None:
    identity = load_identity(settings.certificate, settings.key)
    backend = ipsec.resolve(settings.backend)
    cells = Cells()
    firewall, netlink, prober, lan_prober = NftablesFirewall(), Netlink(), IcmpProber(), IcmpProber()
    store = FileStore(settings.state_dir)
    mtu_prober = IcmpProber(whole=True)
    charon = charon_port(settings, identity, backend)
    controller = HttpsController(settings.controllers, settings.ca, settings.certificate, settings.key)
    follower = Follower(cells, controller, store, settings.site, _keys(settings))
    readiness = ReadinessKeeper(cells, lan_prober, firewall, store)
    probing = Probing(cells, prober)
    reconciler = Reconciler(cells, firewall, netlink, charon, backend)
    reporter = Reporter(cells, probing, firewall, settings.site, backend)
    log.info("agent_started", site=settings.site, agent_version=__version__, backend=backend.value)
    readiness.load()
    follower.load()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_signal, nursery.cancel_scope)
        # First of all: it holds the lock, and of two agents the second must not have touched anything.
        answer = functools.partial(_answer, reporter, readiness)
        await nursery.start(serve_control, settings.run_dir / CONTROL_SOCKET, answer)
        nursery.start_soon(watch_links, cells, netlink, reconciler.bell)
        nursery.start_soon(readiness.run)
        nursery.start_soon(keep_plan, cells, Site(identity.name, backend))
        nursery.start_soon(probing.run)
        nursery.start_soon(steer_bundles, cells)
        nursery.start_soon(PathMtus(cells, mtu_prober).run)
        nursery.start_soon(reconciler.run)
        nursery.start_soon(reporter.run)
        if backend is Backend.KERNEL:
            nursery.start_soon(keep_ipsec, cells, KernelIpsecPort(), charon, reconciler.bell)
        await reconciler.firewall_seen_to.wait()
        nursery.start_soon(follower.run)
        if settings.metrics is not None:
            await nursery.start(serve_metrics, settings.metrics.host, settings.metrics.port, reporter.status)
    await prober.aclose()
    await lan_prober.aclose()
    await mtu_prober.aclose()
    await controller.aclose()
    charon.close()
    log.info("agent_stopped")


async def _answer(reporter: Reporter, readiness: ReadinessKeeper, command: str) -> bytes:
    """Answer of the control socket. Raises EdgeError for a command that it does not know."""
    if command == "status":
        return msgspec.json.encode(await reporter.status())
    if command in ("drain", "undrain"):
        return msgspec.json.encode(readiness.set_drained(command == "drain"))
    raise EdgeError("control", command, "is no command of this agent's version")


async def _stop_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            scope.cancel()


def charon_port(settings: Settings, identity: Identity, backend: Backend) -> CharonTunnels:
    """This site's charon. Raises `EdgeError` for credentials that cannot be read."""
    return CharonTunnels(settings.vici_socket, identity.certificate_pem, identity.key_pem, _read_ca(settings), backend)


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


def _read_ca(settings: Settings) -> bytes:
    try:
        return settings.ca.read_bytes()
    except OSError as error:
        cause = f"{settings.ca}: {error.strerror}; name the authority's certificate as ca in agent.yaml"
        raise EdgeError("identity", "read ca", cause) from None


def _keys(settings: Settings) -> dict[str, str]:
    return {key.id: key.key for key in settings.signing_keys}
