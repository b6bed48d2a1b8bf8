"""How does somebody on this machine ask the running agent a question?

One UNIX stream socket. In: one line, `{"command":"status"}`. Out: one line, `{"answer":...}` with whatever JSON the
agent gives, or `{"error":"in words"}`; then the agent closes. `serve_control` is the agent's end, `ask` the asker's.

Two checks, each enough alone: the modes of directory and socket, and the kernel's word about who connected. Nobody can
hold the agent up: requests and connections are few and small, and each exchange has an end in time.
"""

from __future__ import annotations

import fcntl
import grp
import os
import socket
import stat
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import trio

from cpe_agent.ports import EdgeError

DIRECTORY_MODE = 0o750
SOCKET_MODE = 0o660

# A command is a word. What is longer is a mistake or an attack.
REQUEST_MAX_BYTES = 4096
# A hub's status with 10,000 branches and pairs is about 5 MB.
ANSWER_MAX_BYTES = 64 * 1024 * 1024
# From connect to close, the answer's making included: longer than any asker waits.
EXCHANGE_S = 10.0
# People and a few scripts. A seventeenth is told to come back.
CONNECTIONS_MAX = 16
BACKLOG = 16

# Not in Python's socket module; the number is the same on every architecture that Debian has routers for.
SO_PEERGROUPS = 59
# As many as getsockopt() has room for in Python. A user in more groups than that is refused.
GROUPS_MAX = 256
PEER_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid


class _Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    command: str


class _Refusal(msgspec.Struct, frozen=True):
    error: str


