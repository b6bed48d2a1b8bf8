"""How does a machine of a lab get its addresses as a router does, from systemd-networkd and files?

A real systemd-networkd in a namespace, with a /run/systemd of its own and without udev, D-Bus and the machine's files.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.lab.container import Container, Process, wait_until
from tests.lab.init import LOGS

NETWORKD = "/lib/systemd/systemd-networkd"
_USER = "systemd-network"
_START_S = 20.0
_END_S = 10.0
# `ip netns exec` has made mounts that are this process's own. A read-only /sys means that there is no udev to wait for.
_SCRIPT = """
set -e
mkdir -p /run/systemd
mount --bind "$1" /run/systemd
for taken in /etc/systemd/network /etc/systemd/networkd.conf.d; do
    [ ! -d "$taken" ] || mount -t tmpfs none "$taken"
done
mount -o remount,ro /sys
exec "$2"
"""


class Networkd:
    """`files`: name to text, of .network and .link files; `conf`: the same of drop-ins for networkd.conf."""

    def __init__(
        self, container: Container, namespace: str, files: Mapping[str, str], conf: Mapping[str, str] | None = None
    ) -> None:
        self._container, self._namespace = container, namespace
        self._inside = f"/run/networkd-{namespace}"
        self._log = container.path(f"{LOGS}/networkd-{namespace}.log")
        self._process: Process | None = None
        outside = container.path(self._inside)
        for directory, texts in (("network", files), ("networkd.conf.d", conf or {})):
            (outside / directory).mkdir(parents=True, exist_ok=True)
            for name, text in texts.items():
                (outside / directory / name).write_text(text)
        (outside / "netif").mkdir(exist_ok=True)
        container.run(["chown", f"{_USER}:{_USER}", f"{self._inside}/netif"])

    def start(self) -> None:
        """Returns when it has looked at every interface."""
        argv = ["sh", "-c", _SCRIPT, "sh", self._inside, NETWORKD]
        env = {"SYSTEMD_LOG_TARGET": "console", "SYSTEMD_LOG_LEVEL": "info", "SYSTEMD_LOG_COLOR": "0"}
        with open(self._log, "wb") as log:
            self._process = self._container.spawn(argv, namespace=self._namespace, stdout=log, env=env)
        wait_until(f"{self._namespace}: networkd runs", lambda: "Enumeration completed" in self.said(), _START_S)

    def stop(self) -> None:
        """May be called again."""
        if self._process is not None:
            self._process.signal(signal.SIGTERM)
            self._process.wait(_END_S)
            self._process.close()
            self._process = None

    def said(self) -> str:
        """Its log since the last start; what it does not understand in a file is there."""
        return self._log.read_text(errors="replace")

    def leases(self) -> str:
        """What DHCP servers have told it, as it keeps it."""
        directory: Path = self._container.path(f"{self._inside}/netif/leases")
        return "".join(file.read_text() for file in sorted(directory.iterdir())) if directory.is_dir() else ""


def addresses(container: Container, namespace: str, interface: str) -> list[str]:
    """IPv4 addresses of an interface, as 10.0.0.1/24."""
    told = container.run(["ip", "-4", "-j", "addr", "show", "dev", interface], namespace=namespace).stdout
    found: list[dict[str, Any]] = json.loads(told or "[]")
    return [f"{one['local']}/{one['prefixlen']}" for link in found for one in link.get("addr_info", [])]
