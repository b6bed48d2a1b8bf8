"""A real Prometheus server in a lab, with the rules of configs/prometheus.

    with Prometheus(lab, "centre-server", jobs) as prometheus:
        prometheus.query('up{job="cpe-agent"}')

It runs in a namespace of the lab, so it scrapes what a host there could, and by the way that a host's packets take.
"""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

import yaml

from tests.lab.container import REPOSITORY, LabError, wait_until
from tests.lab.daemon import Command, Daemon
from tests.lab.lab import Lab
from tests.lab.pace import patience

CONFIGS = REPOSITORY / "configs" / "prometheus"
SCRAPE_S = 1
_SERVER = "/usr/bin/prometheus"
_HERE = "127.0.0.1:9090"
_START_S = 20.0

# Job -> target -> its labels.
Jobs = Mapping[str, Mapping[str, Mapping[str, str]]]


class Prometheus:
    """configs/prometheus/prometheus.yml with these targets, asked each second."""

    def __init__(self, lab: Lab, host: str, jobs: Jobs) -> None:
        self._lab = lab
        self._host = host
        self._directory = f"/run/prometheus-{host}"
        config = yaml.safe_load((CONFIGS / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"}
        config["rule_files"] = [str(CONFIGS / name) for name in config["rule_files"]]
        config["scrape_configs"] = [
            {**scrape, "static_configs": [{"targets": [at], "labels": dict(has)} for at, has in targets.items()]}
            for scrape in config["scrape_configs"]
            if (targets := jobs.get(scrape["job_name"]))
        ]
        lab.path(self._directory).mkdir(exist_ok=True)
        lab.path(f"{self._directory}/prometheus.yml").write_text(yaml.safe_dump(config))
        self._server = Daemon(lab.container, f"prometheus-{host}", host, self._command)

    def __enter__(self) -> Prometheus:
        self._server.start()
        wait_until(f"Prometheus on {self._host} is ready", self._ready, patience(_START_S), 0.2)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.stop()
        self._server.close()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What it answers now: labels and values. LabError if it takes the expression for none."""
        found: list[dict[str, Any]] = self._ask("query", query=expression)["result"]
        return found

    def rules(self) -> list[dict[str, Any]]:
        """Every alert rule, with its state and health."""
        return [rule for group in self._ask("rules")["groups"] for rule in group["rules"]]

    def targets(self) -> dict[str, str]:
        """Target -> why it could not be scraped; "" if it could."""
        return {target["scrapeUrl"]: target["lastError"] for target in self._ask("targets")["activeTargets"]}

    def _ask(self, what: str, **arguments: str) -> Any:
        url = f"http://{_HERE}/api/v1/{what}?{urllib.parse.urlencode(arguments)}"
        argv = ["curl", "--silent", "--noproxy", "*", "--max-time", "10", url]
        answer = json.loads(self._lab.run(self._host, *argv).stdout)
        if answer["status"] != "success":
            raise LabError(f"{arguments}: {answer['error']}")
        return answer["data"]

    def _ready(self) -> bool:
        with suppress(LabError, json.JSONDecodeError):
            return bool(self.rules())
        return False

    def _command(self) -> Command:
        return Command(
            [
                _SERVER,
                f"--config.file={self._directory}/prometheus.yml",
                f"--storage.tsdb.path={self._directory}/data",
                f"--web.listen-address={_HERE}",
                "--log.level=warn",
            ]
        )