async def serve_control(
    path: Path,
    answer: Callable[[str], Awaitable[bytes]],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer at `path` until cancelled. `answer(command)` returns JSON. Its `EdgeError`, and the ValueError that it
    raises for a command that it does not know, are told to the asker.

    Raises `EdgeError` if another agent is alive there (it holds a lock beside the socket, so a dead one's leftover is
    told apart for certain and replaced), or if the place cannot be used. The socket goes when this ends.
    """
    with locked(path), _listening(path) as (listener, group):
        limiter = trio.CapacityLimiter(CONNECTIONS_MAX)

        async def serve(stream: trio.SocketStream) -> None:
            with suppress(trio.BrokenResourceError), trio.move_on_after(EXCHANGE_S):
                async with stream:
                    if refusal := _refusal(stream.socket, group):
                        await stream.send_all(_error(refusal))
                        return
                    try:
                        limiter.acquire_nowait()
                    except trio.WouldBlock:
                        await stream.send_all(_error("the agent is busy with other questions: ask again"))
                        return
                    try:
                        await stream.send_all(await _respond(stream, answer))
                    finally:
                        limiter.release()

        task_status.started()
        await trio.serve_listeners(serve, [trio.SocketListener(trio.socket.from_stdlib_socket(listener))])


def ask(path: Path, command: str, timeout_s: float = 5.0) -> bytes:
    """The agent's answer (JSON) to `command`.

    Raises `EdgeError("control", op, cause)`. `op` is "connect" when no agent runs there, "authorise" when it is not for
    this user, else `command`: no whole answer within `timeout_s`, or a refusal, whose words are `cause`.
    """
    deadline = time.monotonic() + timeout_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asker:
        try:
            asker.settimeout(timeout_s)
            _connect(asker, path)
            # An agent that refuses does not read first: its words are waiting all the same.
            with suppress(BrokenPipeError, ConnectionResetError):
                asker.sendall(msgspec.json.encode(_Request(command)) + b"\n")
            received = _receive(asker, deadline, command)
        except TimeoutError:
            raise EdgeError("control", command, f"the agent did not answer within {timeout_s:g} s") from None
    try:
        response = msgspec.json.decode(received, type=dict[str, msgspec.Raw])
        if "answer" in response:
            return bytes(response["answer"])
        cause = msgspec.json.decode(received, type=_Refusal).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        cause = "the agent went away before it had answered"
    raise EdgeError("control", command, cause)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold what an agent holds whose socket is `path`. Raises `EdgeError` if somebody holds it."""
    # A lock and not a trial connection: the dead hold none, and of two agents that start at once only one gets it.
    lock = path.with_suffix(".lock")
    try:
        path.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        if path.parent.stat().st_mode & stat.S_IWOTH:
            raise EdgeError("control", "listen", f"{path.parent} can be written by every user: chmod o-w it")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise EdgeError("control", "listen", f"{lock} cannot be made: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EdgeError("control", "listen", f"another agent is running: it holds {lock}") from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _listening(path: Path) -> Iterator[tuple[socket.socket, int]]:
    """The socket, and the group that may use it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            with suppress(FileNotFoundError):
                if not stat.S_ISSOCK(path.lstat().st_mode):
                    raise EdgeError("control", "listen", f"{path} is not a socket, and not ours to remove")
                path.unlink()
            listener.bind(str(path))
            # Before listen(): until then nobody can connect, whatever the umask has allowed.
            path.chmod(SOCKET_MODE)
            group = path.stat().st_gid
            listener.listen(BACKLOG)
        except OSError as error:
            raise EdgeError("control", "listen", f"{path} cannot be used: {error.strerror or error}") from None
        try:
            yield listener, group
        finally:
            # The lock is still held: this is our socket or nobody's.
            with suppress(OSError):
                path.unlink()


async def _respond(stream: trio.SocketStream, answer: Callable[[str], Awaitable[bytes]]) -> bytes:
    try:
        return b'{"answer":' + await answer(await _command(stream)) + b"}\n"
    except EdgeError as error:
        return _error(error.cause)
    except ValueError as error:
        return _error(str(error))


def _refusal(connection: trio.socket.SocketType, group: int) -> str:
    """Why the peer may not ask; "" if it may. As the kernel noted the peer when it connected."""
    size = PEER_CREDENTIALS.size
    _, uid, gid = PEER_CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    if uid in (0, os.geteuid()) or gid == group:
        return ""
    with suppress(OSError):
        groups = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * GROUPS_MAX)
        if (group,) in struct.iter_unpack("I", groups):
            return ""
    return f"user {uid} may not ask: be root or in group {_group_name(group)}"


def _group_name(group: int) -> str:
    try:
        return grp.getgrgid(group).gr_name
    except KeyError:
        return str(group)


async def _command(stream: trio.SocketStream) -> str:
    received = b""
    while b"\n" not in received:
        if len(received) > REQUEST_MAX_BYTES:
            raise EdgeError("control", "read", f"a request has at most {REQUEST_MAX_BYTES} bytes")
        chunk = await stream.receive_some(REQUEST_MAX_BYTES)
        if not chunk:
            break
        received += chunk
    line = received.partition(b"\n")[0]
    try:
        return msgspec.json.decode(line, type=_Request).command
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise EdgeError("control", "read", f"that is no request: {error}") from None


def _error(words: str) -> bytes:
    return msgspec.json.encode(_Refusal(words)) + b"\n"


def _connect(asker: socket.socket, path: Path) -> None:
    try:
        asker.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        raise EdgeError("control", "connect", f"no agent is running: nobody answers at {path}") from None
    except PermissionError:
        raise EdgeError("control", "authorise", f"{path} is not for this user: be root or in its group") from None
    except BlockingIOError:
        raise EdgeError("control", "ask", "the agent is busy with other questions: ask again") from None
    except TimeoutError:
        raise
    except OSError as error:
        raise EdgeError("control", "connect", f"{path} cannot be used: {error.strerror or error}") from None


def _receive(asker: socket.socket, deadline: float, command: str) -> bytes:
    received = bytearray()
    while True:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        asker.settimeout(left_s)
        try:
            chunk = asker.recv(65536)
        except ConnectionResetError:
            # How a close looks when it left something of ours unread; what was sent before it has been received.
            return bytes(received)
        if not chunk:
            return bytes(received)
        received += chunk
        if len(received) > ANSWER_MAX_BYTES:
            raise EdgeError("control", command, f"the answer is longer than {ANSWER_MAX_BYTES} bytes")
