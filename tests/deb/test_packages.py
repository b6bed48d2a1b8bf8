"""Are the packages what they promise before anybody installs them: the same each time, whole, and for each machine?"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest

from cpe_agent.settings import parse_settings
from tests.deb import tree
from tests.lab.container import REPOSITORY

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module", params=tree.TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def built(target: str) -> tuple[Path, ...]:
    """A target's packages, of each name one, as `make deb` leaves them."""
    release, _, arch = target.partition("-")
    return tuple(tree.package(release, name, arch=arch) for name in tree.NAMES)


def _sum(deb: Path) -> str:
    return hashlib.sha256(deb.read_bytes()).hexdigest()


def test_that_two_builds_are_byte_identical(target: str, built: tuple[Path, ...], tmp_path: Path) -> None:
    """By two people: in a directory of another depth, with another umask and at another place of the earth."""
    elsewhere = tmp_path / "somewhere" / "else"
    tree.build(elsewhere, target, umask="077", zone="Pacific/Auckland")
    assert {deb.name: _sum(deb) for deb in built} == {deb.name: _sum(deb) for deb in elsewhere.glob("*.deb")}


def test_that_lintian_finds_no_error(built: tuple[Path, ...]) -> None:
    argv = ["lintian", "--allow-root", *map(str, built)]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=600)
    assert said.returncode == 0 and "E: " not in said.stdout, said.stdout + said.stderr


def test_that_each_is_for_its_machine(built: tuple[Path, ...]) -> None:
    for deb in built:
        architecture = tree.run("dpkg-deb", "-f", str(deb), "Architecture").strip()
        assert f"_{architecture}.deb" in deb.name
        machine = {"amd64": "x86_64", "arm64": "aarch64"}[architecture]
        libraries = [name for name in _files(deb) if name.endswith(".so")]
        assert libraries and all(machine in name or "abi3" in name for name in libraries), libraries


@pytest.mark.parametrize("name", tree.NAMES)
def test_what_is_in_one(name: str, built: tuple[Path, ...], tmp_path: Path) -> None:
    deb = built[tree.NAMES.index(name)]
    files = _files(deb)
    assert f"./usr/bin/{name}" in files
    assert f"./usr/share/bash-completion/completions/{name}" in files
    pages = (
        ("cpe-agent.8.gz", "agent.yaml.5.gz") if name == "cpe-agent" else ("cpe-controller.8.gz", "network.yaml.5.gz")
    )
    assert all(f"./usr/share/man/man{page[-4]}/{page}" in files for page in pages)
    assert not any("__pycache__" in file or file.endswith(".pyc") for file in files)
    tree.run("dpkg-deb", "-x", str(deb), str(tmp_path))
    bill = json.loads((tmp_path / f"usr/share/doc/{name}/sbom.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    told = {(one["name"], one["version"]) for one in bill["components"]}
    libraries = {
        (re.sub(r"[-_.]+", "-", found["name"]).lower(), found["version"])
        for found in map(_METADATA.match, files)
        if found
    }
    assert len(told) > 5 and told == libraries
    assert told <= _pinned(name.removeprefix("cpe-"))
    needs = tree.run("dpkg-deb", "-f", str(deb), "Depends")
    # Python of one version, for which the libraries in the package are.
    assert re.search(r"python3 \(>= 3\.\d+\), python3 \(<< 3\.\d+\)", needs), needs
    if name == "cpe-agent":
        assert {"charon-systemd", "nftables", "python3-nftables"} <= set(re.findall(r"[a-z][\w.+-]+", needs))
        settings = tmp_path / "etc/cpe-agent/agent.yaml"
        assert parse_settings(settings, settings.read_bytes()).enrols
        assert (tree.run("dpkg-deb", "-I", str(deb), "conffiles")).split() == ["/etc/cpe-agent/agent.yaml"]


# A library's own directory of what it is.
_METADATA = re.compile(r"\./usr/lib/cpe-\w+/(?P<name>[\w.]+)-(?P<version>[\w.]+)\.dist-info/METADATA$")


def _pinned(package: str) -> set[tuple[str, str]]:
    """Name and version of every library that the lock file of a package admits, each with the hashes of its files."""
    text = (REPOSITORY / f"packaging/requirements/{package}.txt").read_text()
    entries = [entry for entry in re.split(r"\n(?=[\w.-]+==)", text) if "==" in entry]
    assert all("--hash=sha256:" in entry for entry in entries)
    pinned = (re.match(r"(?:#.*\n)*([\w.-]+)==([\w.]+)", entry) for entry in entries)
    return {(re.sub(r"[-_.]+", "-", found[1]).lower(), found[2]) for found in pinned if found}


def _files(deb: Path) -> list[str]:
    return [line.split()[5] for line in tree.run("dpkg-deb", "-c", str(deb)).splitlines()]


def test_make_deb() -> None:
    """As it is typed: both packages, for both releases."""
    wanted = {tree.package(release, name) for release in tree.CODENAMES for name in tree.NAMES}
    before = {deb: _sum(deb) for deb in wanted}
    for deb in wanted:
        deb.unlink()
    said = tree.run("make", "deb")
    assert {deb: _sum(deb) for deb in wanted} == before
    assert all(f"{before[deb]}  {deb.relative_to(REPOSITORY)}" in said for deb in wanted), said
