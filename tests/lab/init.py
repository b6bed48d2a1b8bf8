"""Process 1 of a lab: owns everything in it, and takes it all along when it ends.

Started as `unshare --pid --mount --net --fork --kill-child python -m tests.lab.init --name NAME`. Process ids, mounts
and network namespaces here are the lab's own, and all its files are on a private tmpfs at /run. Standard input is a
pipe from whoever wanted the lab: when that ends, however it ended, so does this process, and then the kernel kills all
others here and frees the namespaces, mounts and files. There is nothing to sweep, and two labs cannot meet.

Theory of operation. One thread, one selector. Each connection to the control socket (SOCK_SEQPACKET, a JSON object per
message) makes one request:

    {"spawn": argv, "namespace": name or null, "env": {...}} + descriptors for 0, 1, 2  ->  {"pid"}, later {"status"}
    {"signal": number, "pid": pid, "group": bool}                                       ->  {"error": null or text}

`pid` is as seen inside, `status` as of subprocess: the exit code, or minus the signal. Orphans are reaped.
Only the standard library is used, so that a lab is there at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
from typing import Any

CONTROL = "/run/lab/control.sock"
LOGS = "/run/lab/logs"
MESSAGE_BYTES = 128 * 1024  # the kernel takes at most ~200 kB at once

_DEFAULT_SIGNALS = [signal.SIGPIPE, signal.SIGCHLD]  # Python ignores the one, and we watch the other


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)  # only so that it can be seen in the process list
    parser.parse_args()
    outer_pid = int(os.readlink("/proc/self"))  # /proc is still the outer one: our process id as our parent knows it
    _mount("-t", "proc", "proc", "/proc")
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    os.makedirs(LOGS)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    init = Init()
    print(json.dumps({"pid": outer_pid}), flush=True)
    init.serve()


class Init:
    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._waiting: dict[int, socket.socket] = {}  # child -> who wants to know its end
        self._ip = shutil.which("ip") or "/usr/sbin/ip"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(CONTROL)
        self._listener.listen(128)
        # A signal handler must exist for the wake-up descriptor to be written.
        self._woken, wake = socket.socketpair()
        self._wake = wake
        self._woken.setblocking(False)
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

    def serve(self) -> None:
        """Returns when standard input ends."""
        for file in (sys.stdin.fileno(), self._listener, self._woken):
            self._selector.register(file, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj == sys.stdin.fileno():
                    if not os.read(sys.stdin.fileno(), 4096):
                        return
                elif key.fileobj is self._listener:
                    connection, _ = self._listener.accept()
                    self._selector.register(connection, selectors.EVENT_READ)
                elif key.fileobj is self._woken:
                    with contextlib.suppress(BlockingIOError):
                        self._woken.recv(4096)
                    self._reap()
                elif isinstance(key.fileobj, socket.socket):
                    self._answer(key.fileobj)

    def _answer(self, connection: socket.socket) -> None:
        try:
            message, descriptors, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 3, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            message, descriptors = b"", []
        try:
            if not message:
                self._close(connection)
                return
            request = json.loads(message)
            if "spawn" in request:
                self._spawn(connection, request, descriptors)
            else:
                self._signal(connection, request)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _spawn(self, connection: socket.socket, request: dict[str, Any], descriptors: list[int]) -> None:
        argv = request["spawn"]
        if request["namespace"] is not None:
            argv = [self._ip, "netns", "exec", request["namespace"], *argv]
        try:
            pid = os.posix_spawnp(
                argv[0],
                argv,
                os.environ | request["env"],
                file_actions=[(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(descriptors)],
                setsid=True,
                setsigdef=_DEFAULT_SIGNALS,
            )
        except OSError as error:
            _send(connection, {"error": f"{argv[0]}: {error.strerror}"})
            return
        self._waiting[pid] = connection
        _send(connection, {"pid": pid})

    def _signal(self, connection: socket.socket, request: dict[str, Any]) -> None:
        try:
            (os.killpg if request["group"] else os.kill)(request["pid"], request["signal"])
            _send(connection, {"error": None})
        except OSError as error:
            _send(connection, {"error": error.strerror})

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                connection = self._waiting.pop(pid, None)
                if connection is not None:
                    _send(connection, {"status": os.waitstatus_to_exitcode(status)})

    def _close(self, connection: socket.socket) -> None:
        """The client has gone. What it started goes on."""
        self._selector.unregister(connection)
        for pid in [pid for pid, waiting in self._waiting.items() if waiting is connection]:
            del self._waiting[pid]
        connection.close()


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a client that has gone is noticed by reading
        connection.send(json.dumps(message).encode(), socket.MSG_DONTWAIT)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


if __name__ == "__main__":
    main()
