"""Which edges and loops make a box a site? A composition root of its own, below app.

`enrolled` is the daemon's life until it is let in; `enroll` is what an operator does at a shell.
"""

from __future__ import annotations

import functools
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import trio

from cpe_agent import __version__
from cpe_agent.core.enrolment import BY_HAND, ENROLMENT, Kind, TokenError, parse_token
from cpe_agent.core.heartbeat import line
from cpe_agent.edge import ipsec
from cpe_agent.edge.box import box
from cpe_agent.edge.control import ask, serve_control
from cpe_agent.edge.credentials import Credentials
from cpe_agent.edge.enrolment import HttpsEnrolment
from cpe_agent.edge.metrics import serve_metrics
from cpe_agent.edge.names import Names
from cpe_agent.edge.nftables import NftablesFirewall
from cpe_agent.edge.reset import forget, give_to_owner
from cpe_agent.edge.store import FileStore
from cpe_agent.edge.tokens import find_token
from cpe_agent.log import errors_only, get_logger
from cpe_agent.loops.clock import FlooredClock
from cpe_agent.loops.closed import shut_door
from cpe_agent.loops.enrol import Enroller
from cpe_agent.loops.heartbeat import Heartbeat
from cpe_agent.loops.report import unenrolled_status
from cpe_agent.model.condition import Status
from cpe_agent.model.enrolment import Enrolment
from cpe_agent.ports import EdgeError
from cpe_agent.settings import Settings

log = get_logger()

CONTROL_SOCKET = "control.sock"
# How often `enroll` looks how far it is.
ASK_AGAIN_S = 0.2
AWAY_S = 10.0

__all__ = ["CONTROL_SOCKET", "LetIn", "NotLetIn", "already", "enroll", "enrolled", "forget", "stop_on_signal"]

Tell = Callable[[str], None]


class LetIn(NamedTuple):
    """This box is `site` now. `running`: an agent runs here, and goes on from this."""

    site: str
    running: bool


class NotLetIn(Exception):
    """Enrolment failed in a way that only a person can mend; the words say how."""


def enroll(settings: Settings, text: str, tell: Tell) -> LetIn:
    """Let this box in by a token: through the running agent if there is one, else here. `tell` hears of failures
    that are tried again, for ever. Raises `TokenError`, `NotLetIn`, `EdgeError`."""
    site = parse_token(text).site
    if not settings.enrols:
        raise EdgeError("control", "enroll", "agent.yaml says who this box is: take site or signing_keys out of it")
    control = settings.run_dir / CONTROL_SOCKET
    try:
        ask(control, f"enroll {''.join(text.split())}")
        running = True
    except EdgeError as error:
        if error.op != "connect":
            raise
        running = False
    if not running:
        with errors_only():
            return LetIn(trio.run(_enroll_here, settings, text, tell), running=False)
    trio.run(_let_in, control, tell)
    return LetIn(site, running=True)


async def enrolled(settings: Settings, heartbeat: Heartbeat) -> Enrolment | None:
    """What this box was told when it was let in, which is now if it never was. None: it is to stop."""
    store, credentials = FileStore(settings.state_dir), Credentials(settings.state_dir)
    enrolment = _there(store, credentials)
    if enrolment is not None:
        return enrolment
    backend = ipsec.resolve(settings.backend)
    enroller = _enroller(settings, store, credentials)
    started = time.time()

    async def status() -> Status:
        return unenrolled_status(backend, started, enroller.conditions())

    async def answer(command: str) -> bytes:
        if command == "status":
            return msgspec.json.encode(await status())
        name, _, text = command.partition(" ")
        if name != "enroll":
            raise EdgeError("control", command, "this box belongs to no site yet: run `cpe-agent enroll TOKEN`")
        try:
            return msgspec.json.encode(enroller.offer(text))
        except TokenError as error:
            raise EdgeError("control", name, str(error)) from None

    async def shut() -> None:
        await shut_door(NftablesFirewall(), backend)
        heartbeat.began()

    log.info("agent_started", agent_version=__version__, backend=backend.value)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_on_signal, nursery.cancel_scope)
        await nursery.start(serve_control, settings.run_dir / CONTROL_SOCKET, answer)
        nursery.start_soon(shut)
        nursery.start_soon(heartbeat.run, lambda: line("", None, enroller.conditions()), {})
        if settings.metrics is not None:
            await nursery.start(serve_metrics, settings.metrics.host, settings.metrics.port, status)
        enrolment = await enroller.run()
        nursery.cancel_scope.cancel()
    return enrolment


async def stop_on_signal(scope: trio.CancelScope) -> None:
    """For ever: SIGTERM and SIGINT end what runs in `scope`."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            scope.cancel()


def already(site: str) -> EdgeError:
    """What an enrolled box says to a token."""
    return EdgeError("control", "enroll", f"this box is {site} already; `cpe-agent reset` makes it new")


async def _let_in(control: Path, tell: Tell) -> None:
    """Until the running agent says that it is."""
    told = ""
    heard_at = trio.current_time()
    while True:
        await trio.sleep(ASK_AGAIN_S)
        try:
            status = msgspec.json.decode(await trio.to_thread.run_sync(ask, control, "status"), type=Status)
        except EdgeError as error:
            # Between the two lives of the daemon there is nobody for a moment.
            if trio.current_time() > heard_at + AWAY_S:
                raise EdgeError("control", "enroll", f"the agent went away meanwhile: {error.cause}") from None
            continue
        heard_at = trio.current_time()
        failing = [condition for condition in status.conditions if condition.subject == ENROLMENT]
        if not failing:
            return
        told = _told(Kind(failing[0].type), failing[0].reason, told, tell)


async def _enroll_here(settings: Settings, text: str, tell: Tell) -> str:
    """Without a daemon; what is written belongs to whom the state directory belongs to."""
    store, credentials = FileStore(settings.state_dir), Credentials(settings.state_dir)
    there = _there(store, credentials)
    if there is not None:
        raise already(there.site)
    enroller = _enroller(settings, store, credentials, text)
    refused: NotLetIn | None = None
    enrolment: Enrolment | None = None
    try:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal refused
                told = ""
                while True:
                    await trio.sleep(ASK_AGAIN_S)
                    try:
                        told = _told(enroller.failure.kind, enroller.conditions()[0].reason, told, tell)
                    except NotLetIn as error:
                        refused = error
                        nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            enrolment = await enroller.run()
            nursery.cancel_scope.cancel()
    finally:
        give_to_owner(settings.state_dir)
    if enrolment is None:
        raise refused or NotLetIn("it was stopped")
    return enrolment.site


def _told(kind: Kind, reason: str, told: str, tell: Tell) -> str:
    """Tell what is new. Raises `NotLetIn` for what only a person can mend."""
    if kind in BY_HAND:
        raise NotLetIn(reason)
    if kind is Kind.NO_TOKEN or reason == told:
        return told
    tell(reason)
    return reason


def _there(store: FileStore, credentials: Credentials) -> Enrolment | None:
    # Without a certificate it was not let in yet, whatever is left of an earlier attempt: it asks again.
    return store.load_enrolment() if credentials.present else None


def _enroller(settings: Settings, store: FileStore, credentials: Credentials, token: str = "") -> Enroller:
    clock = FlooredClock(store)
    clock.load()
    port = HttpsEnrolment(Names(store), clock.now_s)
    sources = functools.partial(find_token, token or settings.token, settings.token_file)
    return Enroller(port, credentials, store, clock, box(store).instance, sources)
