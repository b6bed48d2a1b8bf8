"""Which kernel does the guest boot, and with which modules and first file system?

Debian's own cloud kernel, which `packaging/bootstrap.sh guest` has downloaded into build/guest; unpacked, never
installed. Made there once for each kernel and for each change of the scripts here, without a network; five seconds and
190 MB.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.lab.container import REPOSITORY

CACHE = REPOSITORY / "build" / "guest"
BUSYBOX = "/bin/busybox"
# What is needed to see the first file of this machine; everything else is loaded from there.
BOOT_MODULES = ("virtio_pci", "virtio_console", "virtiofs", "overlay", "qemu_fw_cfg", "virtio_rng")

_HERE = Path(__file__).parent
# Offsets in a bzImage (boot protocol 2.08): sectors of set-up code, and where the compressed kernel lies behind them.
_SETUP_SECTORS, _PAYLOAD = 0x1F1, 0x248
_SECTOR_BYTES = 512
_LZ4_MAGIC = b"\x02\x21\x4c\x18"
_ELF_MAGIC = b"\x7fELF"


class ImageError(Exception):
    """There is nothing to boot; the words say why."""


@dataclass(frozen=True)
class Image:
    """`modules` is the /lib/modules/VERSION of `kernel`, as a directory of this machine."""

    kernel: Path
    first: Path  # an initramfs
    modules: Path


def image() -> Image:
    """The image of the kernel that was downloaded; made if it is not there yet. Raises `ImageError`."""
    packages = sorted(CACHE.glob("linux-image-*.deb"), key=lambda path: path.stat().st_mtime_ns)
    if not packages:
        raise ImageError(f"there is no kernel in {CACHE}: make guest-bootstrap downloads one")
    package = packages[-1]
    here = CACHE / package.stem
    scripts = b"".join(path.read_bytes() for path in (_HERE / "first.sh", _HERE / "image.py"))
    found = Image(here / "vmlinux", here / f"first-{hashlib.sha256(scripts).hexdigest()[:12]}.cpio", here / "modules")
    if found.first.exists():
        return found
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not found.modules.exists():
            print(f"guest: unpacking {package.name} (once, a few seconds)", flush=True)
            _unpack(package, here)
        if not found.first.exists():
            _make_first(found)
    return found


def _unpack(package: Path, to: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        work = Path(directory)
        _run("dpkg", "-x", str(package), str(work / "tree"))
        (kernel,) = (work / "tree" / "boot").glob("vmlinuz-*")
        version = kernel.name.removeprefix("vmlinuz-")
        # Which of the two has them depends on the release, of the kernel as of depmod.
        if not (work / "tree" / "lib").exists():
            (work / "tree" / "lib").symlink_to("usr/lib")
        _run("depmod", "-b", str(work / "tree"), version)
        made = work / "made"
        made.mkdir()
        (made / "vmlinux").write_bytes(_uncompressed(kernel.read_bytes()))
        shutil.move(work / "tree" / "lib" / "modules" / version, made / "modules")
        shutil.rmtree(to, ignore_errors=True)
        made.rename(to)


def _uncompressed(image: bytes) -> bytes:
    """The ELF kernel out of a bzImage: booted so, it needs neither to unpack nor to place itself, which is slow when
    emulated."""
    start, length = struct.unpack_from("<II", image, _PAYLOAD)
    payload = image[((image[_SETUP_SECTORS] or 4) + 1) * _SECTOR_BYTES + start :][:length]
    if not payload.startswith(_LZ4_MAGIC):
        raise ImageError("the kernel is not packed with lz4, as Debian's cloud kernel is")
    # The last four bytes are the unpacked size, which lz4 takes for rubbish.
    unpacked = subprocess.run(["lz4", "-dc"], input=payload, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    if not unpacked.startswith(_ELF_MAGIC):
        raise ImageError("what was unpacked of the kernel is no ELF file")
    return unpacked


def _make_first(image: Image) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        root = Path(directory)
        for name in ("bin", "proc", "sys", "dev", "lower", "upper", "new", "modules"):
            (root / name).mkdir()
        shutil.copy(BUSYBOX, root / "bin" / "busybox")
        shutil.copy(_HERE / "first.sh", root / "init")
        os.chmod(root / "init", 0o755)
        order = []
        for module in _in_order(image.modules):
            if module.name not in order:
                shutil.copy(module, root / "modules")
                order.append(module.name)
        (root / "modules" / "order").write_text("".join(f"{name}\n" for name in order))
        names = "".join(f"{path.relative_to(root)}\n" for path in sorted(root.rglob("*")))
        made = image.first.with_suffix(".new")
        with open(made, "wb") as file:
            subprocess.run(
                [BUSYBOX, "cpio", "-o", "-H", "newc"],
                input=names.encode(),
                stdout=file,
                stderr=subprocess.DEVNULL,
                cwd=root,
                check=True,
            )
        made.rename(image.first)


def _in_order(modules: Path) -> Iterator[Path]:
    """The modules that boot needs, each after what it depends on; one that is built in has no file."""
    for line in (modules / "modules.dep").read_text().splitlines():
        name, _, needs = line.partition(":")
        if Path(name).name.partition(".")[0] in BOOT_MODULES:
            for each in [*reversed(needs.split()), name]:
                yield modules / each


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        raise ImageError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()}")
