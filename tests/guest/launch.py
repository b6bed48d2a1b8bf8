"""How is one command run in a guest, so that its output and status are had and nothing is left of it?

The guest sees this machine's files, read-only, under a layer in its own memory; build/ alone is shared for writing.
Everything that belongs to a guest is a child of this process and dies with it, also by kill -9: the emulator, and the
two or three file servers, which end besides when the emulator does. No file is written for a guest but what its
command writes into build/: what it is asked and what it answers goes through memory and pipes.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.guest.image import Image
from tests.lab.container import REPOSITORY

RESULTS = REPOSITORY / "build"
TIMED_OUT, DIED = 124, 125
# Variables of ours that a command in the guest has too.
PASSED_ON = ("CPE_", "PYTEST_", "BENCH", "SEED", "FAULTS", "NETWORKS", "BRANCHES")
# How much slower than this machine the guest is.
PACE = 8

_HERE = Path(__file__).parent
_PREFIX = "cpe-guest-"
_SERVERS = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")
_SERVER_START_S = 20.0
_PR_SET_PDEATHSIG = 1
# A clock is calibrated against another one, which is late here: the processor's own is taken as it is.
_BOOT = (
    "console=ttyS0 quiet panic=-1 reboot=t tsc=reliable random.trust_cpu=on mitigations=off"
    # Ciphers test themselves when loaded, and a random source measures jitter: seconds here, and not what is tested.
    " cryptomgr.notests module_blacklist=jitterentropy_rng"
)
_CONSOLE_LINES = 15
# Where first.sh mounts something of the guest's own.
_COVERED = ("/tmp", "/run", "/dev")


class GuestError(Exception):
    """The guest could not be started; the words say why."""


@dataclass(frozen=True)
class Share:
    """A directory of this machine in the guest, at the same path (`machine`: as its root)."""

    tag: str
    path: Path
    writable: bool


class Ended(Exception):
    """A signal asked for the end."""


def run(image: Image, command: str, *, cpus: int, memory_mib: int, limit_s: float) -> int:
    """Run the shell command in a fresh guest and copy its output to ours. Returns its status; 124 after `limit_s`, 125
    if the guest died, 130 and the like after a signal. Raises `GuestError`."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_signals_raise())
            return _run(stack, image, command, cpus, memory_mib, time.monotonic() + limit_s)
        except Ended as ended:
            return 128 + int(ended.args[0])


def _run(stack: contextlib.ExitStack, image: Image, command: str, cpus: int, memory_mib: int, deadline: float) -> int:
    RESULTS.mkdir(exist_ok=True)
    shares = [Share("machine", Path("/"), writable=False), Share("results", RESULTS, writable=True)]
    covered = any(REPOSITORY.is_relative_to(place) for place in _COVERED)
    if covered or os.stat(REPOSITORY).st_dev != os.stat("/").st_dev:
        # Only the root's own file system is shared, not what is mounted in it.
        shares.insert(1, Share("checkout", REPOSITORY, writable=False))
    _sweep()
    sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-")))
    argv = [
        "qemu-system-x86_64",
        *_machine(cpus, memory_mib),
        "-kernel",
        str(image.kernel),
        "-initrd",
        str(image.first),
    ]
    argv += ["-append", _BOOT]
    # What emulator and servers say; a server's farewell is of no interest.
    log = _memory(stack, "log")
    servers = [stack.enter_context(_server(share, sockets, log)) for share in shares]
    for share, server in zip(shares, servers, strict=True):
        socket = _socket_of(share, sockets)
        _wait_for(socket, server)
        argv += ["-chardev", f"socket,id={share.tag},path={socket}"]
        argv += ["-device", f"vhost-user-fs-pci,chardev={share.tag},tag={share.tag},queue-size=1024"]
    console, status = (_memory(stack, name) for name in ("console", "status"))
    out, err = _Pipe(stack, sys.stdout.fileno()), _Pipe(stack, sys.stderr.fileno())
    passed = [console, status, out.write, err.write]
    argv += ["-serial", f"file:/dev/fd/{console}", "-device", "virtio-serial-pci"]
    for name, file in (("out", out.write), ("err", err.write), ("status", status)):
        argv += ["-chardev", f"file,id={name},path=/dev/fd/{file},append=on"]
        argv += ["-device", f"virtserialport,chardev={name},name={name}"]
    others = "".join(f"{s.tag} {'rw' if s.writable else 'ro'} {s.path}\n" for s in shares[1:])
    asked = {"shares": others, "modules": image.modules, "second": _HERE / "second.sh", "command": _command(command)}
    for name, text in asked.items():
        file = _memory(stack, name)
        os.write(file, str(text).encode())
        passed.append(file)
        argv += ["-fw_cfg", f"name=opt/cpe/{name},file=/dev/fd/{file}"]
    emulator = stack.enter_context(_child(argv, log, passed))
    for pipe in (out, err):
        pipe.close_write()
    in_time = _copy(out, err, deadline)
    with contextlib.suppress(subprocess.TimeoutExpired):
        emulator.wait(max(0.0, deadline - time.monotonic()))
    told = _content(status).strip()
    if told:
        return int(told)
    if not in_time or emulator.poll() is None:
        print("guest: the command's time is up", file=sys.stderr)
        return TIMED_OUT
    print("guest: it ended without the command's status; its last words:", file=sys.stderr)
    for line in [*_content(log).splitlines(), *_content(console).splitlines()][-_CONSOLE_LINES:]:
        print(f"  {line}", file=sys.stderr)
    return DIED


