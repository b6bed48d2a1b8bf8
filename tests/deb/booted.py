"""A clean Debian, booted: systemd as process 1 of a process tree of its own, in a namespace of a lab.

In: a lab, a site of it whose daemons do not run (or its controller's machine), and the tree (tests.deb.tree), which is
not changed: a layer in the lab's memory takes what is written, and outlives `cut_power`. systemd has its own process
ids, mounts, cgroups and host name, and the network of the namespace; the kernel is the lab's. `end` it: only then
nothing of it is left.
"""

from __future__ import annotations

import signal
from pathlib import Path

from tests.lab.container import Completed, LabError, Process, wait_until
from tests.lab.init import LOGS
from tests.lab.lab import Lab

# What is mounted in a namespace of the lab is seen there alone, and `end` has to see it too.
_CGROUPS = "mkdir -p /run/cgroup; mountpoint -q /run/cgroup || mount -t cgroup2 cgroup2 /run/cgroup"
# systemd will take the top of its cgroup namespace for its own, so that is not this machine's top.
_APART = r"""
set -e
script=$1 tree=$2 at=$3 cgroup=$4
mkdir -p "$at/written" "$at/work" "$at/root"
mkdir "$cgroup"; echo 0 >"$cgroup/cgroup.procs"
exec unshare --pid --mount --uts --ipc --cgroup --fork --kill-child /bin/bash -c "$script" boot "$tree" "$at"
"""
# Runs as the first process of its namespaces.
_SCRIPT = r"""
set -e
tree=$1 at=$2
mount -t overlay -o "lowerdir=$tree,upperdir=$at/written,workdir=$at/work" root "$at/root"
cd "$at/root"
mount -t proc proc proc; mount -t sysfs sys sys; mount -t tmpfs -o mode=755 run run; mount -t tmpfs tmp tmp
mount -t tmpfs -o mode=755 dev dev; mkdir dev/net dev/pts dev/shm
for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 net/tun:10:200; do
    IFS=: read -r name major minor <<<"$node"; mknod -m 666 "dev/$name" c "$major" "$minor"
done
ln -s /proc/self/fd dev/fd; ln -s pts/ptmx dev/ptmx
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts dev/pts
mount -t tmpfs -o mode=755 cgroup sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 cgroup2 sys/fs/cgroup
echo clean >/proc/sys/kernel/hostname
# udev has no devices to look after here, and no consoles want a login.
for unit in systemd-udevd.service systemd-udev-trigger.service getty.target console-getty.service; do
    ln -sfn /dev/null "etc/systemd/system/$unit"
done
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=lab LANG=C.UTF-8 \
    unshare --root "$at/root" --wd / /lib/systemd/systemd --show-status=no --log-target=journal
"""
_END_S = 20.0


class Booted:
    """`boot` returns when systemd has done what it starts."""

    def __init__(self, lab: Lab, site: str, tree: Path) -> None:
        self._lab, self._site, self._tree = lab, site, tree
        self._process: Process | None = None
        # Labs have their own process ids, but the cgroups of this machine.
        self._cgroup = f"/run/cgroup/{lab.name}-{site}-{lab.container.pid}"

    def boot(self, timeout_s: float = 90.0) -> None:
        self._run(_CGROUPS, check=True)
        # Of this tree alone: one of another release in the same lab has written into its own.
        at = f"/run/{self._site}-{self._tree.name}"
        argv = ["/bin/bash", "-c", _APART, "apart", _SCRIPT, str(self._tree), at, self._cgroup]
        with open(self._lab.path(f"{LOGS}/{self._site}-systemd.log"), "ab") as log:
            self._process = self._lab.container.spawn(argv, namespace=self._site, stdout=log)
        try:
            wait_until("systemd has booted", self._is_up, timeout_s, interval_s=0.5)
        except LabError as error:
            told = self._lab.path(f"{LOGS}/{self._site}-systemd.log").read_text(errors="replace")
            raise LabError(f"{error}: {told[-1000:]} {self.shell('systemctl list-jobs', check=False).stdout}") from None

    def cut_power(self) -> None:
        """And boot it again. What was written is there; the network's state is for whoever owns the namespace."""
        self.end()
        self.boot()

    def end(self) -> None:
        """Pull the plug. What is empty of its cgroups then is taken away, which the end of the lab would not do."""
        if self._process is None:
            return
        self._process.signal(signal.SIGKILL)
        self._process.wait(_END_S)
        self._process.close()
        self._process = None
        there = f"mountpoint -q /run/cgroup || exit 1; [ -d {self._cgroup} ] || exit 0"
        remove = f"{there}; find {self._cgroup} -depth -type d -exec rmdir {{}} +"
        wait_until("its cgroups are gone", lambda: self._run(remove).status == 0, _END_S, interval_s=0.2)

    @property
    def pid(self) -> int:
        """systemd, inside the lab."""
        assert self._process is not None
        children = f"/proc/{self._process.pid}/task/{self._process.pid}/children"
        return int(self._lab.run(self._site, "cat", children).stdout.split()[0])

    def shell(self, command: str, *, timeout_s: float = 60.0, check: bool = True, input: str = "") -> Completed:
        """As typed by root, in root's home, at this box. `input`: what is answered."""
        into = [
            "nsenter",
            "--target",
            str(self.pid),
            "--mount",
            "--pid",
            "--uts",
            "--ipc",
            "--cgroup",
            "--root",
            "--wd",
        ]
        words = "export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive; cd /root; "
        argv = [*into, "/bin/bash", "-c", f"{words}{command}"]
        return self._lab.run(self._site, *argv, timeout_s=timeout_s, check=check, input=input)

    def shown(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.shell(f"systemctl show --value -p {name} {unit}").stdout.strip()

    def wait_shown(self, unit: str, name: str, expected: str, timeout_s: float) -> None:
        def holds() -> bool:
            return expected in self.shown(unit, name)

        wait_until(f"{unit}: {name} has {expected!r}", holds, timeout_s, interval_s=0.2)

    def put(self, file: Path, name: str) -> None:
        """A file of this machine into root's home."""
        into = self._lab.path(f"/proc/{self.pid}/root/root/{name}")
        into.write_bytes(file.read_bytes())

    def _run(self, script: str, *, check: bool = False) -> Completed:
        """In the lab's own tree of files."""
        return self._lab.container.run(["/bin/bash", "-c", script], check=check)

    def _is_up(self) -> bool:
        try:
            said = self.shell("systemctl is-system-running", check=False).stdout.strip()
        except (LabError, IndexError):
            return False
        return said in ("running", "degraded")
