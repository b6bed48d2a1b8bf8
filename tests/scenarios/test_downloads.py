"""What becomes of a TCP connection on which only the server speaks, when its hub is left?

If one server stands behind both hubs and answers by the hub that it hears it from, nothing: not when the hub is drained
and taken again, not when it dies. If each hub has a server of its own, the other one knows nothing of the connection:
it ends, soon, and what is begun anew goes on there. That a receiver has nothing to say is the hard case: at the hub
that is new to the connection nothing passes before the side is heard that may start it.
"""

from __future__ import annotations

import contextlib
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab import bulk, watch
from tests.lab.container import Process, wait_until
from tests.lab.init import LOGS
from tests.lab.lab import Lab
from tests.lab.pace import patience

SITE, CLIENT, SERVER, TWIN = "hospital-1", "hospital-1-host", "centre-shared", "cloud-shared"
SHARED, ADDRESS, ROUTER, PORT = "centre+cloud", "10.50.0.10", "10.50.0.1", 8000
RATE = 500_000
# Beyond what a hub that has not seen these bytes would take for the same connection: the receiver's window is less.
AWAY_BYTES, WINDOW_BYTES = 2_000_000, 262_144
MOVE_S = 15.0
# A silent receiver asks after a second whether anybody is there; a sender asks again after 0.2 s, 0.4 s and so on.
GOES_ON_S = 10.0
# Servers with a leg behind each hub: what is said on a connection goes out where it was last heard.
LEGS = """
table inet legs {
    chain heard {
        type filter hook prerouting priority mangle
        iifname eth0 ct mark set 1
        iifname eth1 ct mark set 2
    }
    chain said {
        type route hook output priority mangle
        meta mark set ct mark
    }
}
"""


class Download:
    """`size` bytes from the shared address, by one curl."""

    def __init__(self, lab: Lab, size: int) -> None:
        self.size = size
        self._file, self._log = (lab.path(f"{LOGS}/download{end}") for end in ("", ".log"))
        self._file.unlink(missing_ok=True)
        argv = ["curl", "-sS", "--noproxy", "*", "--no-buffer", "--keepalive-time", "1", "-o", f"{LOGS}/download"]
        argv += ["--write-out", "got %{size_download} over %{num_connects}\n", f"http://{ADDRESS}:{PORT}/{size}"]
        with open(self._log, "wb") as log:
            self._curl = lab.container.spawn(argv, namespace=CLIENT, stdout=log)

    def __enter__(self) -> Download:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._curl.running:
            self._curl.signal(signal.SIGKILL)
        self._curl.close()

    @property
    def so_far(self) -> int:
        return self._file.stat().st_size if self._file.exists() else 0

    def goes_on(self, more: int, timeout_s: float) -> None:
        """Returns when `more` bytes have come than now."""
        least = self.so_far + more
        assert least < self.size, "it would end before it has shown anything"
        wait_until(f"{more} bytes more have come", lambda: self.so_far >= least, timeout_s)

    def end(self, timeout_s: float) -> tuple[int | None, str]:
        """curl's status, and what it says; None if it does not end."""
        return self._curl.wait(patience(timeout_s)), self._log.read_text()


@pytest.fixture
def servers(lab: Lab) -> Iterator[list[Process]]:
    """Both give bytes at a bounded rate."""
    servers = []
    for host in (SERVER, TWIN):
        log = lab.path(f"{LOGS}/bulk-{host}.log")
        argv = [sys.executable, "-S", str(Path(bulk.__file__)), "--port", str(PORT), "--rate", str(RATE)]
        with open(log, "wb") as stdout:
            servers.append(lab.container.spawn(argv, namespace=host, stdout=stdout))
        wait_until(f"{host} serves", lambda log=log: log.read_bytes() == b"ready\n", 10)  # type: ignore[misc]
    yield servers
    for server in servers:
        # The next one needs its port.
        server.signal(signal.SIGKILL)
        server.wait(5)
        server.close()


@pytest.fixture
def served(lab: Lab, servers: list[Process]) -> Iterator[Lab]:
    """The client's window is small."""
    del servers  # they come first
    kept = lab.run(CLIENT, "sysctl", "-n", "net.ipv4.tcp_rmem").stdout.split()
    _sysctl(lab, CLIENT, "net.ipv4.tcp_rmem", f"4096 {WINDOW_BYTES // 2} {WINDOW_BYTES}")
    yield lab
    _sysctl(lab, CLIENT, "net.ipv4.tcp_rmem", " ".join(kept))


