"""What does a plain cloud image need to be told to become this site?

In: a token, and where the agent's package is. Out: user-data for cloud-init: a settings file with the token, the
package, and its start. The agent enrols by itself. Whoever reads the user-data before has the token; afterwards it is
used up.
"""

from __future__ import annotations

from typing import Any

import yaml

SETTINGS = "/etc/cpe-agent/agent.yaml"
# An apt package of this name, where the image's sources have it.
PACKAGE = "cpe-agent"
_DOWNLOADED = "/run/cpe-agent.deb"


def user_data(token: str, deb: str | None, sha256: str | None) -> str:
    """`deb` is the URL of the package and `sha256` its hash; None: apt knows it."""
    said: dict[str, Any] = {
        "package_update": True,
        "write_files": [
            {
                "path": SETTINGS,
                "permissions": "0640",
                "content": yaml.safe_dump({"token": token}, width=10**6),
            }
        ],
    }
    start = ["systemctl", "enable", "--now", "cpe-charon.service", "cpe-agent.service"]
    if deb is None:
        return _told(said | {"packages": [PACKAGE], "runcmd": [start]})
    install = ["apt-get", "install", "--yes", "-o", "Dpkg::Options::=--force-confold", _DOWNLOADED]
    # A list, so that no shell reads the address; && between, so that what was not downloaded whole is not installed.
    check = f"echo '{sha256}  {_DOWNLOADED}' | sha256sum --check --quiet"
    fetched = f"{check} && {' '.join(install)} && {' '.join(start)}"
    fetch = ["curl", "--fail", "--silent", "--show-error", "--location", "--retry", "10", "--output", _DOWNLOADED, deb]
    return _told(said | {"packages": ["curl"], "runcmd": [fetch, fetched]})


def _told(said: dict[str, Any]) -> str:
    return "#cloud-config\n" + yaml.safe_dump(said, sort_keys=False, width=10**6)
