"""A site of a running lab: its uplinks with their faults, its charon and its agent."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from cpe_agent.model.dataplane import Backend
from tests.lab.container import Completed, Container, LabError, listens, wait_until
from tests.lab.daemon import Command, Daemon
from tests.lab.faults import RunningUplink
from tests.lab.init import LOGS
from tests.lab.pace import BACKEND
from tests.lab.topology import Site

CHARON = "/usr/sbin/charon-systemd"


def need_esp() -> None:
    """LabError on a kernel without ESP. Asking loads its modules, which takes an emulated computer some ten seconds:
    else the first charon would wait for them, and with it everything that asks it."""
    from cpe_agent.edge.ipsec import detect

    if detect() is not Backend.KERNEL:
        raise LabError("this kernel has no ESP: make test-kernel brings one that has")


class RunningSite:
    """Files of the site, inside the lab: /run/NAME/agent.yaml, and what agent and charon put beside it."""

    def __init__(self, container: Container, site: Site, backend: str = BACKEND) -> None:
        self.name = site.name
        self.topology = site
        self.backend = backend
        self.clock_ahead_s = 0.0  # of the next agent that starts: how wrong its wall clock is
        self.command: Path | None = None  # the next agent's, from `installed`; None: this environment's
        self._container = container
        self.outside.mkdir(mode=0o755)
        self.uplinks = {uplink.name: RunningUplink(container, site.name, uplink) for uplink in site.uplinks}
        self.charon = Daemon(container, f"{site.name}-charon", site.name, self._charon)
        self.agent = Daemon(container, f"{site.name}-agent", site.name, self._agent)

    @property
    def inside(self) -> Path:
        """The site's directory as its own processes see it."""
        return Path("/run") / self.name

    @property
    def outside(self) -> Path:
        """The same directory, as tests see it."""
        return self._container.path(str(self.inside))

    @property
    def vici_socket(self) -> Path:
        """charon's control socket, as processes inside see it."""
        return self.inside / "charon.vici"

    @property
    def ipsec(self) -> Backend:
        """Who does its ESP."""
        # Imported late: the lab itself is tested without any edge of the product.
        from cpe_agent.edge.ipsec import resolve

        return resolve(self.backend)

    def uplink(self, name: str) -> RunningUplink:
        return self.uplinks[name]

    def run(self, *argv: str, timeout_s: float = 20.0, check: bool = True, input: str = "") -> Completed:
        """Run a command in the site's namespace."""
        return self._container.run(argv, namespace=self.name, timeout_s=timeout_s, check=check, input=input)

    def start(self) -> None:
        """Start charon, then the agent. Returns when charon takes commands."""
        self.start_charon()
        self.agent.start()

    def end_tunnels(self) -> None:
        """kill -9 of charon, and nothing is left of its tunnels: the kernel would keep its part of them."""
        self.charon.kill()
        if self.ipsec is Backend.KERNEL:
            for spi in self.kernel_sas():
                self.run("ip", "xfrm", "state", "delete", *spi, check=False)
            self.run("ip", "xfrm", "policy", "deleteall", "action", "allow")
        else:
            wait_until("the tunnels' device is gone", self._has_no_device, 5)

    def kernel_sas(self) -> list[list[str]]:
        """Of its SAs, as `ip xfrm state` names one."""
        words = self.run("ip", "xfrm", "state", "list").stdout.split()
        found = []
        for at, word in enumerate(words):
            if word == "spi":
                since = max(i for i in range(at) if words[i] == "src")
                found.append([*words[since : since + 4], "proto", "esp", "spi", words[at + 1].partition("(")[0]])
        return found

    def start_charon(self, timeout_s: float = 10.0) -> None:
        self.charon.start()
        wait_until(f"{self.charon.name} takes commands", self._charon_answers, timeout_s)

    def kill(self) -> None:
        """kill -9 of all daemons at once, as a power cut would; links, rules and routes of the kernel stay."""
        for daemon in (self.charon, self.agent):
            if daemon.running:
                self._container.signal(daemon.pid, signal.SIGKILL)
        for daemon in (self.charon, self.agent):
            daemon.kill()

    def vanish(self) -> None:
        """Its whole machine, as a power cut at a hub takes it: nobody hears another word of it."""
        # First: what the kernel of a dying machine still says must not get out.
        for uplink in self.uplinks.values():
            uplink.blackhole()
        self.kill()

    def reappear(self) -> None:
        """After `vanish`."""
        for uplink in self.uplinks.values():
            uplink.heal()
        self.start()

    def _has_no_device(self) -> bool:
        return self.ipsec.device not in self.run("ip", "link").stdout

    def _charon_answers(self) -> bool:
        return listens(self._container.path(str(self.vici_socket))) and self.charon.running

    def _charon(self) -> Command:
        from cpe_agent.edge.ipsec import strongswan_conf

        # A killed charon leaves its socket, which would look as if the new one answered.
        self._container.path(str(self.vici_socket)).unlink(missing_ok=True)
        log = Path(LOGS) / f"{self.name}-ike.log"
        text = strongswan_conf(self.ipsec, self.vici_socket, log)
        (self.outside / "strongswan.conf").write_text(text)
        return Command([CHARON], {"STRONGSWAN_CONF": str(self.inside / "strongswan.conf")})

    def _agent(self) -> Command:
        if self.command is not None:
            return Command([str(self.command), "run", "--config", str(self.inside / "agent.yaml")])
        program = ["tests.lab.clocked", str(self.clock_ahead_s)] if self.clock_ahead_s else ["cpe_agent"]
        return Command([sys.executable, "-m", *program, "run", "--config", str(self.inside / "agent.yaml")])