@pytest.fixture
def one_server(served: Lab) -> Iterator[Lab]:
    """The cloud's wire to its own server ends at the centre's."""
    move = f"link set eth0 down\nlink set eth0 name eth1\nlink set eth1 netns {SERVER}"
    served.container.run(["ip", "-n", TWIN, "-batch", "-"], input=move)
    for command in (
        f"addr add {ADDRESS}/24 dev eth1 noprefixroute",
        "link set eth1 up",
        "route add 10.50.0.0/24 dev eth1 table 102",
        f"route add default via {ROUTER} dev eth1 table 102",
        "rule add fwmark 2 table 102 priority 100",
    ):
        served.run(SERVER, "ip", *command.split())
    served.run(SERVER, "nft", "-f", "-", input=LEGS)
    yield served
    served.run(SERVER, "nft", "delete table inet legs")
    served.run(SERVER, "ip", "rule", "del", "priority", "100")
    back = f"link set eth1 down\nlink set eth1 netns {TWIN}"
    served.container.run(["ip", "-n", SERVER, "-batch", "-"], input=back)
    for command in (
        "link set eth1 name eth0",
        f"addr add {ADDRESS}/24 dev eth0",
        "link set eth0 up",
        f"route add default via {ROUTER}",
    ):
        served.run(TWIN, "ip", *command.split())


def test_that_a_download_goes_on_when_its_hub_is_drained_and_taken_again(
    one_server: Lab, servers: list[Process]
) -> None:
    lab = one_server
    with _left(lab, _undrain) as come_back, Download(lab, 20_000_000) as download:
        download.goes_on(RATE, GOES_ON_S)
        _drain(lab)
        watch.wait_for(lab, SITE, "the cloud serves it", watch.carried(SHARED, peer="cloud"), MOVE_S)
        download.goes_on(AWAY_BYTES, GOES_ON_S + AWAY_BYTES / RATE)
        come_back()
        watch.wait_for(lab, SITE, "the centre serves it", watch.carried(SHARED, peer="centre"), MOVE_S)
        download.goes_on(RATE, GOES_ON_S)
        _hurry(servers)
        assert download.end(60) == (0, f"got {download.size} over 1\n")


def test_that_a_download_goes_on_when_its_hub_dies(one_server: Lab, servers: list[Process]) -> None:
    lab = one_server
    with _left(lab, _reappear) as come_back, Download(lab, 8_000_000) as download:
        download.goes_on(RATE, GOES_ON_S)
        _vanish(lab)
        watch.wait_for(lab, SITE, "the cloud serves it", watch.carried(SHARED, peer="cloud"), MOVE_S)
        download.goes_on(AWAY_BYTES, GOES_ON_S + AWAY_BYTES / RATE)
        _hurry(servers)
        assert download.end(60) == (0, f"got {download.size} over 1\n")
        come_back()


@pytest.mark.parametrize("how", ["drained", "dead"])
def test_that_a_download_from_a_server_of_its_own_is_closed_and_can_be_begun_anew(served: Lab, how: str) -> None:
    leave, undo = (_drain, _undrain) if how == "drained" else (_vanish, _reappear)
    with _left(served, undo), Download(served, 20_000_000) as download:
        download.goes_on(RATE, GOES_ON_S)
        leave(served)
        status, words = download.end(GOES_ON_S)
        assert status == 56, f"a silence that nobody ends, or another end: {status} {words}"
        assert re.search(r"reset by peer", words, re.IGNORECASE), words
        with Download(served, 1_000_000) as anew:
            assert anew.end(GOES_ON_S) == (0, f"got {anew.size} over 1\n")
        assert watch.carried(SHARED, peer="cloud")(watch.status(served, SITE))


Act = Callable[[Lab], None]


@contextlib.contextmanager
def _left(lab: Lab, undo: Act) -> Iterator[Callable[[], None]]:
    """Whoever leaves the centre comes back to it: by what this gives, or at the end."""
    back: list[bool] = []

    def come_back() -> None:
        back.append(True)
        undo(lab)

    try:
        yield come_back
    finally:
        if not back:
            undo(lab)


def _hurry(servers: list[Process]) -> None:
    """What is left only has to come, all of it."""
    for server in servers:
        server.signal(signal.SIGUSR1)


def _drain(lab: Lab) -> None:
    _tell(lab, "drain")


def _undrain(lab: Lab) -> None:
    _tell(lab, "undrain")


def _vanish(lab: Lab) -> None:
    lab.site("centre").vanish()


def _reappear(lab: Lab) -> None:
    lab.site("centre").reappear()


def _tell(lab: Lab, command: str) -> None:
    config = str(lab.site("centre").inside / "agent.yaml")
    lab.site("centre").run(sys.executable, "-m", "cpe_agent", command, "--config", config)


def _sysctl(lab: Lab, host: str, name: str, value: str) -> None:
    lab.run(host, "sysctl", "-qw", f"{name}={value}")
