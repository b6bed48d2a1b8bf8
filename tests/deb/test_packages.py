"""Are the packages what they promise before anybody installs them: the same each time, whole, and for each machine?"""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from cpe_agent.settings import parse_settings
from tests.deb import tree

TARGETS = ("12-amd64", "13-amd64", "12-arm64", "13-arm64")
NAMES = ("cpe-agent", "cpe-controller")


@pytest.fixture(scope="module", params=TARGETS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A target's packages, twice, in two directories whose names differ in length too."""
    one, other = (tmp_path_factory.mktemp(name) for name in ("one", "another-one"))
    for directory in (one, other):
        tree.build(directory, request.param)
    return one, other


def _sums(directory: Path) -> dict[str, str]:
    return {deb.name: hashlib.sha256(deb.read_bytes()).hexdigest() for deb in directory.glob("*.deb")}


@pytest.mark.timeout(1200)
def test_that_two_builds_are_byte_identical(built: tuple[Path, Path]) -> None:
    one, other = map(_sums, built)
    assert len(one) == len(NAMES)
    assert one == other


@pytest.mark.timeout(1200)
def test_that_lintian_finds_no_error(built: tuple[Path, Path]) -> None:
    debs = sorted(map(str, built[0].glob("*.deb")))
    said = subprocess.run(["lintian", "--allow-root", *debs], capture_output=True, text=True, timeout=600)
    assert said.returncode == 0 and "E: " not in said.stdout, said.stdout


def test_that_each_is_for_its_machine(built: tuple[Path, Path]) -> None:
    for deb in built[0].glob("*.deb"):
        architecture = tree.run("dpkg-deb", "-f", str(deb), "Architecture").strip()
        assert f"_{architecture}.deb" in deb.name
        machine = {"amd64": "x86_64", "arm64": "aarch64"}[architecture]
        libraries = [name for name in _files(deb) if name.endswith(".so")]
        assert libraries and all(machine in name or "abi3" in name for name in libraries), libraries


@pytest.mark.parametrize("name", NAMES)
def test_what_is_in_one(name: str, built: tuple[Path, Path], tmp_path: Path) -> None:
    (deb,) = built[0].glob(f"{name}_*.deb")
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
    assert bill["bomFormat"] == "CycloneDX" and len(bill["components"]) > 5
    if name == "cpe-agent":
        settings = tmp_path / "etc/cpe-agent/agent.yaml"
        assert parse_settings(settings, settings.read_bytes()).enrols
        assert (tree.run("dpkg-deb", "-I", str(deb), "conffiles")).split() == ["/etc/cpe-agent/agent.yaml"]


def _files(deb: Path) -> list[str]:
    return [line.split()[5] for line in tree.run("dpkg-deb", "-c", str(deb)).splitlines()]
