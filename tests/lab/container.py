"""How do tests start a lab's process tree, and run things inside it?

`Container` starts `init` (see there) and speaks to its control socket, which is reached through /proc like every other
file of the lab. Any thread may call; each call has a connection of its own. A call costs a few milliseconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tests.lab import init
from tests.lab.pace import patience

REPOSITORY = Path(__file__).resolve().parents[2]

_UNSHARE = ("unshare", "--pid", "--mount", "--net", "--fork", "--kill-child")
_START_S = 20.0
_END_S = 20.0  # the kernel kills everything inside at once; only a very busy machine needs seconds


class LabError(Exception):
    """The lab, or a command in it, did not do what it had to."""


@dataclass(frozen=True)
class Completed:
    """A command that has ended. `status`: its exit code, or minus the signal that ended it."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str


class Process:
    """A process inside the lab. `pid` is its process id there. Closing the object leaves the process alone."""

    def __init__(self, container: Container, connection: socket.socket, pid: int, argv: Sequence[str]) -> None:
        self.pid = pid
        self.argv = tuple(argv)
        self._container = container
        self._connection = connection
        self._status: int | None = None

    def wait(self, timeout_s: float) -> int | None:
        """Its status once it has ended; None if it still runs after `timeout_s`."""
        if self._status is None and _readable(self._connection, patience(timeout_s)):
            reply = _receive(self._connection)
            self._status = int(reply["status"])
            self._connection.close()
        return self._status

    @property
    def running(self) -> bool:
        return self.wait(0) is None

    def signal(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send it (`group`: and all it has started) a signal. One that has ended is no error."""
        if self._status is None:
            self._container.signal(self.pid, number, group=group)

    def close(self) -> None:
        self._connection.close()


class Container:
    """A lab's process tree with its own process ids, mounts and network; empty until something is built in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._unshare = subprocess.Popen(
            [*_UNSHARE, sys.executable, "-m", "tests.lab.init", "--name", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
            start_new_session=True,  # Ctrl-C is for us; we then end the lab
        )
        assert self._unshare.stdout is not None
        line = b""
        if _readable(self._unshare.stdout, patience(_START_S)):
            line = self._unshare.stdout.readline()
        if not line:
            self.close()
            raise LabError(f"lab {name}: process 1 did not start (its reason is above)")
        self.pid = int(json.loads(line)["pid"])  # of process 1, as seen from outside

    def __enter__(self) -> Container:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End everything inside. Returns when the last process has gone. May be called again."""
        assert self._unshare.stdin is not None and self._unshare.stdout is not None
        self._unshare.stdin.close()
        try:
            self._unshare.wait(patience(_END_S))
        except subprocess.TimeoutExpired:
            self._unshare.kill()
            self._unshare.wait()
        self._unshare.stdout.close()

    @property
    def running(self) -> bool:
        return self._unshare.poll() is None

    def path(self, inside: str) -> Path:
        """A file of the lab (an absolute path there), as seen from here."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def run(
        self,
        argv: Sequence[str],
        *,
        namespace: str | None = None,
        input: str = "",
        timeout_s: float = 20.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a command to its end. With `check` a status other than 0 is a LabError; so is the time-out, always."""
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(_memory_file(name)) for name in ("stdin", "stdout", "stderr")]
            files[0].write(input.encode())
            files[0].seek(0)
            process = self.spawn(argv, namespace=namespace, stdin=files[0], stdout=files[1], stderr=files[2], env=env)
            stack.callback(process.close)
            status = process.wait(timeout_s)
            if status is None:
                process.signal(signal.SIGKILL, group=True)
                process.wait(_END_S)
            texts = []
            for file in files[1:]:
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
        if status is None or (check and status != 0):
            ended = f"did not end within {timeout_s} s" if status is None else f"ended with status {status}"
            where = f" in {namespace}" if namespace else ""
            raise LabError(f"{' '.join(argv)}{where} {ended}: {(texts[1] or texts[0]).strip()}")
        return Completed(tuple(argv), status, *texts)

    def spawn(
        self,
        argv: Sequence[str],
        *,
        namespace: str | None = None,
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes],
        stderr: IO[bytes] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """Start a process in `namespace`, as the leader of its own session. The files may be closed afterwards."""
        with open(os.devnull, "rb") as nothing:
            descriptors = [(stdin or nothing).fileno(), stdout.fileno(), (stderr or stdout).fileno()]
            request = {"spawn": list(argv), "namespace": namespace, "env": dict(env or {})}
            connection = self._connect()
            socket.send_fds(connection, [json.dumps(request).encode()], descriptors)
        reply = _receive(connection)
        if "error" in reply:
            connection.close()
            raise LabError(reply["error"])
        return Process(self, connection, int(reply["pid"]), argv)

    def signal(self, pid: int, number: signal.Signals, *, group: bool = False) -> None:
        with self._connect() as connection:
            connection.send(json.dumps({"signal": int(number), "pid": pid, "group": group}).encode())
            _receive(connection)

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.connect(str(self.path(init.CONTROL)))
        except OSError as error:
            connection.close()
            raise LabError(f"lab {self.name} is not running ({error.strerror})") from None
        return connection


def wait_until(what: str, check: Callable[[], object], timeout_s: float, interval_s: float = 0.02) -> None:
    """Ask `check()` until it is true. LabError that names `what` if it is not when asked after `timeout_s`: on a
    machine that stands still the time may be over since it was asked last.

    A slow machine is asked less often: it would be busy with nothing but answers.
    """
    deadline = time.monotonic() + patience(timeout_s)
    while True:
        last = time.monotonic() > deadline
        if check():
            return
        if last:
            raise LabError(f"{what}: not within {timeout_s} s")
        time.sleep(patience(interval_s))


def listens(path: Path) -> bool:
    """Can one connect to this UNIX socket? It is there before that: who is between bind and listen refuses."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@contextlib.contextmanager
def _memory_file(name: str) -> Iterator[IO[bytes]]:
    with open(os.memfd_create(name), "r+b") as file:
        yield file


def _readable(file: Any, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def _receive(connection: socket.socket) -> dict[str, Any]:
    message = connection.recv(init.MESSAGE_BYTES)
    if not message:
        raise LabError("the lab has ended")
    reply: dict[str, Any] = json.loads(message)
    return reply
