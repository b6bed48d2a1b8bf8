"""A running lab, as tests, the demo and `make lab` use it.

    with Lab() as lab:
        lab.run("hospital-1-host", "ping", "-c", "1", "10.10.0.10")
        lab.site("hospital-1").uplink("wired").blackhole()

Everything is synchronous, and whatever ends the with block, or this process, ends the lab with all that is in it.
`Lab` starts the network and the web pages; `tests.lab.provision` gives it a controller, and sites their settings.
"""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal

from cpe_agent.model.dataplane import Backend
from tests.lab import leaks
from tests.lab.container import REPOSITORY, Completed, Container, Process, wait_until
from tests.lab.daemon import Command, Daemon
from tests.lab.flow import PORT, Flow
from tests.lab.init import LOGS
from tests.lab.offered import Offer, Protocol, offer
from tests.lab.pace import BACKEND, patience
from tests.lab.site import RunningSite, need_esp
from tests.lab.topology import NETWORK, Network, access_router
from tests.lab.wiring import CORE, build, plan

KEPT_LOGS = REPOSITORY / "build" / "lab-logs"
CONTROLLER_STATE = Path("/run/controller")

_WEB_SCRIPT = Path(__file__).with_name("web.py")
_START_S = 20.0


def quiet(_message: str) -> None:
    """Says nothing about progress."""


class Lab:
    """`say` is told about progress; `backend` is what sites use for IPsec: auto, kernel or userland."""

    def __init__(
        self,
        network: Network = NETWORK,
        name: str = "lab",
        say: Callable[[str], None] = quiet,
        backend: str = BACKEND,
    ) -> None:
        self.network = network
        self.name = name
        if backend == "kernel":
            need_esp()
        self._say = say
        self._flow_numbers = itertools.count(1)
        say(f"starting {len(network.sites)} sites and the internet between them")
        self.container = Container(name)
        try:
            build(self.container, plan(network))
            self.sites = {site.name: RunningSite(self.container, site, backend) for site in network.sites}
            self.controller = Daemon(self.container, "controller", network.controller, self._controller)
            self._pages = list(self._start_pages())
            for site in network.sites:
                for uplink in site.uplinks:
                    if uplink.delay_ms:
                        self.site(site.name).uplink(uplink.name).slow(uplink.delay_ms)
        except BaseException:
            self.container.close()
            raise

    @property
    def backend(self) -> Backend:
        """What its sites use."""
        return next(iter(self.sites.values())).ipsec

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is not None and self.container.running:
                self._say(f"the lab's logs are in {self.save_logs()}")
        finally:
            self.close()

    def close(self) -> None:
        """End it. Nothing of it is left when this returns. May be called again."""
        self.container.close()
        for daemon in self._daemons():
            daemon.close()
        for page in self._pages:
            page.close()

    def start(self) -> None:
        """Start the controller, and charon and the agent of every site. Returns when every charon takes commands."""
        self.controller.start()
        for site in self.sites.values():
            self._say(f"starting {site.name}")
            site.start()

    def site(self, name: str) -> RunningSite:
        return self.sites[name]

    def path(self, inside: str | Path) -> Path:
        """A file of the lab (an absolute path there), as seen from outside."""
        return self.container.path(str(inside))

    def run(
        self, namespace: str, *argv: str, timeout_s: float = 20.0, check: bool = True, input: str = ""
    ) -> Completed:
        """Run a command in any namespace of the lab: a site, a host, a router. LabError if it fails (with `check`)."""
        return self.container.run(argv, namespace=namespace, timeout_s=timeout_s, check=check, input=input)

    def fetch(self, host: str, url: str, timeout_s: float = 3.0) -> str | None:
        """The page that `host` gets from `url`; None if it gets none in time."""
        argv = [
            "curl",
            "--silent",
            "--show-error",
            "--fail",
            "--noproxy",
            "*",
            "--max-time",
            str(patience(timeout_s)),
            url,
        ]
        completed = self.run(host, *argv, timeout_s=timeout_s + 10, check=False)
        return completed.stdout if completed.status == 0 else None

    def flow(
        self,
        client: str,
        server: str,
        *,
        rate: float = 100,
        port: int = PORT,
        seconds: float = 300,
        linger_ms: float = 500,
        twin: str | None = None,
        version: Literal[4, 6] = 4,
    ) -> Flow:
        """Start sequenced UDP both ways between two hosts; `client` may be any namespace.

        A server can be in several flows if their ports differ. `twin` is another host with the server's address.
        """
        network = self.network
        address = str(network.address_of(server) if version == 4 else network.address6_of(server))
        number = next(self._flow_numbers)
        return Flow(
            self.container,
            client,
            server,
            address,
            number=number,
            rate=rate,
            port=port,
            seconds=seconds,
            linger_ms=linger_ms,
            twin=twin,
        )

    def offer(
        self, sender: str, to: str, protocol: Protocol, count: int, *, port: int = 80, interval_ms: float = 1.0
    ) -> Offer:
        """Send packets that may be forbidden, and count them where they enter and where they arrive (see offered)."""
        return offer(self.container, self.network, sender, to, protocol, count, port=port, interval_ms=interval_ms)

    def leaked(self) -> dict[str, int]:
        """Packets with a private address that reached the internet since the lab began, by router; only those with any.

        Counted twice over: at the provider's first router, before any fault or NAT, and in the core.
        """
        counted = {router: leaks.count(self.network, self._nft(router)) for router in self._watched()}
        return {router: packets for router, packets in counted.items() if packets}

    def leaked_flows(self) -> str:
        """The same in words, flow by flow, a line each; "" if there is none."""
        seen = ((router, leaks.read(self.network, self._nft(router))) for router in self._watched())
        return "\n".join(f"{router}: {leak}" for router, found in seen for leak in found)

    def save_logs(self, directory: Path | None = None) -> Path:
        """Copy all logs out of the lab, replacing those of an earlier lab of this name. Returns where they are."""
        directory = directory or KEPT_LOGS / self.name
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(self.path(LOGS), directory)
        return directory

    def _start_pages(self) -> Iterator[Process]:
        logs = []
        for host in self.network.hosts:
            if host.serves:
                site = self.network.site_of(host.name).name
                argv = [sys.executable, "-S", str(_WEB_SCRIPT), "--host", host.name, "--site", site]
                log = self.path(f"{LOGS}/{host.name}-web.log")
                with open(log, "wb") as stdout:
                    yield self.container.spawn(argv, namespace=host.name, stdout=stdout)
                logs.append((host.name, log))
        for name, log in logs:
            wait_until(f"{name} serves its page", partial(_is_ready, log), _START_S)

    def _watched(self) -> list[str]:
        routers = [access_router(site.name, uplink.name) for site in self.network.sites for uplink in site.uplinks]
        return [CORE, *routers]

    def _nft(self, router: str) -> Callable[..., str]:
        return lambda *argv: self.run(router, "nft", *argv).stdout

    def _daemons(self) -> Iterator[Daemon]:
        yield self.controller
        for site in self.sites.values():
            yield site.charon
            yield site.agent

    @staticmethod
    def _controller() -> Command:
        return Command([sys.executable, "-m", "cpe_controller", "--state", str(CONTROLLER_STATE), "serve"])


def _is_ready(log: Path) -> bool:
    return log.read_bytes().startswith(b"ready")
