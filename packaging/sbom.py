"""Which libraries are in a package? Prints a CycloneDX bill of materials, the same for the same input.

    sbom.py REQUIREMENTS TREE NAME VERSION

REQUIREMENTS is the lock file with the hashes, TREE where its wheels were unpacked: what is not in both is an error.
Stand-alone: standard library only.
"""

from __future__ import annotations

import json
import os
import re
import sys
import uuid
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions

_PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)")


def main() -> None:
    requirements, tree, name, version = sys.argv[1:]
    with open(requirements, encoding="utf-8") as file:
        text = file.read()
    hashes = _hashes(text)
    found = sorted(distributions(path=[tree]), key=lambda one: _canonical(one.metadata["Name"]))
    components = [_component(one, hashes) for one in found]
    when = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC)
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        # The same content has the same number.
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{name}/{version}/{text}')}",
        "version": 1,
        "metadata": {
            "timestamp": when.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {"type": "application", "name": name, "version": version, "bom-ref": f"{name}@{version}"},
        },
        "components": components,
    }
    json.dump(bill, sys.stdout, indent=2, sort_keys=True)
    print()


def _hashes(text: str) -> dict[str, tuple[str, list[str]]]:
    """Canonical name -> (version, sha256 of every file that the lock admits)."""
    found: dict[str, tuple[str, list[str]]] = {}
    name = ""
    for line in text.splitlines():
        pinned = _PINNED.match(line)
        if pinned:
            name = _canonical(pinned[1])
            found[name] = (pinned[2], [])
        elif "--hash=sha256:" in line:
            found[name][1].append(line.partition("sha256:")[2].strip(" \\"))
    return found


def _component(one: Distribution, hashes: dict[str, tuple[str, list[str]]]) -> dict[str, object]:
    name = _canonical(one.metadata["Name"])
    version, _ = hashes.get(name, ("", []))
    if version != one.version:
        raise SystemExit(f"sbom: {name} {one.version} is in the tree, and the lock file has {version or 'no such'}")
    purl = f"pkg:pypi/{name}@{version}"
    licence = one.metadata.get("License-Expression") or one.metadata.get("License") or _classified(one)
    return {
        "type": "library",
        "name": name,
        "version": version,
        "purl": purl,
        "bom-ref": purl,
        "licenses": [{"license": {"name": licence.splitlines()[0][:80]}}],
    }


def _classified(one: Distribution) -> str:
    names = [c.rpartition(" :: ")[2] for c in one.metadata.get_all("Classifier") or () if c.startswith("License")]
    return ", ".join(names) or "unknown"


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
