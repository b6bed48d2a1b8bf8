"""A real charon, userland backend, with the strongswan.conf that the agent writes; and what the kernel says of ESP."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from cpe_agent.edge.ipsec import detect, resolve, strongswan_conf
from cpe_agent.edge.vici import Outgoing, ViciClient, ViciLost, ViciRefused, open_vici, section, text, texts
from cpe_agent.model.dataplane import Backend

CHARON = "/usr/sbin/charon-systemd"
NO_CHARON = os.geteuid() != 0 or not Path(CHARON).exists() or shutil.which("unshare") is None
ONLY_4500 = (
    "add table inet t; add chain inet t in { type filter hook input priority 0; policy accept; };"
    "add rule inet t in iifname wan meta l4proto udp udp dport != 4500 drop"
)


@contextmanager
def running_charon(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    conf = directory / "strongswan.conf"
    conf.write_text(strongswan_conf(Backend.USERLAND, directory / "vici", directory / "charon.log"))
    charon = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", CHARON],
        env={**os.environ, "STRONGSWAN_CONF": str(conf)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield charon
    finally:
        charon.kill()
        charon.wait(10)


async def answering(vici: ViciClient, log: Path) -> None:
    """Until charon answers: it makes its socket before it listens, and may find an old one in its place."""
    with trio.move_on_after(20):
        while True:
            try:
                await vici.request("version", timeout_s=1)
                return
            except ViciLost:
                await trio.sleep(0.05)
    pytest.fail(f"charon does not answer:\n{await trio.Path(log).read_text()}")


async def inside(charon: subprocess.Popen[bytes], command: str) -> str:
    """Run `command` in charon's network namespace; its output."""
    done = await trio.run_process(["nsenter", "-t", str(charon.pid), "-n", *shlex.split(command)], capture_stdout=True)
    return done.stdout.decode()


def connection(local: str, remote: str, local_ts: str, remote_ts: str) -> dict[str, Outgoing]:
    return {
        "version": 2,
        "local_addrs": [local],
        "remote_addrs": [remote],
        "local_port": 4500,
        "remote_port": 4500,
        "encap": True,
        "mobike": False,
        "unique": "never",
        "local": {"auth": "psk", "id": local},
        "remote": {"auth": "psk"},
        "children": {"probe": {"local_ts": [local_ts], "remote_ts": [remote_ts], "start_action": "none"}},
    }


@pytest.mark.skipif(NO_CHARON, reason="needs root and charon-systemd")
async def test_real_charon_from_start_to_kill_to_restart(tmp_path: Path) -> None:
    log = tmp_path / "charon.log"
    loaded = connection("192.0.2.1", "192.0.2.2", "10.9.0.1/32", "10.9.0.2/32")
    async with open_vici(tmp_path / "vici") as vici:
        with running_charon(tmp_path) as charon:
            await answering(vici, log)
            assert text(await vici.request("version"), "daemon") == "charon-systemd"
            plugins = texts(await vici.request("stats"), "plugins")
            assert {"kernel-libipsec", "kernel-netlink", "openssl", "kdf", "vici"} <= set(plugins)
            assert "updown" not in plugins
            rules = await inside(charon, "ip rule")
            assert "32000:\tfrom all lookup 991" in rules
            assert "lookup 220" not in rules
            sockets = await inside(charon, "ss -Hlun")
            assert "0.0.0.0:4500" in sockets
            assert "0.0.0.0:500 " not in sockets

            await vici.request("load-conn", {"cpe-a": loaded})
            (listed,) = await vici.collect("list-conns", {}, "list-conn")
            assert texts(section(listed, "cpe-a"), "remote_addrs") == ("192.0.2.2",)
            assert section(section(section(listed, "cpe-a"), "children"), "probe")
            assert await vici.collect("list-sas", {"noblock": True}, "list-sa") == []
            with pytest.raises(ViciRefused, match="does not know this command"):
                await vici.request("dance")
            with pytest.raises(ViciRefused, match="not found"):
                await vici.request("initiate", {"child": "absent", "timeout": -1})
            with pytest.raises(ViciRefused, match="colour"):
                await vici.request("load-conn", {"cpe-b": {**loaded, "colour": "red"}})

            names = ("ike-updown", "child-updown", "ike-rekey", "child-rekey")
            async with vici.events(*names) as events:
                # Nobody answers at that address: initiate returns at once, and giving up is an event.
                await vici.request("initiate", {"ike": "cpe-a", "timeout": -1})
                await vici.request("terminate", {"ike": "cpe-a", "force": True, "timeout": -1})
                charon.kill()
                charon.wait(10)
                with trio.fail_after(5), pytest.raises(ViciLost):
                    while True:
                        assert (await anext(events))[0] in names
            with pytest.raises(ViciLost):
                await vici.request("version", timeout_s=2)
        with running_charon(tmp_path):
            await answering(vici, log)
            assert await vici.collect("list-conns", {}, "list-conn") == []
            assert text(await vici.request("version"), "daemon") == "charon-systemd"