def _sweep() -> None:
    """Sockets of launchers that kill -9 ended."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        pid = left.name.removeprefix(_PREFIX).partition("-")[0]
        if not Path("/proc", pid).exists():
            shutil.rmtree(left, ignore_errors=True)


def _machine(cpus: int, memory_mib: int) -> Sequence[str]:
    # Emulated always: /dev/kvm inside of other virtual machines starts a guest that hangs, so it is not even tried.
    return (
        "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-M", "q35,memory-backend=ram",
        "-m", str(memory_mib), "-smp", str(cpus), "-object", f"memory-backend-memfd,id=ram,size={memory_mib}M,share=on",
        "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
    )  # fmt: skip


def _command(command: str) -> str:
    """With our directory and our variables."""
    variables = {"CPE_PACE": str(PACE)}
    variables |= {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    return f"cd {shlex.quote(os.getcwd())} && {_exports(variables)}{command}"


def _exports(variables: Mapping[str, str]) -> str:
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(variables.items()))


def _socket_of(share: Share, directory: Path) -> Path:
    return directory / share.tag


@contextlib.contextmanager
def _server(share: Share, sockets: Path, log: int) -> Iterator[subprocess.Popen[bytes]]:
    """A file server on the directory alone, without what is mounted in it; what is read-only is so in its own mounts,
    where the guest has no say."""
    binary = next((path for path in _SERVERS if Path(path).exists()), None) or shutil.which("virtiofsd")
    if binary is None:
        raise GuestError("there is no virtiofsd: make guest installs what packaging/apt-packages-guest.txt lists")
    socket, source = _socket_of(share, sockets), sockets / f"{share.tag}.mounted"
    source.mkdir()
    flag = "rw" if share.writable else "ro"
    serve = [binary, f"--socket-path={socket}", "-o", f"source={source}", "-o", "sandbox=chroot", "-o", "xattr"]
    serve += ["-o", "cache=" + ("auto" if share.writable else "always"), "-o", "log_level=err"]
    bind, source_, path = "mount --bind", shlex.quote(str(source)), shlex.quote(str(share.path))
    script = f"{bind} {path} {source_} && mount -o remount,bind,{flag} {source_} && exec {shlex.join(serve)}"
    with _child(["unshare", "--mount", "--propagation", "private", "sh", "-c", script], log) as server:
        yield server


def _wait_for(socket: Path, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _SERVER_START_S
    while not socket.exists():
        if server.poll() is not None or time.monotonic() > deadline:
            raise GuestError(f"the file server {socket.name} did not start")
        time.sleep(0.01)


@contextlib.contextmanager
def _child(argv: Sequence[str], output: int, passed: Sequence[int] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """A process that dies with us, whatever ends us, and at the end of the block."""
    libc, parent = ctypes.CDLL(None), os.getpid()

    def die_with_us() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:
            os._exit(1)

    child = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=passed,
        start_new_session=True,  # Ctrl-C is for us; we then end it
        preexec_fn=die_with_us,
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """So that the first signal unwinds what was started; later ones find nothing more to end."""

    def end(number: int, _frame: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise Ended(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, end) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class _Pipe:
    """What the guest writes, on its way to one of our own files."""

    def __init__(self, stack: contextlib.ExitStack, target: int) -> None:
        self.read, self.write = os.pipe()
        self.target = target
        self._open = True
        stack.callback(os.close, self.read)
        stack.callback(self.close_write)

    def close_write(self) -> None:
        if self._open:
            self._open = False
            os.close(self.write)


def _copy(out: _Pipe, err: _Pipe, deadline: float) -> bool:
    """Until the guest has closed both; False when time was up before."""
    with selectors.DefaultSelector() as selector:
        for pipe in (out, err):
            selector.register(pipe.read, selectors.EVENT_READ, pipe)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready and time.monotonic() >= deadline:
                return False
            for key, _ in ready:
                data = os.read(key.fd, 65536)
                if data:
                    os.write(key.data.target, data)
                else:
                    selector.unregister(key.fd)
    return True


def _memory(stack: contextlib.ExitStack, name: str) -> int:
    file = os.memfd_create(name)
    # Those who share it append.
    fcntl.fcntl(file, fcntl.F_SETFL, os.O_APPEND)
    stack.callback(os.close, file)
    return file


def _content(file: int) -> str:
    return os.pread(file, 1 << 20, 0).decode(errors="replace")
