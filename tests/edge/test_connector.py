"""Is a service told from a machine without one, and from silence?"""

from __future__ import annotations

import errno
import socket

import pytest
import trio
import trio.testing

from cpe_agent.edge.connector import TcpConnector


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_that_a_listener_is_a_yes_and_nobody_a_no(address: str) -> None:
    family = socket.AF_INET if "." in address else socket.AF_INET6
    with socket.socket(family) as listener:
        listener.bind((address, 0))
        port = listener.getsockname()[1]
        assert not await TcpConnector().connects(address, address, port, 1.0), "it does not listen yet"
        listener.listen()
        assert await TcpConnector().connects(address, address, port, 1.0)
        accepted, peer = listener.accept()
        accepted.close()
        assert peer[0] == address


async def test_that_silence_is_a_no_in_time(autojump_clock: trio.testing.MockClock) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        # A full backlog answers nothing.
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        began = trio.current_time()
        assert not await TcpConnector().connects("127.0.0.1", "127.0.0.1", port, 0.3)
        assert trio.current_time() - began == pytest.approx(0.3)
        for one in waiting:
            one.close()


async def test_that_an_address_that_is_not_ours_is_a_no() -> None:
    assert not await TcpConnector().connects("192.0.2.77", "127.0.0.1", 80, 0.3)


async def test_that_a_kernel_without_ipv6_is_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr(trio.socket, "socket", refused)
    assert not await TcpConnector().connects("fd00::1", "fd00::2", 443, 1.0)
