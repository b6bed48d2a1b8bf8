"""A clean Debian as a directory, with or without one of our packages, and how commands run in it.

The clean tree is made once by mmdebstrap, from the archive that this machine's own apt uses, and kept in build/clean.
`fetched` has besides, in apt's cache, what a package of ours depends on: there `apt install ./cpe-agent_*.deb` needs no
network, so it can be typed where none is. `installed` is what that makes of it. Both are kept until they would differ.

Tests have no network but their own. `python -m tests.deb.tree`, which `make test-deb` runs before them, gets what they
need of the world: the two clean trees with apt's caches, and the wheels that all packages are built from.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.lab.container import REPOSITORY

PACKAGES = REPOSITORY / "build" / "deb"
CACHE = REPOSITORY / "build" / "clean"
CODENAMES = {"12": "bookworm", "13": "trixie"}
TARGETS = ("12-amd64", "13-amd64", "12-arm64", "13-arm64")
NAMES = ("cpe-agent", "cpe-controller")
# What a router's Debian has beside the bare minimum, and what looks into it here.
INCLUDED = "systemd-sysv,udev,dbus,iproute2,iputils-ping,procps,ca-certificates,netbase"
SOURCES = Path("/etc/apt/sources.list.d/debian.sources")
# Of this machine's apt, what decides whether the archive can be reached: proxies, and how a mirror's age is judged.
SETTINGS = ("Acquire::http::", "Acquire::https::", "Acquire::Check-", "Acquire::Retries")
# How a name of the archive is found.
RESOLVING = ("/etc/resolv.conf", "/etc/hosts")
NEXT = "+next"

_MAKE_S = 900.0
_MEND = (
    "`make test-deb` asks Debian's archive before its tests begin, by this machine's own sources, proxies and names: "
    "see that `apt-get update` has no errors here, and run that again."
)


def main() -> None:
    run(str(REPOSITORY / "packaging" / "deb.sh"), "fetch", *TARGETS)
    for release in CODENAMES:
        print(f"test-deb: {fetched(release).relative_to(REPOSITORY)}", flush=True)


def package(release: str, name: str = "cpe-agent", *, arch: str = "amd64", following: bool = False) -> Path:
    """The package as built; `following`: its next version. Built if it is not there or older than its sources."""
    directory = PACKAGES / "next" if following else PACKAGES
    pattern = f"{name}_*+deb{release}{NEXT if following else ''}_{arch}.deb"
    changed = max(path.stat().st_mtime for path in _sources())
    for old in directory.glob(pattern):
        if old.stat().st_mtime < changed:
            old.unlink()
    if not list(directory.glob(pattern)):
        build(directory, f"{release}-{arch}", following=following)
    (found,) = directory.glob(pattern)
    return found


def _sources() -> list[Path]:
    """What packaging/deb.sh takes; a file that went leaves a younger directory."""
    found = [REPOSITORY / name for name in ("README.md", "CHANGELOG.md", "LICENSE")]
    for name in ("cpe_agent", "cpe_controller", "configs", "docs", "packaging", "systemd"):
        found += [path for path in (REPOSITORY / name).rglob("*") if "__pycache__" not in path.parts]
    return found


def build(out: Path, target: str, *, following: bool = False, umask: str = "022", zone: str = "UTC") -> None:
    """Build into `out` with packaging/deb.sh; `umask` and `zone` are whoever's builds."""
    out.mkdir(parents=True, exist_ok=True)
    words = [f"CPE_DEB_OUT={out}", f"TZ={zone}", *([f"CPE_DEB_NEXT={NEXT}"] if following else [])]
    script = str(REPOSITORY / "packaging" / "deb.sh")
    run("sh", "-c", f'umask {umask}; exec env "$@"', "build", *words, script, target)


def clean(release: str) -> Path:
    """A tar file of a clean Debian, whose apt reaches the archive as this machine's does."""
    made = CACHE / f"{release}.tar"
    if not made.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        beside, settings = CACHE / f"{release}.new.tar", CACHE / f"{release}.conf"
        settings.write_text(_reaching(run("apt-config", "dump")))
        words = ["mmdebstrap", "--mode=root", "--variant=minbase", f"--include={INCLUDED}", f"--aptopt={settings}"]
        run(*words, CODENAMES[release], str(beside), *_archive(release), mend=_MEND)
        beside.rename(made)
    return made


