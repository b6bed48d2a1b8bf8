"""The control socket: who may ask, what comes back, and that nobody can hold the agent up."""

from __future__ import annotations

import functools
import socket
import stat
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from cpe_agent.edge.control import CONNECTIONS_MAX, EXCHANGE_S, REQUEST_MAX_BYTES, ask, serve_control
from cpe_agent.ports import EdgeError

NOBODY = 65534
ASK_STATUS = b'{"command":"status"}\n'

# Who is refused is not read from, so sending may fail; the refusal is there to be received all the same.
STRANGER = """
import contextlib, socket
asker = socket.socket(socket.AF_UNIX)
asker.connect("control.sock")
with contextlib.suppress(BrokenPipeError):
    asker.sendall(b'{"command":"status"}\\n')
print(asker.recv(4096).decode(), end="")
"""


async def answer(command: str) -> bytes:
    if command == "status":
        return b'{"site":"van-1"}'
    if command == "long":
        return b'"' + b"x" * 8_000_000 + b'"'
    if command == "broken":
        raise EdgeError("charon", "list-sas", "charon does not answer")
    raise ValueError(f"unknown command {command!r}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "control.sock"


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, path, answer)
        yield
        nursery.cancel_scope.cancel()


async def asked(path: Path, command: str) -> bytes:
    return await trio.to_thread.run_sync(ask, path, command)


async def exchange(path: Path, request: bytes) -> bytes:
    async with await trio.open_unix_socket(str(path)) as stream:
        await stream.send_all(request)
        await stream.send_eof()
        return b"".join([chunk async for chunk in stream])


class TestAnswers:
    async def test_the_answer_comes_back_as_it_was_given(self, path: Path) -> None:
        async with serving(path):
            assert await asked(path, "status") == b'{"site":"van-1"}'

    async def test_a_long_answer_comes_whole(self, path: Path) -> None:
        async with serving(path):
            assert len(await asked(path, "long")) == 8_000_002

    @pytest.mark.parametrize(
        ("command", "words"), [("broken", "charon does not answer"), ("reboot", "unknown command 'reboot'")]
    )
    async def test_a_refusal_comes_in_words(self, path: Path, command: str, words: str) -> None:
        async with serving(path):
            with pytest.raises(EdgeError, match=words) as caught:
                await asked(path, command)
            assert (caught.value.target, caught.value.op, caught.value.cause) == ("control", command, words)

    @pytest.mark.parametrize(
        "request_", [b"", b"\n", b"status\n", b'{"command":1}\n', b'{"command":"status","force":true}\n', b"\xff\n"]
    )
    async def test_what_is_no_request_is_told_so(self, path: Path, request_: bytes) -> None:
        async with serving(path):
            error = msgspec.json.decode(await exchange(path, request_))["error"]
            assert error.startswith("that is no request: ")

    @given(request=st.binary(max_size=200).filter(lambda request: b"\n" not in request))
    @settings(max_examples=25, deadline=None)
    def test_any_line_gets_one_line_and_the_next_one_is_served(
        self, tmp_path_factory: pytest.TempPathFactory, request: bytes
    ) -> None:
        path = tmp_path_factory.mktemp("run") / "control.sock"

        async def script() -> None:
            async with serving(path):
                said = await exchange(path, request + b"\n")
                assert said.count(b"\n") == 1
                assert said.endswith(b"\n")
                msgspec.json.decode(said)
                assert await exchange(path, ASK_STATUS) == b'{"answer":{"site":"van-1"}}\n'

        trio.run(script)


class TestPlace:
    async def test_modes_and_the_end(self, path: Path) -> None:
        place = trio.Path(path)
        async with serving(path):
            assert stat.S_IMODE((await place.parent.stat()).st_mode) == 0o750
            assert stat.S_IMODE((await place.stat()).st_mode) == 0o660
        assert not await place.exists()

    async def test_a_dead_agents_socket_is_replaced(self, path: Path) -> None:
        path.parent.mkdir()
        path.with_suffix(".lock").touch()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        async with serving(path):
            assert await asked(path, "status") == b'{"site":"van-1"}'

    async def test_a_living_agent_is_left_alone(self, path: Path) -> None:
        async with serving(path):
            with pytest.raises(EdgeError, match="another agent is running"):
                await serve_control(path, answer)
            assert await asked(path, "status") == b'{"site":"van-1"}'

    async def test_the_place_is_free_again_after_the_end(self, path: Path) -> None:
        for _ in range(2):
            async with serving(path):
                assert await asked(path, "status") == b'{"site":"van-1"}'

    async def test_a_file_that_is_no_socket_is_not_removed(self, path: Path) -> None:
        path.parent.mkdir()
        await trio.Path(path).write_text("somebody's")
        with pytest.raises(EdgeError, match="is not a socket"):
            await serve_control(path, answer)
        assert await trio.Path(path).read_text() == "somebody's"

    async def test_a_directory_that_everybody_can_write_is_refused(self, path: Path) -> None:
        path.parent.mkdir()
        path.parent.chmod(0o777)
        with pytest.raises(EdgeError, match="every user"):
            await serve_control(path, answer)

    async def test_a_path_too_long_for_a_socket_is_an_error_in_words(self, tmp_path: Path) -> None:
        path = tmp_path / ("x" * 120) / "control.sock"
        with pytest.raises(EdgeError, match="too long"):
            await serve_control(path, answer)
        with pytest.raises(EdgeError, match="too long"):
            ask(path, "status")


