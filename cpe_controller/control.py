"""How does somebody on this machine give the running controller a command?

One UNIX stream socket. In: one line, a `Command` as JSON. Out: one line, `{"answer": ...}` or `{"error": words, "exit":
code}`; then the controller closes. Who may ask is for the socket's group to say: root, the controller's own user and
the members of the group. The kernel says who asks, and so does the audit log.

A command runs in a thread with the store opened anew, as it would in a process of its own: held streams never wait.
"""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
import socket
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from cpe_controller.commands import Answer, Command
from cpe_controller.commands.answering import FAILURES, exit_code, run
from cpe_controller.files import SetupError

SOCKET_MODE = 0o660
# A network.yaml of 10,000 sites is about 2 MB, a signed change of all of them about 10.
REQUEST_MAX_BYTES = 64 * 1024 * 1024
# To say what is wanted, and to take the answer. What a command itself takes has no bound: it is the operator's to end.
EXCHANGE_S = 30.0
BACKLOG = 16

# Not in Python's socket module.
SO_PEERGROUPS = 59
GROUPS_MAX = 256
PEER_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid


class _Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    answer: Answer | None = None
    error: str = ""
    exit: int = 1


class Control:
    """The controller's end. Made before it serves, so that what is wrong with the place is said at once."""

    def __init__(self, path: Path, state_dir: Path, group: str | None) -> None:
        self._path = path
        self._state_dir = state_dir
        self._listener, self._group = _listening(path, group)
        # Commands write; two at once would only be in each other's way.
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """Until cancelled; the socket goes then."""
        server = await asyncio.start_unix_server(self._exchange, sock=self._listener, limit=REQUEST_MAX_BYTES)
        try:
            async with server:
                await server.serve_forever()
        finally:
            self._path.unlink(missing_ok=True)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, TimeoutError):
                reply = await self._reply(reader, writer.get_extra_info("socket"))
                writer.write(msgspec.json.encode(reply) + b"\n")
                async with asyncio.timeout(EXCHANGE_S):
                    await writer.drain()
        finally:
            writer.close()

    async def _reply(self, reader: asyncio.StreamReader, connection: socket.socket) -> _Reply:
        uid, refusal = _asker(connection, self._group)
        if refusal:
            return _Reply(error=refusal)
        try:
            async with asyncio.timeout(EXCHANGE_S):
                line = await reader.readuntil(b"\n")
            command = msgspec.json.decode(line, type=Command)
        except (asyncio.LimitOverrunError, asyncio.IncompleteReadError):
            return _Reply(error="that is no command: it has no end")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return _Reply(error=f"that is no command of this version: {error}")
        async with self._turn:
            try:
                return _Reply(await asyncio.to_thread(run, self._state_dir, command, user_name(uid)))
            except FAILURES as error:
                return _Reply(error=str(error), exit=exit_code(error))


class Refusal(Exception):
    """The running controller did not do it; `exit` is the code to end with."""

    def __init__(self, words: str, exit: int) -> None:
        super().__init__(words)
        self.exit = exit


def ask(path: Path, command: Command) -> Answer | None:
    """What the running controller answers; None if none is running. Raises Refusal."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asker:
        try:
            asker.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except PermissionError:
            raise Refusal(
                f"{path} cannot be asked by this user: run this as root, or be in the controller's group", 1
            ) from None
        except OSError as error:
            raise Refusal(f"{path} cannot be used: {error.strerror or error}", 1) from None
        # A controller that refuses does not read first: its words are waiting all the same.
        with suppress(BrokenPipeError, ConnectionResetError):
            asker.sendall(msgspec.json.encode(command) + b"\n")
        received = bytearray()
        with suppress(ConnectionResetError):
            while chunk := asker.recv(65536):
                received += chunk
    try:
        reply = msgspec.json.decode(received, type=_Reply)
    except msgspec.MsgspecError:
        raise Refusal("the controller went away before it had answered; ask again, and see its journal", 1) from None
    if reply.answer is None:
        raise Refusal(reply.error, reply.exit)
    return reply.answer


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _listening(path: Path, group: str | None) -> tuple[socket.socket, int]:
    """The socket, and the group that may use it."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise SetupError(f"{path} is not a socket, and not ours to remove")
            if _alive(path):
                raise SetupError(f"another controller is running: it answers at {path}")
            path.unlink()
        listener.bind(str(path))
        # Before listen(): until then nobody can connect, whatever the umask has allowed.
        if group is not None:
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
        path.chmod(SOCKET_MODE)
        listener.listen(BACKLOG)
        listener.setblocking(False)
        return listener, path.stat().st_gid
    except KeyError:
        listener.close()
        raise SetupError(f"there is no group {group!r} on this machine") from None
    except OSError as error:
        listener.close()
        raise SetupError(f"{path} cannot be used: {error.strerror or error}") from error
    except SetupError:
        listener.close()
        raise


def _alive(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asker:
        try:
            asker.connect(str(path))
        except ConnectionRefusedError:
            return False
        return True


def _asker(connection: Any, group: int) -> tuple[int, str]:
    """(uid, why it may not ask: "" if it may), as the kernel noted the peer when it connected."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER_CREDENTIALS.size)
    _, uid, gid = PEER_CREDENTIALS.unpack(credentials)
    if uid in (0, os.geteuid()) or gid == group:
        return uid, ""
    with suppress(OSError):
        groups = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * GROUPS_MAX)
        if (group,) in struct.iter_unpack("I", groups):
            return uid, ""
    return uid, f"{user_name(uid)} may not ask: be root or in the group {_group_name(group)}"


def _group_name(group: int) -> str:
    try:
        return grp.getgrgid(group).gr_name
    except KeyError:
        return str(group)
