"""The contract of a `ServicePort`, kept by the fake and by a real datagram socket; and what the environment says."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cpe_agent.edge.systemd import ServiceSocket
from cpe_agent.ports import EdgeError, ServicePort
from tests.fakes.service import FakeService

Heard = Callable[[], list[tuple[str, ...]]]


def _listen(address: str) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.bind(address)
    listening.setblocking(False)
    return listening


def _all_of(listening: socket.socket) -> list[tuple[str, ...]]:
    found = []
    while True:
        try:
            found.append(tuple(listening.recv(4096).decode().split("\n")))
        except BlockingIOError:
            return found


@pytest.fixture(params=["fake", "path", "abstract"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[ServicePort, Heard]]:
    if request.param == "fake":
        fake = FakeService(45.0)
        yield fake, lambda: fake.heard
        return
    name = str(tmp_path / "notify") if request.param == "path" else f"@cpe-agent-test-{secrets.token_hex(8)}"
    environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "45000000", "WATCHDOG_PID": str(os.getpid())}
    with _listen(name.replace("@", "\0", 1)) as listening:
        port = ServiceSocket(environment)
        yield port, lambda: _all_of(listening)
        port.close()


def test_that_each_message_arrives_whole_and_in_order(service: tuple[ServicePort, Heard]) -> None:
    port, heard = service
    port.tell(("READY=1", "STATUS=van-1: all is well"))
    port.tell(("WATCHDOG=1",))
    assert heard() == [("READY=1", "STATUS=van-1: all is well"), ("WATCHDOG=1",)]
    assert port.watchdog_s == 45.0


@pytest.mark.parametrize("path", ["", "relative/notify", "@"])
def test_that_without_a_service_manager_nothing_is_an_error(path: str) -> None:
    port = ServiceSocket({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "45000000"})
    port.tell(("READY=1",))
    assert port.watchdog_s is None
    port.close()


def test_that_one_that_has_gone_is_told_of(tmp_path: Path) -> None:
    port = ServiceSocket({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    with pytest.raises(EdgeError, match="systemd: notify"):
        port.tell(("READY=1",))
    with _listen(str(tmp_path / "nobody")) as listening:
        port.tell(("READY=1",))
        assert _all_of(listening) == [("READY=1",)]
    port.close()


def test_that_one_that_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    with _listen(str(tmp_path / "busy")):
        port = ServiceSocket({"NOTIFY_SOCKET": str(tmp_path / "busy")})
        with pytest.raises(EdgeError, match="systemd: notify"):
            for _ in range(100_000):
                port.tell(("WATCHDOG=1",))
        port.close()


@pytest.mark.parametrize(
    ("usec", "pid", "expected"),
    [
        ("45000000", "own", 45.0),
        ("45000000", None, 45.0),
        ("45000000", "1", None),
        ("0", None, None),
        ("never", None, None),
        (None, None, None),
    ],
)
def test_whose_watchdog_it_is(usec: str | None, pid: str | None, expected: float | None) -> None:
    # Not among the parameters: each of pytest's workers has its own.
    pid = str(os.getpid()) if pid == "own" else pid
    said = {"NOTIFY_SOCKET": "/run/systemd/notify", "WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}
    port = ServiceSocket({name: value for name, value in said.items() if value is not None})
    assert port.watchdog_s == expected