class TestCredentials:
    """Directory and socket are opened for all, so that the kernel's word is the only check left."""

    @pytest.fixture
    async def opened(self, path: Path) -> AsyncIterator[Path]:
        async with serving(path):
            path.parent.chmod(0o755)
            await trio.Path(path).chmod(0o666)
            yield path

    async def ask_as_nobody(self, path: Path, group: int, extra_groups: list[int]) -> dict[str, object]:
        run = functools.partial(subprocess.run, capture_output=True, check=True, timeout=20, user=NOBODY, group=group)
        # Not this process' interpreter: a stranger may not be able to reach it.
        command = ["/usr/bin/python3", "-c", STRANGER]
        done = await trio.to_thread.run_sync(lambda: run(command, cwd=path.parent, extra_groups=extra_groups))
        found: dict[str, object] = msgspec.json.decode(done.stdout)
        return found

    async def test_a_stranger_is_refused(self, opened: Path) -> None:
        said = await self.ask_as_nobody(opened, NOBODY, [])
        assert said == {"error": "user 65534 may not ask: be root or in group root"}

    async def test_the_sockets_group_may_ask(self, opened: Path) -> None:
        # This process is root, so the socket's group is root's.
        assert await self.ask_as_nobody(opened, 0, []) == {"answer": {"site": "van-1"}}

    async def test_membership_beside_other_groups_counts(self, opened: Path) -> None:
        assert await self.ask_as_nobody(opened, NOBODY, [4, 0]) == {"answer": {"site": "van-1"}}

    async def test_other_groups_do_not_count(self, opened: Path) -> None:
        assert "error" in await self.ask_as_nobody(opened, NOBODY, [4, 5])


class TestBounds:
    async def test_a_request_without_end_is_cut_off(self, path: Path) -> None:
        async with serving(path):
            said = await exchange(path, b"x" * (REQUEST_MAX_BYTES + 1))
            assert msgspec.json.decode(said) == {"error": f"a request has at most {REQUEST_MAX_BYTES} bytes"}

    async def test_a_silent_client_is_dropped(self, path: Path, autojump_clock: trio.testing.MockClock) -> None:
        async with serving(path), await trio.open_unix_socket(str(path)) as stream:
            started = trio.current_time()
            assert await stream.receive_some() == b""
            assert trio.current_time() - started == pytest.approx(EXCHANGE_S, abs=0.1)

    async def test_silent_clients_do_not_keep_others_out(
        self, path: Path, autojump_clock: trio.testing.MockClock
    ) -> None:
        async with serving(path):
            silent = [await trio.open_unix_socket(str(path)) for _ in range(CONNECTIONS_MAX)]
            await trio.testing.wait_all_tasks_blocked()
            async with await trio.open_unix_socket(str(path)) as refused:
                assert b"busy" in await refused.receive_some()
            for stream in silent:
                assert await stream.receive_some() == b""
                await stream.aclose()
            assert await exchange(path, ASK_STATUS) == b'{"answer":{"site":"van-1"}}\n'

    async def test_a_client_that_does_not_read_is_dropped(
        self, path: Path, autojump_clock: trio.testing.MockClock
    ) -> None:
        async with serving(path), await trio.open_unix_socket(str(path)) as stream:
            await stream.send_all(b'{"command":"long"}\n')
            await trio.sleep(EXCHANGE_S + 1)
            received = b"".join([chunk async for chunk in stream])
            assert 0 < len(received) < 8_000_000

    async def test_a_client_that_goes_away_leaves_the_agent_well(self, path: Path) -> None:
        async with serving(path):
            async with await trio.open_unix_socket(str(path)) as stream:
                await stream.send_all(b'{"command":"long"}\n')
            assert await asked(path, "status") == b'{"site":"van-1"}'


class TestAsker:
    def test_no_agent(self, path: Path) -> None:
        with pytest.raises(EdgeError, match="no agent is running") as caught:
            ask(path, "status")
        assert caught.value.op == "connect"

    def test_a_dead_agents_socket(self, tmp_path: Path) -> None:
        path = tmp_path / "control.sock"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        with pytest.raises(EdgeError, match="no agent is running") as caught:
            ask(path, "status")
        assert caught.value.op == "connect"

    def test_an_agent_that_hangs(self, tmp_path: Path) -> None:
        path = tmp_path / "control.sock"
        with socket.socket(socket.AF_UNIX) as hung:
            hung.bind(str(path))
            hung.listen()
            with pytest.raises(EdgeError, match=r"did not answer within 0\.05 s"):
                ask(path, "status", timeout_s=0.05)

    async def test_an_answer_cut_short(self, tmp_path: Path) -> None:
        path = tmp_path / "control.sock"
        with socket.socket(socket.AF_UNIX) as dying:
            dying.bind(str(path))
            dying.listen()

            def die() -> None:
                connection, _ = dying.accept()
                with connection:
                    connection.recv(100)
                    connection.sendall(b'{"answer":{"site"')

            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, die)
                with pytest.raises(EdgeError, match="went away before it had answered"):
                    await asked(path, "status")
