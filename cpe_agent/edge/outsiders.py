"""What do this machine's own tools say?

In: a command as a list of words. Out: what it printed, bounded in time and size, or an `EdgeError` that says why there
is nothing: the tool is not installed, it took too long, it failed.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from cpe_agent.ports import EdgeError

TIMEOUT_S = 10.0


def printed(command: Sequence[str], timeout_s: float = TIMEOUT_S) -> str:
    """Its output, and after that its errors. Raises `EdgeError` if it printed nothing and failed."""
    environment = {"PATH": os.environ.get("PATH", "") or os.defpath, "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, env=environment, check=False
        )
    except FileNotFoundError:
        raise EdgeError("support", command[0], "is not installed") from None
    except subprocess.TimeoutExpired:
        raise EdgeError("support", command[0], f"took longer than {timeout_s:g} s") from None
    except OSError as error:
        raise EdgeError("support", command[0], error.strerror or str(error)) from None
    text = done.stdout.decode(errors="replace")
    errors = done.stderr.decode(errors="replace").strip()
    if done.returncode and not text:
        raise EdgeError("support", command[0], errors.partition("\n")[0] or f"failed with {done.returncode}")
    return f"{text}\n[errors]\n{errors}\n" if errors else text
