"""What does an operator type at the controller of a running lab, and what is said to it?"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.lab.container import Completed
from tests.lab.lab import CONTROLLER_STATE, Lab
from tests.lab.provision import NETWORK_YAML

_COMMAND_S = 30.0


def control(lab: Lab, *words: str, check: bool = True) -> Completed:
    """`cpe-controller WORDS`, which reaches the controller that runs. LabError if it fails (with `check`)."""
    argv = [sys.executable, "-m", "cpe_controller", "--state", str(CONTROLLER_STATE), *words]
    return lab.run(lab.network.controller, *argv, timeout_s=_COMMAND_S, check=check)


def apply_in_waves(lab: Lab, text: str) -> str:
    """What `apply` says of this network.yaml."""
    lab.path(NETWORK_YAML).write_text(text)
    return control(lab, "apply", NETWORK_YAML).stdout


def rollout(lab: Lab) -> dict[str, Any]:
    """The state of the newest rollout; {} if there never was one."""
    found: dict[str, Any] | None = json.loads(control(lab, "rollout", "--json").stdout)
    return found or {}


def fleet(lab: Lab) -> dict[str, dict[str, Any]]:
    """How the controller says that each site fares."""
    return {one["site"]: one for one in json.loads(control(lab, "status", "--json").stdout)}


@contextmanager
def no_controller(lab: Lab) -> Iterator[None]:
    """The controller is away for the time of the block."""
    lab.controller.stop()
    try:
        yield
    finally:
        lab.controller.start()
