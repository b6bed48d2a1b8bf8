"""What runs while the controller serves?

The API for sites, the enrolment of new ones, the operators' socket and the watch on the store, in one process. SIGTERM
and SIGINT end held streams at once and leave open requests a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import signal
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpe_controller import api, authorities, enrolment
from cpe_controller.control import Control
from cpe_controller.feed import Feed
from cpe_controller.listening import Listener, bind, tls_context
from cpe_controller.setup import opened, vouching

# New sites are few. More than that many at once are somebody who tries the door.
ENROLLING_MAX = 100


@dataclass(frozen=True)
class Serving:
    """How to serve. `listen` None is every address, a port None the one of `init`, 0 any free one. `socket` is where
    commands come in, from `group` (None: the controller's own)."""

    listen: str | None
    port: int | None
    enrol_port: int | None
    heartbeat_s: float
    socket: Path
    group: str | None


def serve(state_dir: Path, told: Serving, ready: Callable[[str], None]) -> None:
    """Until SIGTERM or SIGINT. `ready` is called with what is served where, once connections are accepted. Raises
    SetupError, StoreError."""
    with contextlib.ExitStack() as stack:
        store, setup = stack.enter_context(opened(state_dir))
        now = dt.datetime.now(dt.UTC)
        files = authorities.server_files(state_dir, setup.network, setup.addresses, now)
        ports = (setup.port if told.port is None else told.port, _enrol_port(told, setup.enrolment_port))
        sockets = [stack.enter_context(bind(told.listen, port)) for port in ports]
        feed = Feed(store)

        def vouched() -> enrolment.Vouching:
            return vouching(state_dir, setup)

        vouched()  # whatever is missing is missed now, not when the first site asks
        listeners = [
            Listener(
                api.make_app(store, feed, setup.network, told.heartbeat_s, vouched),
                sockets[0],
                tls_context(files, clients=True),
                lambda url: ready(f"listening on {url}"),
                ending=feed.close,
            ),
            Listener(
                api.Bounded(enrolment.make_app(store, vouched)),
                sockets[1],
                tls_context(files, clients=False),
                lambda url: ready(f"enrolling on {url}"),
                limit_concurrency=ENROLLING_MAX,
            ),
        ]
        control = Control(told.socket, state_dir, told.group)
        asyncio.run(_serve(listeners, [feed.run, control.run]))


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
