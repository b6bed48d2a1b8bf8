"""How does a site of a running lab become a new box, and get in again by a token?"""

from __future__ import annotations

import re
import sys
import time

import yaml

from tests.lab import watch
from tests.lab.container import Completed, LabError
from tests.lab.lab import CONTROLLER_STATE, Lab

# What a new box is told of nothing.
BY_ENROLMENT = ("site", "controllers", "signing_keys", "ca", "certificate", "key")
_RESET_S = 20.0
_NEW_S = 10.0
_REPLY_S = 20.0


def make_new(lab: Lab, site: str, **settings: str) -> None:
    """Stop the site's agent, reset the box, and start it with an agent.yaml that says nothing of who it is, but
    `settings`. With a `token_file` among them it may be let in before anybody has looked."""
    box = lab.site(site)
    box.agent.stop()
    command(lab, site, "reset", "--yes", check=True)
    path = box.outside / "agent.yaml"
    said = {key: value for key, value in yaml.safe_load(path.read_text()).items() if key not in BY_ENROLMENT}
    said.pop("token_file", None)
    path.write_text(yaml.safe_dump({**said, **settings}, sort_keys=False))
    box.agent.start()
    watch.wait_for(lab, site, "it is new", lambda report: not report.site or "token_file" in settings, _NEW_S)


def new_token(lab: Lab, site: str, *, replace: bool = False) -> str:
    """From the running controller. `replace`: the site has a box already, which is shut out."""
    argv = [sys.executable, "-m", "cpe_controller", "--state", str(CONTROLLER_STATE)]
    said = lab.run(lab.network.controller, *argv, "replace" if replace else "token", site).stdout
    found = re.search(r"cpe1\.[A-Za-z0-9_-]+", said)
    if found is None:
        raise LabError(f"the controller printed no token for {site}: {said!r}")
    return found[0]


def enrol(lab: Lab, site: str, token: str, *, timeout_s: float = 30.0) -> Completed:
    """`cpe-agent enroll TOKEN` at the site's shell."""
    return command(lab, site, "enroll", token, timeout_s=timeout_s)


def token_to_ping_s(lab: Lab, site: str, token: str, host: str, target: str) -> float:
    """Seconds from the moment that the token is typed until `target` answers `host` behind the site."""
    began = time.monotonic()
    completed = enrol(lab, site, token)
    if completed.status != 0:
        raise LabError(f"{site} was not let in: {completed.stderr}")
    lab.run(host, "ping", "-n", "-c", "1", "-i", "0.1", "-w", str(int(_REPLY_S)), target, timeout_s=_REPLY_S + 5)
    return time.monotonic() - began


def command(lab: Lab, site: str, *words: str, timeout_s: float = _RESET_S, check: bool = False) -> Completed:
    """A command of the agent at the site's shell."""
    config = str(lab.site(site).inside / "agent.yaml")
    name, *rest = words
    argv = [sys.executable, "-m", "cpe_agent", name, "--config", config, *rest]
    return lab.site(site).run(*argv, timeout_s=timeout_s, check=check)
