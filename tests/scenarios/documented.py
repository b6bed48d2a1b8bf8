"""How is a command of the README and docs run as it stands there?

Two beds. `Sites`: a whole lab, where a command is typed at the shell of a site, or of the controller's machine.
`Alone`: a machine with nothing but the controller's commands, and the directories that they are told to use. In both,
`cpe-agent` and `cpe-controller` are the real ones, started by a line of shell that says where this machine's settings
are; nothing else of what is written is changed, but a token is the one that was made last.
"""

from __future__ import annotations

import shlex
import signal
import sys
from typing import IO

from cpe_agent.model.condition import Severity, Status
from tests.lab import watch
from tests.lab.commands import BIN, put, tool
from tests.lab.container import REPOSITORY, Completed, Container, Process, listens, wait_until
from tests.lab.lab import Lab

# Pages whose commands tests/scenarios/test_documented.py runs, all but those that others run. The other README has the
# same commands, which tests/docs holds to be so.
HERE = frozenset(
    {
        "README.md",
        "README.zh-CN.md",
        "docs/API.md",
        "docs/CONTROLLER.md",
        "docs/OPERATOR.md",
        "docs/QUICKSTART.md",
        "docs/TROUBLESHOOTING.md",
    }
)
# Who runs the rest: a test, or a file with these words in it.
BY_OTHERS = {
    "make demo": "tests/scenarios/test_documented.py::test_make_demo",
    "make test": ".ci/run::make test\n",
    "make lab": "tests/scenarios/test_documented.py::test_make_lab_and_what_it_says",
    "make deb": "tests/deb/test_packages.py::test_make_deb",
    # On clean Debians, booted: `make test-deb`.
    "apt install ./cpe-agent_*.deb": "tests/deb/test_booted.py::test_that_what_the_quick_start_says_makes_a_site",
    "apt remove cpe-agent": "tests/deb/test_booted.py::test_that_removing_lets_nothing_through_and_leaves_the_rest",
    "apt purge cpe-agent": "tests/deb/test_booted.py::test_that_purging_takes_the_keys_and_says_so",
    "apt install ./cpe-controller_*.deb": "tests/deb/test_controller.py::test_what_the_guide_begins_with",
}
# What pages speak of and tell nobody to type as it stands there, with what stands for something put in. Run in order:
# at a branch, whose name is $SITE, and at a controller of a network that is in force.
AT_A_BRANCH = (
    "cpe-agent version",
    "cpe-agent check",
    "cpe-agent check /run/$SITE/agent.yaml",
    "cpe-agent boot",
    "cpe-agent status --all",
    "cpe-agent status lte",
    # Long enough for it to be there: what is interrupted before that ends otherwise.
    "timeout --preserve-status -s INT 8 cpe-agent status --watch",
    "cpe-agent verify --json",
    # As the controller hands it out: without the agent's own line about it.
    "sed 1d /run/$SITE/state/document >another.json && cpe-agent plan another.json",
    "cpe-agent capture 'PAIR' --seconds 1",
)
AT_A_CONTROLLER = (
    "cpe-controller status",
    "cpe-controller audit",
    "sed -i 's/misses: 3/misses: 4/' network.yaml && cpe-controller diff network.yaml",
    "cpe-controller cloud-init cloud",
    "cpe-controller drain centre",
    "cpe-controller undrain centre",
    "cpe-controller rollout",
    "cpe-controller cert van-1 --out .",
    "cpe-controller apply network.yaml",
    "cpe-controller rollback",
    "cpe-controller rotate start",
    "cpe-controller backup all.backup",
    "cpe-controller --state restored restore all.backup",
    "cpe-controller renew --root-key /var/lib/cpe-controller/root.key",
)
# What every lab has running.
DAEMONS = ("cpe-agent run", "cpe-controller serve")
# Targets of make that are spoken of: who has them run.
TARGETS_BY_OTHERS = {
    "bootstrap": "Makefile::check: bootstrap",
    "check": "Makefile::test: check",
    "fmt": "tests/scenarios/test_documented.py::test_make_fmt",
    "bench": "tests/scenarios/test_documented.py::test_make_bench",
    # These are tests themselves, of whole computers: by hand, each in a guest or in clean Debians.
    "guest": "Makefile::guest: guest-bootstrap",
    "test-deb": "Makefile::test-deb: bootstrap",
    "test-kernel": "Makefile::test-kernel: bootstrap",
}
# Where there is no systemd, its unit's own command is run.
SERVICE = "systemctl enable --now cpe-controller"
TOKEN = "cpe1.eyJu..."
WORK = "/run/work"
UP_S = 40.0
# A drill holds still for some seconds before and after.
COMMAND_S = 90.0


def typed(text: str) -> list[str]:
    """`text` at a shell, in the directory where its files are."""
    return ["sh", "-c", f"PATH={BIN}:$PATH; cd {WORK} || exit 99; {text}"]


class Sites:
    """A running lab. Every site is whole before a command is typed there, unless its agent was stopped for it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.token = ""
        put(lab.container)
        lab.path(WORK).mkdir(exist_ok=True)

    def run(self, text: str, site: str) -> Completed:
        """At the shell of `site`; a command of the controller at the controller's."""
        words = text.replace(TOKEN, self.token).replace("/run/cpe-charon/vici", f"/run/{site}/charon.vici")
        place = self.lab.network.controller if text.startswith("cpe-controller ") else site
        env = {"SITE": site, "no_proxy": "*"}
        return self.lab.container.run(typed(words), namespace=place, timeout_s=COMMAND_S, check=False, env=env)

    def settle(self, site: str) -> None:
        """Wait until nothing is wrong there, and nothing on trial."""
        watch.wait_for(self.lab, site, "is whole", _whole, UP_S)


def _whole(report: Status) -> bool:
    # What an operator gave up is told until there is a newer one, and nothing waits for it.
    wrong = [c for c in report.conditions if c.severity is not Severity.OK and c.type != "DocumentReverted"]
    return not wrong and watch.all_up(report) and watch.confirmed(report)


class Alone:
    """A machine for the controller: its /var/lib and /media are empty, and `controller.example` is itself."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self._serving: Process | None = None
        hosts = container.path("/run/hosts")
        hosts.write_text("127.0.0.1 localhost controller.example\n")
        for command in (
            "mount -t tmpfs none /var/lib",
            "mount -t tmpfs none /media",
            "mount --bind /run/hosts /etc/hosts",
            f"mkdir -p /media/safe /run/cpe-controller {WORK}/docs",
            f"cp {REPOSITORY}/configs/network.yaml {WORK}",
            f"ln -s {REPOSITORY}/.venv {WORK}/.venv",
        ):
            container.run(shlex.split(command))
        tool(container, "cpe-controller", f'exec {sys.executable} -m cpe_controller "$@"')

    def run(self, text: str) -> Completed:
        if text == SERVICE:
            self.serve()
            return Completed((text,), 0, "", "")
        return self.container.run(typed(text), timeout_s=COMMAND_S, check=False, env={"no_proxy": "*"})

    def serve(self) -> None:
        """As a service is: until somebody ends it."""
        log: IO[bytes]
        with open(self.container.path("/run/lab/logs/controller.log"), "wb") as log:
            self._serving = self.container.spawn(typed("exec cpe-controller serve"), stdout=log)
        socket = self.container.path("/run/cpe-controller/control.sock")
        wait_until("the controller takes commands", lambda: listens(socket), UP_S)

    def end(self) -> None:
        if self._serving is not None:
            self._serving.signal(signal.SIGTERM)
            self._serving.wait(UP_S)
            self._serving.close()
            self._serving = None