def _reaching(dumped: str) -> str:
    return "".join(line for line in dumped.splitlines(keepends=True) if line.startswith(SETTINGS))


def _archive(release: str) -> list[str]:
    """This machine's own sources, for this release, as an argument of mmdebstrap; none where apt has no such file."""
    if not SOURCES.exists():
        return []
    text = SOURCES.read_text()
    for codename in CODENAMES.values():
        text = text.replace(codename, CODENAMES[release])
    made = CACHE / f"{release}.sources"
    made.write_text(text)
    return [str(made)]


def unpack(tar: Path, tree: Path) -> None:
    tree.mkdir(parents=True)
    run("tar", "-C", str(tree), "-xf", str(tar))


def fetched(release: str) -> Path:
    """A directory with a clean Debian whose apt has got what our packages depend on; not to be changed."""
    debs = [package(release, name) for name in NAMES]
    needs = "".join(run("dpkg-deb", "-f", str(deb), "Depends", "Recommends") for deb in debs)

    def fetch(tree: Path) -> None:
        unpack(clean(release), tree)
        for deb in debs:
            shutil.copy(deb, tree / "root")
        names = " ".join(f"./{deb.name}" for deb in debs)
        update = "apt-get -q -o APT::Update::Error-Mode=any update"
        inside(tree, f"{update} && apt-get -qy --download-only install {names}", network=True, mend=_MEND)
        for deb in debs:
            (tree / "root" / deb.name).unlink()

    return _kept(f"fetched-{release}", needs.encode(), fetch)


def installed(release: str) -> Path:
    """A directory with a clean Debian in which `apt install ./cpe-agent_*.deb` was typed; not to be changed. What was
    said then is in its /root/installed.log."""
    deb, before = package(release), fetched(release)

    def install(tree: Path) -> None:
        copy(before, tree)
        shutil.copy(deb, tree / "root")
        (tree / "root" / "installed.log").write_text(inside(tree, "apt install -y ./cpe-agent_*.deb"))

    return _kept(f"installed-{release}", deb.read_bytes(), install)


def left_installed(release: str) -> Path:
    """What `installed` left, for whoever cannot make it: a guest has no network."""
    found = [path for path in CACHE.glob(f"installed-{release}-*") if not path.name.endswith("-new")]
    assert len(found) == 1, f"no Debian {release} with the package in {CACHE}: `make test-deb` makes it"
    return found[0]


def _kept(name: str, of: bytes, make: Callable[[Path], None]) -> Path:
    """A directory that `make` fills, unless it is there already; what was made of something else goes."""
    tree = CACHE / f"{name}-{hashlib.sha256(of).hexdigest()[:16]}"
    if not tree.exists():
        for old in CACHE.glob(f"{name}-*"):
            shutil.rmtree(old)
        beside = CACHE / f"{name}-new"
        make(beside)
        beside.rename(tree)
    return tree


def copy(tree: Path, to: Path) -> None:
    run("cp", "-a", str(tree), str(to))


def inside(tree: Path, command: str, *, network: bool = False, check: bool = True, mend: str = "") -> str:
    """A shell command as root in the tree, with /proc and /sys of its own; its output. Without `network`: in a network
    namespace where nothing is. `mend`: what to do if it fails."""
    mounts = "mount -t proc proc /proc && mount -t sysfs sys /sys"
    script = f"export DEBIAN_FRONTEND=noninteractive; {mounts} && cd /root && {{ {command}; }} 2>&1"
    names = ""
    if network:
        for name in RESOLVING:
            names += f"[ ! -e {name} ] || {{ touch {tree}{name}; mount --bind {name} {tree}{name}; }}; "
    spaces = ["--mount", "--pid", "--uts", "--fork", *([] if network else ["--net"])]
    enter = ["sh", "-c", f'{names}exec chroot "$@"', "enter", str(tree), "/bin/bash", "-c", script]
    return run("unshare", *spaces, *enter, check=check, mend=mend)


def run(*argv: str, check: bool = True, mend: str = "") -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_MAKE_S, cwd=REPOSITORY)
    if check and done.returncode != 0:
        said = f"{done.stdout[-4000:]}{done.stderr[-4000:]}"
        raise AssertionError(f"{' '.join(argv)}: {done.returncode}\n{said}\n{mend}")
    return done.stdout


if __name__ == "__main__":
    main()
