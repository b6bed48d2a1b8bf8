"""`python -m tests.guest.kernel_tests [ci | TEST ...]`: the tests of the kernel backend, where the kernel has ESP.

Where this machine's kernel has it they run here, else in a guest; asked is the same question that the agent asks. The
files are those that also run with ESP in user space, and a few that are about the kernel alone.
"""

from __future__ import annotations

import compileall
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence

from cpe_agent.edge.ipsec import detect
from cpe_agent.model.dataplane import Backend
from cpe_agent.ports import EdgeError
from tests.guest.image import ImageError, image
from tests.guest.launch import DIED, PACE, GuestError, run
from tests.lab.container import REPOSITORY

# Of the guest itself, run here.
LAUNCHER = "tests/lab_selftest/test_guest.py"
# What changes with the backend: everything that has a tunnel in it. In an order that shows trouble early.
ALL = (
    "tests/edge/test_ipsec.py",
    "tests/edge/test_xfrm.py",
    "tests/edge/test_routes_contract.py",
    "tests/edge/test_charon_contract.py",
    "tests/lab_selftest/test_netem.py",
    "tests/scenarios",
)
# Five minutes emulated, most of it one lab.
CI = ("tests/edge/test_xfrm.py", "tests/scenarios/test_kernel.py")
LIMIT_S = {"ci": 600.0, "all": 3 * 3600.0}
TEST_S = 240.0
CPUS, MEMORY_MIB = 2, 4096


def main(argv: Sequence[str]) -> int:
    tests = CI if list(argv) == ["ci"] else tuple(argv) or ALL
    limit_s = LIMIT_S["ci" if tests is CI else "all"]
    # One after the other: the machine's two processors are the lab's.
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "--durations=8", "-p", "no:cacheprovider", *tests]
    os.environ["CPE_BACKEND"] = Backend.KERNEL.value
    try:
        if detect() is Backend.KERNEL:
            print("kernel tests: this kernel has ESP: they run here", flush=True)
            return subprocess.run(command).returncode
        print("kernel tests: this kernel has no ESP: they run in a guest", flush=True)
        if tests is ALL:
            launcher = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", LAUNCHER]
            status = subprocess.run(launcher, env=os.environ | {"CPE_GUEST_SELFTEST": "1"}).returncode
            if status != 0:
                return status
        for code in ("cpe_agent", "cpe_controller", "tests"):
            # Compiled there, each start would cost seconds more.
            compileall.compile_dir(REPOSITORY / code, quiet=1)
        # Of setup.cfg, for one test.
        command.append(f"--timeout={TEST_S * PACE:g}")
        return run(image(), shlex.join(command), cpus=CPUS, memory_mib=MEMORY_MIB, limit_s=limit_s)
    except (EdgeError, GuestError, ImageError) as error:
        print(f"kernel tests: {error}", file=sys.stderr)
        return DIED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
