"""What runs while the controller serves?

The API for sites, the enrolment of new ones, the operators' socket, metrics, the watch on the store, and a beat that
writes down what sites said and moves the rollout: all in one process. SIGTERM and SIGINT end held streams at once and
leave open requests a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import resource
import signal
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop
from cryptography import x509

from cpe_controller import api, authorities, enrolment, metrics, rolling
from cpe_controller.authorities import ServerFiles
from cpe_controller.control import Control
from cpe_controller.feed import Feed
from cpe_controller.files import read
from cpe_controller.fleet import fleet
from cpe_controller.listening import Listener, bind, tls_context
from cpe_controller.reports import Reports
from cpe_controller.rollout import confirmed
from cpe_controller.service import tell_ready
from cpe_controller.setup import opened, vouching
from cpe_controller.store import Store, StoreError

# New sites are few. More than that many at once are somebody who tries the door.
ENROLLING_MAX = 100
BEAT_S = 1.0

_log = logging.getLogger("cpe_controller")


@dataclass(frozen=True)
class Serving:
    """How to serve. `listen` None is every address, a port None the one of `init`, 0 any free one. `socket` is where
    commands come in, from `group` (None: the controller's own); `metrics` where Prometheus asks (None: nowhere)."""

    listen: str | None
    port: int | None
    enrol_port: int | None
    heartbeat_s: float
    socket: Path
    group: str | None
    metrics: tuple[str, int] | None


def serve(state_dir: Path, told: Serving, ready: Callable[[str], None]) -> None:
    """Until SIGTERM or SIGINT. `ready` is called with what is served where, once connections are accepted. Raises
    SetupError, StoreError."""
    with contextlib.ExitStack() as stack:
        store, setup = stack.enter_context(opened(state_dir))
        now = dt.datetime.now(dt.UTC)
        files = authorities.server_files(state_dir, setup.network, setup.addresses, now)
        feed, reports = Feed(store), Reports(store)

        def vouched() -> enrolment.Vouching:
            return vouching(state_dir, setup)

        vouched()  # whatever is missing is missed now, not when the first site asks
        serves = api.Serves(store, feed, reports, vouched, setup.network, told.heartbeat_s)
        listeners: list[Listener] = []

        def announce(words: str) -> None:
            ready(words)
            if all(listener.started for listener in listeners):
                tell_ready()

        listeners += [
            Listener(
                api.make_app(serves),
                stack.enter_context(bind(told.listen, setup.port if told.port is None else told.port)),
                tls_context(files, clients=True),
                lambda url: announce(f"listening on {url}"),
                ending=feed.close,
            ),
            Listener(
                api.Bounded(enrolment.make_app(store, vouched)),
                stack.enter_context(bind(told.listen, _enrol_port(told, setup.enrolment_port))),
                tls_context(files, clients=False),
                lambda url: announce(f"enrolling on {url}"),
                limit_concurrency=ENROLLING_MAX,
            ),
        ]
        if told.metrics is not None:
            facts = _Facts(store, feed, reports, files)
            socket = stack.enter_context(bind(*told.metrics))
            listeners.append(
                Listener(metrics.make_app(facts), socket, None, lambda url: announce(f"metrics on {url}/metrics"))
            )
        control = Control(told.socket, state_dir, told.group)
        _raise_open_files()
        # Its TLS takes a quarter of the memory that asyncio's takes for a connection, and half the time.
        uvloop.run(_serve(listeners, [feed.run, control.run, lambda: _beat(store, feed, reports)]))


def _raise_open_files() -> None:
    """A stream per site: as many as we are allowed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _enrol_port(told: Serving, usual: int) -> int:
    return told.enrol_port if told.enrol_port is not None else 0 if told.port == 0 else usual


async def _serve(listeners: Sequence[Listener], beside: Sequence[Callable[[], Coroutine[None, None, None]]]) -> None:
    def stop(*_: object) -> None:
        for listener in listeners:
            listener.stop()

    tasks = [asyncio.create_task(run()) for run in beside]
    for task in tasks:
        # A server that no longer hears of changes, or of commands, must not look alive.
        task.add_done_callback(stop)
    with _signals(stop):
        try:
            await asyncio.gather(*(listener.run_until_stopped() for listener in listeners))
        finally:
            for task in tasks:
                task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(ended, Exception):
                    raise ended


async def _beat(store: Store, feed: Feed, reports: Reports) -> None:
    """What sites said is in the store within a beat, and the rollout acts on it, and asks for what it waits for. A
    store that is busy now is asked again at the next."""
    try:
        while True:
            await asyncio.sleep(BEAT_S)
            try:
                reports.flush(dt.datetime.now(dt.UTC))
                contacts, now = reports.everybodys(), time.time()
                rolling.advance(store, contacts, now)
                feed.ask(rolling.to_ask(store, contacts, now), time.monotonic())
            except StoreError as error:
                _log.warning("the store cannot be written now: %s", error)
    finally:
        with contextlib.suppress(StoreError):
            reports.flush(dt.datetime.now(dt.UTC))


class _Facts:
    """What the metrics are made from, read when they are asked for."""

    def __init__(self, store: Store, feed: Feed, reports: Reports, files: ServerFiles) -> None:
        self._store = store
        self._feed = feed
        self._reports = reports
        self._certificates = {
            name: x509.load_pem_x509_certificate(read(path)).not_valid_after_utc.timestamp()
            for name, path in (("server", files.certificate), ("sites", files.sites), ("root", files.root))
        }

    def __call__(self) -> metrics.Facts:
        contacts = self._reports.everybodys()
        statuses = fleet(self._feed.orders(), self._feed.standings(), contacts, time.time())
        rollout, _ = rolling.load(self._store)
        progress: tuple[tuple[str, int], ...] = ()
        if rollout is not None and not rollout.phase.over:
            out, took = len(list(rollout.released())), confirmed(rollout, contacts)
            progress = (("confirmed", took), ("trying", out - took), ("waiting", len(rollout.targets) - out))
        phase = rollout.phase.value if rollout is not None and not rollout.phase.over else ""
        return metrics.Facts(statuses, self._certificates, self._feed.streams(), phase, progress)


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """Ending when told to is no failure: a signal that was obeyed is not raised again."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
