"""Do the units in systemd/ keep to what DESIGN and README promise: how little they may, and what starts when?

Judged by systemd's own tools, offline; that they do what they say under a running systemd is for `make test-deb`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[1] / "systemd"
ANALYZE = shutil.which("systemd-analyze")

# The most that `systemd-analyze security` may find. The daemons of everybody's network: 2.0. Root's own units need what
# only root has: the locks and the clock, ESP and its port, somebody else's unit.
EXPOSURES = {
    "cpe-agent.service": 2.0,
    "cpe-controller.service": 2.0,
    "cpe-charon-restart.service": 2.0,
    "cpe-agent-time.service": 2.0,
    "cpe-agent-boot.service": 3.5,
    "cpe-charon.service": 3.5,
}


def _read(name: str) -> Mapping[str, Sequence[str]]:
    """Setting -> its values, in order."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.skipif(ANALYZE is None, reason="there is no systemd-analyze here")
@pytest.mark.parametrize(("unit", "limit"), EXPOSURES.items())
def test_how_much_a_unit_is_exposed(unit: str, limit: float) -> None:
    assert ANALYZE is not None
    argv = [ANALYZE, "security", "--offline=true", "--no-pager", str(UNITS / unit)]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=60).stdout
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert found is not None, said
    assert float(found[1]) <= limit, said


def test_that_no_service_is_left_out_of_that() -> None:
    assert {path.name for path in UNITS.glob("*.service")} == set(EXPOSURES)


@pytest.mark.skipif(ANALYZE is None, reason="there is no systemd-analyze here")
def test_that_systemd_understands_every_line() -> None:
    assert ANALYZE is not None
    names = [str(path) for path in sorted(UNITS.iterdir()) if path.suffix in (".service", ".path")]
    said = subprocess.run([ANALYZE, "verify", "--man=no", *names], capture_output=True, text=True, timeout=60).stderr
    # The commands and the man pages are the package's, which is not installed here.
    trouble = [line for line in said.splitlines() if "is not executable" not in line and "systemd/cpe-" in line]
    assert trouble == []


def test_that_the_agent_has_a_user_of_its_own_and_two_capabilities() -> None:
    unit = _read("cpe-agent.service")
    assert unit["User"] == unit["Group"] == ["cpe-agent"]
    for setting in ("AmbientCapabilities", "CapabilityBoundingSet"):
        assert unit[setting] == ["CAP_NET_ADMIN CAP_NET_RAW"]
    assert unit["NoNewPrivileges"] == ["yes"]


def test_that_the_agent_tells_when_it_is_ready_and_is_started_again_when_it_fails() -> None:
    unit = _read("cpe-agent.service")
    assert unit["Type"] == ["notify"] and unit["WatchdogSec"] == ["45s"] and unit["Restart"] == ["on-failure"]
    # Nothing is undone when it stops: the data plane stays.
    assert not {"ExecStop", "ExecStopPost", "BindsTo", "PartOf"} & set(unit)


def test_that_the_locks_come_before_the_network_and_the_clock_before_charon() -> None:
    boot = _read("cpe-agent-boot.service")
    assert {"network-pre.target", "cpe-charon.service", "cpe-agent.service"} <= set(boot["Before"][0].split())
    assert boot["Wants"] == ["network-pre.target"] and boot["DefaultDependencies"] == ["no"]
    assert "CAP_SYS_TIME" in boot["CapabilityBoundingSet"][0].split()
    for name in ("cpe-agent.service", "cpe-charon.service"):
        assert "cpe-agent-boot.service" in _read(name)["Requires"][0].split()


def test_that_charon_is_the_agents_own_and_has_no_settings_but_its() -> None:
    unit = _read("cpe-charon.service")
    assert unit["Environment"] == ["STRONGSWAN_CONF=/run/cpe-agent/strongswan.conf"]
    # No `swanctl --load-all`, and nobody else's unit is fought.
    assert unit["ExecStart"] == ["/usr/sbin/charon-systemd"] and not {"ExecStartPost", "Conflicts"} & set(unit)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("cpe-charon-restart.service", "/bin/systemctl restart cpe-charon.service"),
        ("cpe-agent-time.service", "/bin/systemctl try-restart systemd-timesyncd.service"),
    ],
)
def test_that_roots_helping_units_can_do_one_thing(name: str, command: str) -> None:
    unit = _read(name)
    assert [line for line in unit["ExecStart"] if "systemctl" in line] == [command]
    assert unit["CapabilityBoundingSet"][0] in ("", "CAP_DAC_OVERRIDE")
    assert unit["RestrictAddressFamilies"] == ["AF_UNIX"] and unit["PrivateNetwork"] == ["yes"]