@pytest.mark.skipif(NO_CHARON, reason="needs root and charon-systemd")
async def test_two_charons_meet_on_4500_alone(tmp_path: Path) -> None:
    (tmp_path / "branch").mkdir()
    (tmp_path / "hub").mkdir()
    with running_charon(tmp_path / "branch") as branch, running_charon(tmp_path / "hub") as hub:
        async with open_vici(tmp_path / "branch/vici") as branch_vici, open_vici(tmp_path / "hub/vici") as hub_vici:
            await answering(branch_vici, tmp_path / "branch/charon.log")
            await answering(hub_vici, tmp_path / "hub/charon.log")
            await inside(branch, f"ip link add wan netns {branch.pid} type veth peer name wan netns {hub.pid}")
            for charon, last in ((branch, 1), (hub, 2)):
                await inside(charon, f"ip addr add 192.0.2.{last}/24 dev wan")
                await inside(charon, f"ip addr add 10.9.0.{last}/32 dev lo")
                await inside(charon, "ip link set lo up")
                await inside(charon, "ip link set wan up")
                # What the agents' firewalls do: nothing but 4500 gets in from outside.
                await inside(charon, f"nft '{ONLY_4500}'")
            for vici, ends in (
                (branch_vici, ("192.0.2.1", "192.0.2.2", "10.9.0.1/32", "10.9.0.2/32")),
                (hub_vici, ("192.0.2.2", "%any", "10.9.0.2/32", "10.9.0.1/32")),
            ):
                await vici.request("load-shared", {"type": "IKE", "data": "secret of this test only"})
                await vici.request("load-conn", {"cpe-a": connection(*ends)})
            await branch_vici.request("initiate", {"child": "probe", "ike": "cpe-a", "timeout": 8000}, timeout_s=9)
            for vici in (branch_vici, hub_vici):
                # Not `noblock`: that leaves out an IKE_SA that charon is still busy with.
                (listed,) = await vici.collect("list-sas", {}, "list-sa")
                sa = section(listed, "cpe-a")
                assert (text(sa, "state"), text(sa, "local-port"), text(sa, "remote-port")) == (
                    "ESTABLISHED",
                    "4500",
                    "4500",
                )
            for charon, last, other in ((branch, 1, 2), (hub, 2, 1)):
                await inside(charon, f"ip route add 10.9.0.{other}/32 dev ipsec0 src 10.9.0.{last}")
            assert " 0% packet loss" in await inside(branch, "ping -c 2 -i 0.2 -W 2 -I 10.9.0.1 10.9.0.2")


def test_conf_differs_by_backend_only_in_its_plugins() -> None:
    kernel = strongswan_conf(Backend.KERNEL, Path("/run/vici")).splitlines()
    userland = strongswan_conf(Backend.USERLAND, Path("/run/vici")).splitlines()
    ((ours, theirs),) = [(a, b) for a, b in zip(kernel, userland, strict=True) if a != b]
    assert "libipsec" not in ours
    assert theirs.index("kernel-libipsec!") < theirs.index(" kernel-netlink ")
    assert not any("filelog" in line for line in kernel)
    assert not any("group" in line for line in kernel)
    assert "    group = daemon" in strongswan_conf(Backend.KERNEL, Path("/run/vici"), group="daemon").splitlines()
    with pytest.raises(ValueError, match="group"):
        strongswan_conf(Backend.KERNEL, Path("/run/vici"), group="x\nload = updown")
    for bad in ("vici", '/run/"', "/run/a\nb"):
        with pytest.raises(ValueError, match="path"):
            strongswan_conf(Backend.KERNEL, Path(bad))


def test_setting_names_the_backend() -> None:
    assert resolve("kernel") is Backend.KERNEL
    assert resolve("userland") is Backend.USERLAND
    with pytest.raises(ValueError, match="quantum"):
        resolve("quantum")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_NET_ADMIN")
def test_kernel_is_asked_as_ip_xfrm_would_ask_it_and_nothing_stays_behind() -> None:
    def states() -> str:
        return subprocess.run(["ip", "xfrm", "state"], capture_output=True, text=True, check=True).stdout

    asked = (
        "unshare --net ip xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1234 mode tunnel "
        f"aead rfc4106(gcm(aes)) 0x{'00' * 36} 128 encap espinudp 4500 4500 0.0.0.0"
    )
    added = subprocess.run(asked.split(), capture_output=True, check=False)
    before = states()
    assert detect() is (Backend.KERNEL if added.returncode == 0 else Backend.USERLAND)
    assert states() == before
