"""A network, a state directory that holds it, and a server process that serves it."""

from __future__ import annotations

import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from cpe_controller import setup

EXAMPLE = Path(__file__).parents[2] / "configs" / "network.yaml"
HEARTBEAT_S = 0.3
# What is not there after so long hangs; how fast an answer comes on a busy machine is nobody's promise.
ANSWERED_S, ENDED_S = 30.0, 30.0


@dataclass(frozen=True)
class Served:
    """A running `cpe-controller serve`."""

    url: str
    enrolment_url: str
    metrics_url: str
    state: Path
    process: subprocess.Popen[str]

    def client(self, site: str | None, *, ca: Path | None = None, issuer: Path | None = None) -> httpx.Client:
        """An agent's client: with the certificate of `site` (None: without one), issued by `issuer`'s state."""
        context = ssl.create_default_context(cafile=str((ca or self.state) / "root.pem"))
        context.verify_flags |= ssl.VERIFY_X509_STRICT  # Python 3.13's default
        if site is not None:
            out = self.state.parent / "sites"
            key, pem, _ = setup.save_site(out, site, *setup.issue_site(issuer or self.state, site))
            context.load_cert_chain(pem, key)
        return httpx.Client(base_url=self.url, verify=context, trust_env=False, timeout=ANSWERED_S)


@pytest.fixture
def text() -> str:
    return EXAMPLE.read_text()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Set up for the example's network, nothing applied yet."""
    path = tmp_path / "state"
    setup.init_state(path, "blood", ["127.0.0.1", "localhost"])
    return path


@pytest.fixture
def served(state: Path, text: str) -> Iterator[Served]:
    setup.apply(state, text)
    with serving(state) as running:
        yield running


@contextmanager
def serving(state: Path, *more: str, socket: Path | None = None) -> Iterator[Served]:
    """A server of its own process for this state, until the end."""
    command = [sys.executable, "-m", "cpe_controller", "--state", str(state)]
    command += ["--socket", str(socket or state / "control.sock"), "serve"]
    command += ["--listen", "127.0.0.1", "--port", "0", "--heartbeat-s", str(HEARTBEAT_S)]
    command += ["--metrics", "127.0.0.1:0", *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=EXAMPLE.parents[1]) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(3)]
            urls = {line.split()[0]: line.split()[-1] for line in lines if line}
            assert set(urls) == {"listening", "enrolling", "metrics"}, lines
            yield Served(urls["listening"], urls["enrolling"], urls["metrics"], state, process)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(ENDED_S)
            finally:
                process.kill()
