"""Which edges and loops make the daemon? The composition root: nothing else imports the edges.

`run` is the whole life of the daemon: build the edges, load the last good document, start the loops, stop on SIGTERM.
The data plane stays when the daemon goes: tunnels, rules and routes belong to the kernel and charon, and are adopted.
"""

from __future__ import annotations

import functools
import signal

import msgspec
import trio

from cpe_agent import __version__
from cpe_agent.core.compile import Site
from cpe_agent.edge import ipsec
from cpe_agent.edge.charon import CharonTunnels
from cpe_agent.edge.control import ask, serve_control
from cpe_agent.edge.controller import HttpsController
from cpe_agent.edge.identity import load_identity
from cpe_agent.edge.metrics import serve_metrics
from cpe_agent.edge.netlink import Netlink
from cpe_agent.edge.nftables import NftablesFirewall
from cpe_agent.edge.prober import IcmpProber
from cpe_agent.edge.store import FileStore
from cpe_agent.log import configure, get_logger
from cpe_agent.loops.cells import Cells
from cpe_agent.loops.follow import Follower
from cpe_agent.loops.links import watch_links
from cpe_agent.loops.planning import keep_plan
from cpe_agent.loops.probing import Probing
from cpe_agent.loops.reconcile import Reconciler
from cpe_agent.loops.report import Reporter
from cpe_agent.loops.steering import steer_bundles
from cpe_agent.model.condition import Status
from cpe_agent.ports import EdgeError
from cpe_agent.settings import Settings

log = get_logger()

CONTROL_SOCKET = "control.sock"


def run(settings: Settings) -> int:
    """Live until SIGTERM or SIGINT. Raises `EdgeError` when identity or kernel make a start impossible."""
    configure(settings.log, settings.log_level)
    trio.run(_live, settings)
    return 0


def fetch_status(settings: Settings) -> Status:
    """Ask the running daemon. Raises `EdgeError` if there is none."""
    return msgspec.json.decode(ask(settings.run_dir / CONTROL_SOCKET, "status"), type=Status)


async def _live(settings: Settings) -> None:
    identity = load_identity(settings.certificate, settings.key)
    backend = ipsec.resolve(settings.backend)
    cells = Cells()
    firewall, netlink, prober = NftablesFirewall(), Netlink(), IcmpProber()
    charon = CharonTunnels(
        settings.vici_socket, identity.certificate_pem, identity.key_pem, _read_ca(settings), backend
    )
    controller = HttpsController(settings.controllers, settings.ca, settings.certificate, settings.key)
    follower = Follower(cells, controller, FileStore(settings.state_dir), settings.site, _keys(settings))
    probing = Probing(cells, prober)
    reconciler = Reconciler(cells, firewall, netlink, charon, backend)
    reporter = Reporter(cells, probing, firewall, settings.site, backend)
    log.info("agent_started", site=settings.site, agent_version=__version__, backend=backend.value)
    follower.load()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_signal, nursery.cancel_scope)
        nursery.start_soon(watch_links, cells, netlink, reconciler.bell)
        nursery.start_soon(keep_plan, cells, Site(identity.name, backend))
        nursery.start_soon(probing.run)
        nursery.start_soon(steer_bundles, cells)
        nursery.start_soon(reconciler.run)
        nursery.start_soon(reporter.run)
        await reconciler.firewall_seen_to.wait()
        nursery.start_soon(follower.run)
        answer = functools.partial(_answer, reporter)
        await nursery.start(serve_control, settings.run_dir / CONTROL_SOCKET, answer)
        if settings.metrics is not None:
            await nursery.start(serve_metrics, settings.metrics.host, settings.metrics.port, reporter.status)
    await prober.aclose()
    await controller.aclose()
    charon.close()
    log.info("agent_stopped")


async def _answer(reporter: Reporter, command: str) -> bytes:
    """Answer of the control socket. Raises EdgeError for a command that it does not know."""
    if command == "status":
        return msgspec.json.encode(await reporter.status())
    raise EdgeError("control", command, "is no command of this agent's version")


async def _stop_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            scope.cancel()


def _read_ca(settings: Settings) -> bytes:
    try:
        return settings.ca.read_bytes()
    except OSError as error:
        cause = f"{settings.ca}: {error.strerror}; name the authority's certificate as ca in agent.yaml"
        raise EdgeError("identity", "read ca", cause) from None


def _keys(settings: Settings) -> dict[str, str]:
    return {key.id: key.key for key in settings.signing_keys}
