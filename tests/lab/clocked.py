"""The agent on a machine whose clock is wrong.

Stand-alone: `python -m tests.lab.clocked SECONDS run ...` is `cpe-agent run ...` to which the wall clock says so many
seconds more (or less). A network namespace has no clock of its own, and all machines of a lab share this machine's.
"""

from __future__ import annotations

import sys
import time

_right = time.time


def main() -> int:
    ahead_s = float(sys.argv[1])
    time.time = lambda: _right() + ahead_s
    # Late: whoever takes time.time as a default takes this one.
    from cpe_agent.cli import main as cpe_agent

    return cpe_agent(sys.argv[2:])


if __name__ == "__main__":
    raise SystemExit(main())
