"""How are the product's commands typed inside a lab as on a router?

In: a container. Out: `cpe-agent`, `cpe-controller` and `swanctl` in `BIN`, which is to be in the PATH. Each is the real
one, started by a line of shell that says where this machine's settings are: Debian has one place for them, a lab has
one for each site, whose name is in $SITE.
"""

from __future__ import annotations

import shutil
import sys

from tests.lab.container import Container
from tests.lab.lab import CONTROLLER_STATE

BIN = "/run/bin"


def put(container: Container) -> None:
    """All of them, for the sites and the controller's machine."""
    agent = f'name=$1; shift; exec {sys.executable} -m cpe_agent "$name" --config "/run/$SITE/agent.yaml" "$@"'
    # Alone it is a question for help, and has no settings.
    tool(container, "cpe-agent", f"[ $# -gt 0 ] || exec {sys.executable} -m cpe_agent; {agent}")
    tool(container, "cpe-controller", f'exec {sys.executable} -m cpe_controller --state {CONTROLLER_STATE} "$@"')
    if swanctl := shutil.which("swanctl"):
        tool(container, "swanctl", f'exec {swanctl} "$@" --uri "unix:///run/$SITE/charon.vici"')


def tool(container: Container, name: str, script: str) -> None:
    path = container.path(f"{BIN}/{name}")
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
