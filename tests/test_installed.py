"""What has the installed daemon in its memory? Nothing that a router has no use for.

Each module costs a small router memory for as long as the agent lives; `make bench BENCH=agent_rss_mb` has the sum.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.lab import installed

# What was there once, and how much it took with what it brings.
NOT_NEEDED = {
    "tarfile": "of `support-bundle`: 0.4 MB",
    "pyroute2.ipdb": "comes with `import pyroute2`: 5 MB in all",
    "pyroute2.ndb": "comes with `import pyroute2`",
    "pyroute2.plan9": "comes with `import pyroute2`",
    "pyroute2.nftables": "comes with `import pyroute2`",
    "pyroute2.netlink.nl80211": "comes with `import pyroute2`",
    "sqlite3": "comes with `import pyroute2`",
    "click": "of tests, and imported by httpx where it finds it: 5 MB with rich and pygments",
    "pygments": "of tests",
    "rich": "of tests, and imported by structlog where it finds it",
    "pytest": "of tests",
    "starlette": "of the controller",
    "uvicorn": "of the controller",
}

# As the package's command does it, up to the daemon's life: then every kind of question to the kernel, and an answer.
_LIVES = """
import sys
sys.path.insert(0, {tree!r})
from cpe_agent.cli import main
loaded = set(sys.modules)

import trio
from cpe_agent.edge.netlink import Netlink
from cpe_agent.edge.nftables import NftablesFirewall
from cpe_agent.model.dataplane import Route, Rule
from cpe_agent.model.ops import AddAddress, AddRoute, AddRule, DeleteAddress, DeleteRoute, DeleteRule

async def live():
    netlink, firewall = Netlink(), NftablesFirewall()
    async with trio.open_nursery() as nursery:
        changes = netlink.changes()
        await anext(changes)
        rule = Rule(4, 90, 90, "", "10.99.0.1")
        route = Route(90, "10.98.0.0/24", "lo")
        await netlink.apply([AddAddress("10.99.0.1/32"), AddRule(rule), AddRoute(route)])
        await anext(changes)
        assert route in (await netlink.read()).routes
        await netlink.strangers(), await netlink.links(), await netlink.counters(), await firewall.read()
        await netlink.apply([DeleteRule(rule), DeleteRoute(route), DeleteAddress("10.99.0.1/32")])
        await changes.aclose()

trio.run(live)
print(*loaded)
print(*set(sys.modules) - loaded)
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], set[str]]:
    """Those that are there when the daemon begins, and those that came while it spoke with the kernel."""
    tree = installed.put(tmp_path_factory.mktemp("installed")).parent / "lib"
    argv = ["/usr/bin/python3", "-I", "-c", _LIVES.format(tree=str(tree))]
    lived = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert lived.returncode == 0, lived.stderr
    first, later = lived.stdout.split("\n")[:2]
    return set(first.split()), set(later.split())


def test_the_daemon_has_what_it_needs_and_no_more(modules: tuple[set[str], set[str]]) -> None:
    began, _ = modules
    assert {"cpe_agent.app", "pyroute2.iproute.linux", "trio"} <= began
    assert {name: why for name, why in NOT_NEEDED.items() if name in began} == {}


def test_nothing_is_imported_while_the_kernel_waits(modules: tuple[set[str], set[str]]) -> None:
    _, later = modules
    assert later == set()


def test_the_library_is_whole_for_whoever_asks_for_it_first(tmp_path: Path) -> None:
    tree = installed.put(tmp_path).parent / "lib"
    program = (
        f"import sys; sys.path.insert(0, {str(tree)!r}); import pyroute2, cpe_agent.edge.netlink as ours;"
        "print(pyroute2.NDB is not None and pyroute2.IPRoute is ours.IPRoute)"
    )
    asked = subprocess.run(["/usr/bin/python3", "-I", "-c", program], capture_output=True, text=True, check=True)
    assert asked.stdout == "True\n"


def test_the_command_is_the_packages(tmp_path: Path) -> None:
    command = installed.put(tmp_path)
    said = subprocess.run([command, "version"], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("cpe-agent ")
    assert command.read_text().replace(str(tmp_path / "lib"), installed.TREE) == installed.COMMAND.read_text()
