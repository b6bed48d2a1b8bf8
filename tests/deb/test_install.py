"""What does the package do to a clean Debian, without a running systemd: installed, upgraded, removed, purged?"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deb import tree

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(params=sorted(tree.CODENAMES))
def release(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def box(release: str, tmp_path: Path) -> Iterator[Path]:
    copied = tmp_path / "box"
    tree.copy(tree.installed(release), copied)
    yield copied
    shutil.rmtree(copied)


def test_what_an_installation_leaves(box: Path) -> None:
    said = (box / "root" / "installed.log").read_text()
    assert "strongswan.service, which nobody has set up, is disabled" in said
    wanted = box / "etc/systemd/system"
    assert (wanted / "sysinit.target.wants/cpe-agent-boot.service").is_symlink()
    for unit in ("cpe-agent.service", "cpe-charon.service", "cpe-charon-restart.path", "cpe-agent-time.path"):
        assert (wanted / "multi-user.target.wants" / unit).is_symlink()
    assert not (wanted / "multi-user.target.wants/strongswan.service").is_symlink()
    assert tree.inside(box, "stat -c '%a %U %G' /etc/cpe-agent /etc/cpe-agent/agent.yaml").splitlines() == [
        "750 root cpe-agent",
        "640 root cpe-agent",
    ]
    assert "cpe-agent 0.1.0" in tree.inside(box, "cpe-agent version")
    # Nothing beside the tree is imported, and nothing of it is missing.
    assert "no agent is running" in tree.inside(box, "cpe-agent status", check=False)


def test_that_a_strongswan_that_somebody_has_set_up_is_left_alone(release: str, tmp_path: Path) -> None:
    box = tmp_path / "box"
    tree.copy(tree.fetched(release), box)
    settings = box / "etc/swanctl/conf.d"
    settings.mkdir(parents=True)
    (settings / "office.conf").write_text("connections { office { } }\n")
    shutil.copy(tree.package(release), box / "root")
    said = tree.inside(box, "apt install -y ./cpe-agent_*.deb")
    assert "strongswan.service, which nobody has set up, is disabled" not in said
    assert (box / "etc/systemd/system/multi-user.target.wants/strongswan.service").is_symlink()
    shutil.rmtree(box)


def test_that_an_upgrade_keeps_what_was_set(box: Path, release: str) -> None:
    following = tree.package(release, following=True)
    shutil.copy(following, box / "root")
    settings = box / "etc/cpe-agent/agent.yaml"
    settings.write_text("log_level: debug\n")
    said = tree.inside(box, f"dpkg -i ./{following.name} && dpkg -s cpe-agent")
    assert tree.NEXT in said and settings.read_text() == "log_level: debug\n"
    assert tree.inside(box, "stat -c '%a %U %G' /etc/cpe-agent/agent.yaml").strip() == "640 root cpe-agent"


def test_that_removing_stops_forwarding_and_leaves_the_rest(box: Path) -> None:
    before = (
        "echo 1 >/proc/sys/net/ipv4/ip_forward; ip link set lo up; cpe-agent boot; "
        "python3 -c 'import nftables; n = nftables.Nftables(); print(n.cmd(\"add table inet others\"))'; "
        "ip rule add priority 90 from 192.0.2.77 lookup 77; echo 1 >/proc/sys/net/ipv4/ip_forward"
    )
    look = (
        "cat /proc/sys/net/ipv4/ip_forward; ip rule; "
        "python3 -c 'import nftables; print(nftables.Nftables().cmd(\"list tables\")[1])'"
    )
    said = tree.inside(box, f"{before}; {look}; echo ======; dpkg -r cpe-agent; echo ======; {look}")
    held, removing, left = said.split("======")
    assert "table inet cpe_agent" in held and "Forwarding is off" in removing, said
    assert "Not taken away" not in removing, said
    assert left.split()[0] == "0" and "cpe_agent" not in left
    assert "table inet others" in left and "192.0.2.77" in left
    assert (box / "etc/cpe-agent/agent.yaml").exists()


def test_that_purging_takes_keys_and_state_and_says_so(box: Path) -> None:
    state = box / "var/lib/cpe-agent"
    state.mkdir(exist_ok=True)
    (state / "identity.key").write_text("secret")
    said = tree.inside(box, "dpkg -P cpe-agent")
    assert "removing this site's key, its documents and its settings" in said
    assert not state.exists() and not (box / "etc/cpe-agent").exists()
    # What else /etc has of us is what dpkg keeps of nothing.
    assert not list((box / "etc/systemd/system").rglob("cpe-*"))
