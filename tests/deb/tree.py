"""A clean Debian as a directory, with or without our package, and how commands run in it.

The clean tree is made once by mmdebstrap, from the Debian that this machine's own apt uses, and kept in build/clean.
`installed` is what `apt install ./cpe-agent_*.deb` makes of it, kept until the package is another one.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from tests.lab.container import REPOSITORY

PACKAGES = REPOSITORY / "build" / "deb"
CACHE = REPOSITORY / "build" / "clean"
RELEASE, CODENAME = "12", "bookworm"
# What a router's Debian has beside the bare minimum, and what looks into it here.
INCLUDED = "systemd-sysv,udev,dbus,iproute2,iputils-ping,procps,ca-certificates,netbase"
SOURCES = Path("/etc/apt/sources.list.d/debian.sources")
NEXT = "+next"

_MAKE_S = 900.0


def package(name: str = "cpe-agent", following: bool = False) -> Path:
    """The package as built; `following`: its next version. Built if it is not there or older than its sources."""
    directory = PACKAGES / "next" if following else PACKAGES
    pattern = f"{name}_*+deb{RELEASE}{NEXT if following else ''}_amd64.deb"
    changed = max(path.stat().st_mtime for path in _sources())
    for old in directory.glob(pattern):
        if old.stat().st_mtime < changed:
            old.unlink()
    if not list(directory.glob(pattern)):
        build(directory, f"{RELEASE}-amd64", following=following)
    (found,) = directory.glob(pattern)
    return found


def _sources() -> list[Path]:
    """What packaging/deb.sh takes; a file that went leaves a younger directory."""
    found = [REPOSITORY / name for name in ("README.md", "CHANGELOG.md", "LICENSE")]
    for name in ("cpe_agent", "cpe_controller", "configs", "docs", "packaging", "systemd"):
        found += [path for path in (REPOSITORY / name).rglob("*") if "__pycache__" not in path.parts]
    return found


def build(out: Path, *targets: str, following: bool = False) -> None:
    """Build into `out` with packaging/deb.sh."""
    out.mkdir(parents=True, exist_ok=True)
    variables = {"CPE_DEB_OUT": str(out)} | ({"CPE_DEB_NEXT": NEXT} if following else {})
    words = [f"{name}={value}" for name, value in variables.items()]
    run("env", *words, str(REPOSITORY / "packaging" / "deb.sh"), *targets)


def clean() -> Path:
    """A tar file of a clean Debian."""
    made = CACHE / f"{RELEASE}.tar"
    if not made.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        sources = [str(SOURCES)] if SOURCES.exists() else []
        beside = made.with_suffix(".new.tar")
        run("mmdebstrap", "--mode=root", "--variant=minbase", f"--include={INCLUDED}", CODENAME, str(beside), *sources)
        beside.rename(made)
    return made


def unpack(tar: Path, tree: Path) -> None:
    tree.mkdir(parents=True)
    run("tar", "-C", str(tree), "-xf", str(tar))


def installed() -> Path:
    """A directory with a clean Debian in which `apt install ./cpe-agent_*.deb` was typed; not to be changed."""
    deb = package()
    tree = CACHE / f"installed-{hashlib.sha256(deb.read_bytes()).hexdigest()[:16]}"
    if not tree.exists():
        for old in CACHE.glob("installed-*"):
            shutil.rmtree(old)
        beside = CACHE / "installing"
        shutil.rmtree(beside, ignore_errors=True)
        unpack(clean(), beside)
        shutil.copy(deb, beside / "root")
        (beside / "root" / "installed.log").write_text(
            inside(beside, f"apt-get -q -o APT::Update::Error-Mode=any update && apt-get -qy install ./{deb.name}")
        )
        beside.rename(tree)
    return tree


def inside(tree: Path, command: str, *, network: bool = True, check: bool = True) -> str:
    """A shell command as root in the tree, with /proc and /sys of its own; its output. Without `network`: in a network
    namespace where nothing is."""
    mounts = "mount -t proc proc /proc && mount -t sysfs sys /sys"
    script = f"export DEBIAN_FRONTEND=noninteractive; {mounts} && cd /root && {{ {command}; }} 2>&1"
    spaces = ["--mount", "--pid", "--uts", "--fork", *([] if network else ["--net"])]
    return run("unshare", *spaces, "chroot", str(tree), "/bin/bash", "-c", script, check=check)


def run(*argv: str, check: bool = True) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_MAKE_S, cwd=REPOSITORY)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(argv)}: {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout
