"""kill -9 at every step of an apply leaves either the old or the new document in force, never neither."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from cpe_controller import setup
from tests.controller.conftest import EXAMPLE

SEED = 20260301
RUNS = 200


def test_an_apply_may_be_killed_anywhere(tmp_path: Path) -> None:
    state = tmp_path / "state"
    setup.init_state(state, "blood", ["127.0.0.1"])
    network = tmp_path / "network.yaml"
    more = "".join(
        f"  clinic-{n}:\n    template: hospital\n    lans: {{ward: {{subnet: 10.103.{n}.0/24}}}}\n" for n in range(16)
    )
    network.write_text(EXAMPLE.read_text().replace("branches:\n", f"branches:\n{more}", 1))
    argv = [sys.executable, "-m", "tests.controller.killing", str(state), str(network), str(SEED), str(RUNS)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=200, cwd=EXAMPLE.parents[1])
    assert done.returncode == 0, done.stderr
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(runs) == RUNS
    # Kills did happen, on both sides of the point of no return, and in between.
    killed = [run for run in runs if run["killed"]]
    assert len(killed) > RUNS / 2
    shares = {run["new"] / run["sites"] for run in killed if run["now"]}
    assert {0.0, 1.0} <= shares and any(0 < share < 1 for share in shares), shares
