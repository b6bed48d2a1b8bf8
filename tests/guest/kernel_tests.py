"""`python -m tests.guest.kernel_tests [ci | TEST ...]`: the tests of the kernel backend, where the kernel has ESP.

Where this machine's kernel has it they run here, else in a guest; asked is the same question that the agent asks. The
files are those that also run with ESP in user space, and a few that are about the kernel alone. Of all tests each file
has a guest of its own: none waits for another's lab, and one that hangs takes no other with it.
"""

from __future__ import annotations

import compileall
import os
import shlex
import subprocess
import sys
import time
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
EDGES = (
    "tests/edge/test_ipsec.py",
    "tests/edge/test_xfrm.py",
    "tests/edge/test_routes_contract.py",
    "tests/edge/test_charon_contract.py",
    "tests/lab_selftest/test_netem.py",
)
SCENARIOS = "tests/scenarios"
# Three to five minutes emulated, most of it one lab.
CI = ("tests/edge/test_xfrm.py", "tests/scenarios/test_kernel.py")
# What hangs ends; a busy machine takes twice and three times as long as one that has nothing else to do.
CI_LIMIT_S, FILE_LIMIT_S = 1200.0, 3600.0
TEST_S = 240.0
CPUS, MEMORY_MIB = 2, 4096
# Plugins that these tests have no use for: emulated, each takes seconds to load.
_WITHOUT = tuple(f"-pno:{name}" for name in ("cacheprovider", "xdist", "anyio"))


def main(argv: Sequence[str]) -> int:
    os.environ["CPE_BACKEND"] = Backend.KERNEL.value
    try:
        here = detect() is Backend.KERNEL
        where = "ESP: they run here" if here else "no ESP: they run in a guest"
        print(f"kernel tests: this kernel has {where}", flush=True)
        if not here:
            if subprocess.run([REPOSITORY / "packaging" / "bootstrap.sh", "guest"]).returncode != 0:
                # Its words are above.
                return DIED
            for code in ("cpe_agent", "cpe_controller", "tests"):
                # Compiled there, each start would cost seconds more.
                compileall.compile_dir(REPOSITORY / code, quiet=1)
        if list(argv) == ["ci"]:
            return _run(CI, here, CI_LIMIT_S)
        if argv:
            return _run(argv, here, FILE_LIMIT_S)
        return _run_all(here)
    except (EdgeError, GuestError, ImageError) as error:
        print(f"kernel tests: {error}", file=sys.stderr)
        return DIED


def _run_all(here: bool) -> int:
    if not here:
        launcher = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", LAUNCHER]
        status = subprocess.run(launcher, env=os.environ | {"CPE_GUEST_SELFTEST": "1"}).returncode
        if status != 0:
            return status
    scenarios = sorted(str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / SCENARIOS).glob("test_*.py"))
    statuses: dict[str, int] = {}
    lines = []
    for file in (*EDGES, *scenarios):
        print(f"\nkernel tests: {file}", flush=True)
        began = time.monotonic()
        statuses[file] = _run([file], here, FILE_LIMIT_S)
        verdict = "passed" if statuses[file] == 0 else f"FAILED ({statuses[file]})"
        lines.append(f"  {file:45} {verdict}, {time.monotonic() - began:.0f} s")
    print("\nkernel tests, file by file:", *lines, sep="\n", flush=True)
    return max(statuses.values())


def _run(tests: Sequence[str], here: bool, limit_s: float) -> int:
    # One after the other: the machine's two processors are the lab's. Each is named as it begins, should it hang.
    command = [sys.executable, "-m", "pytest", "-v", "-rs", "--durations=8", *_WITHOUT, *tests]
    if here:
        return subprocess.run(command).returncode
    # Of setup.cfg, for one test.
    command.append(f"--timeout={TEST_S * PACE:g}")
    return run(image(), shlex.join(command), cpus=CPUS, memory_mib=MEMORY_MIB, limit_s=limit_s)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
