"""What the commands are tried with: settings, and an agent that says what the test wants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cpe_agent import app
from cpe_agent.model.condition import Status
from cpe_agent.ports import EdgeError
from cpe_agent.settings import Settings

Says = Callable[[Status | EdgeError], None]

CONFIG = """\
site: van-1
controllers: [https://controller.example:8443]
signing_keys: {a: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "agent.yaml"
    path.write_text(CONFIG + f"run_dir: {tmp_path}/run\n")
    return str(path)


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Says:
    """Sets what the running agent says."""

    def says(found: Status | EdgeError) -> None:
        def fetch_status(settings: Settings) -> Status:
            assert settings.site == "van-1"
            if isinstance(found, EdgeError):
                raise found
            return found

        monkeypatch.setattr(app, "fetch_status", fetch_status)

    return says
