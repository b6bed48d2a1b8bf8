"""Is nothing left of a lab, however it ended? And do two labs leave each other alone?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.container import REPOSITORY, LabError, wait_until
from tests.lab.lab import Lab
from tests.lab.running import find

# A parent that starts a lab with a fault and a flow in it, says so, and then does nothing.
_PARENT = """
import sys, time
from tests.lab.lab import Lab
lab = Lab(name=sys.argv[1])
lab.site("van-1").uplink("lte").slow(20)
lab.site("centre").uplink("wan").blackhole()
lab.run("centre", "ip", "route", "add", "10.99.0.0/16", "dev", "lan0")
flow = lab.flow("hospital-1", "controller")
print("up", flush=True)
time.sleep(60)
"""


def _machine() -> dict[str, object]:
    """What a lab could leave behind in the namespaces that it was started from."""
    files = [str(path) for top in ("/run", "/var/run", "/tmp") for path in Path(top).glob("*")]
    commands = (["ip", "-o", "link"], ["ip", "route"], ["ip", "rule"], ["ip", "netns"], ["nft", "list", "ruleset"])
    return {
        "mounts": Path("/proc/self/mountinfo").read_text(),
        "files": [path for path in files if "lab" in path.rsplit("/", 1)[1]],
        **{" ".join(command): subprocess.check_output(command) for command in commands},
    }


def _namespaces(init: int) -> set[tuple[str, int]]:
    """All namespaces of the lab whose process 1 this is."""
    own = {(kind, os.stat(f"/proc/{init}/ns/{kind}").st_ino) for kind in ("net", "pid_for_children", "mnt")}
    names = Path(f"/proc/{init}/root/run/netns")
    return own | {("net", path.stat().st_ino) for path in names.iterdir()}


def _in_use(namespaces: set[tuple[str, int]]) -> list[str]:
    """Processes that are in any of these namespaces."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        for kind, inode in namespaces:
            try:
                if os.stat(process / "ns" / kind).st_ino == inode:
                    found.append(f"{process.name} {(process / 'cmdline').read_bytes()!r}")
            except OSError:
                continue
    return found


def _kill_parent(parent: int, _init: int) -> None:
    os.kill(parent, signal.SIGKILL)


def _interrupt_parent(parent: int, _init: int) -> None:
    os.kill(parent, signal.SIGINT)


def _kill_unshare(_parent: int, init: int) -> None:
    status = Path(f"/proc/{init}/status").read_text()
    os.kill(int(status.split("PPid:")[1].split()[0]), signal.SIGKILL)


def _kill_init(_parent: int, init: int) -> None:
    os.kill(init, signal.SIGKILL)


@pytest.mark.parametrize("end", [_kill_parent, _interrupt_parent, _kill_unshare, _kill_init])
def test_nothing_is_left_within_2_s(end: Callable[[int, int], None]) -> None:
    before = _machine()
    name = f"end-{end.__name__}"
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, name], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as parent:
        try:
            assert parent.stdout is not None
            assert parent.stdout.readline() == b"up\n"
            init = find(name)
            assert init is not None
            namespaces = _namespaces(init)
            assert len(namespaces) > 20
            assert len(_in_use(namespaces)) >= 8  # process 1, four web servers, a relay, a flow
            end(parent.pid, init)
            wait_until("all its processes have gone", lambda: not _in_use(namespaces), timeout_s=2)
        finally:
            parent.kill()
    assert find(name) is None
    assert _machine() == before


def test_close_leaves_nothing_and_what_is_asked_later_says_so() -> None:
    before = _machine()
    lab = Lab(name="end-close")
    namespaces = _namespaces(lab.container.pid)
    lab.close()
    assert _in_use(namespaces) == []
    assert _machine() == before
    with pytest.raises(LabError, match="not running"):
        lab.run("centre", "true")
    lab.close()


def test_two_labs_at_once(bare_lab: Lab) -> None:
    with Lab(name="second") as second:
        second.site("hospital-1").uplink("wired").blackhole()
        ping = ("ping", "-n", "-c", "1", "-W", "1", "198.51.100.202")
        assert bare_lab.run("hospital-1", *ping).status == 0
        assert second.run("hospital-1", *ping, check=False).status != 0
        assert find("second") == second.container.pid
    assert bare_lab.run("hospital-1", *ping).status == 0


def test_a_failure_keeps_the_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.lab.lab.KEPT_LOGS", tmp_path)
    with pytest.raises(ZeroDivisionError), Lab(name="failing"):
        raise ZeroDivisionError
    assert (tmp_path / "failing" / "cloud-server-web.log").read_text().startswith("ready")
