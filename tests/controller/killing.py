"""Kills an apply at one of its steps, again and again, and looks what is in force then.

Stand-alone (`python -m tests.controller.killing STATE NETWORK SEED RUNS`), single-threaded, because it forks. A step is
an instruction of SQLite's: between any two of them, also in the middle of a commit, the child is killed as `kill -9`
kills. The same store is used throughout, with all that earlier kills left behind. Prints one line for each run, as
JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from cpe_agent.model.document_check import decode
from cpe_controller import commands, publish, reports, setup
from cpe_controller.change import DOCUMENTS, Published
from cpe_controller.commands import answering
from cpe_controller.signing import verify
from cpe_controller.store.sqlite import SqliteStore

# So that an apply to a handful of sites takes several transactions.
publish.MAX_WRITES = 8  # type: ignore[attr-defined]


def main(state: Path, network: Path, seed: int, runs: int) -> None:
    chance = random.Random(seed)
    text = network.read_text()
    versions = [text.replace("failback_s: 60", f"failback_s: {60 + n}") for n in range(4)]
    setup.apply(state, versions[0])
    with setup.opened(state) as (store, _):
        for entry in store.list(DOCUMENTS).entries:
            contact = reports.Contact(0.0)  # a box has called, so that there is somebody to be careful with
            store.put(reports.STATUS + entry.key.removeprefix(DOCUMENTS), msgspec.json.encode(contact))
    steps = {now: _steps(state, versions[1 + now], now) for now in (False, True)}
    highest: dict[str, tuple[int, int]] = {}
    for _ in range(runs):
        now, wanted = chance.random() < 0.5, chance.choice(versions)
        before = _in_force(state)
        killed_at = chance.randrange(steps[now])
        killed = _killed(state, wanted, now, killed_at)
        after = _in_force(state)
        mine = _failback(wanted)
        for site, (order, failback) in after.items():
            assert order >= highest.get(site, (0, 0)), f"{site} went backwards"
            assert failback in (before[site][1], mine), f"{site} has neither the old nor the new document"
            assert order == before[site][0] or failback == mine, f"{site} has another document than it was given"
            highest[site] = order
        assert set(after) == set(before), "a site has no document"
        new = sum(failback == mine for _, failback in after.values())
        print(json.dumps({"step": killed_at, "now": now, "killed": killed, "new": new, "sites": len(after)}))
    # However it was left, the next apply goes through.
    setup.apply(state, versions[3])
    assert all(failback == 63 for _, failback in _in_force(state).values())


def _steps(state: Path, text: str, now: bool) -> int:
    """How many a whole apply takes."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        count = [0]
        _apply(state, text, now, lambda: count.__setitem__(0, count[0] + 1))
        os.write(writer, str(count[0]).encode())
        os._exit(0)
    os.close(writer)
    assert os.waitpid(child, 0)[1] == 0
    with os.fdopen(reader) as told:
        return int(told.read())


def _killed(state: Path, text: str, now: bool, at: int) -> bool:
    child = os.fork()
    if child == 0:
        left = [at]

        def step() -> None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        _apply(state, text, now, step)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def _apply(state: Path, text: str, now: bool, step: Any) -> None:
    opened = SqliteStore.__init__

    def counted(self: SqliteStore, path: Path) -> None:
        opened(self, path)
        self._db.set_progress_handler(step, 1)

    SqliteStore.__init__ = counted  # type: ignore[method-assign]
    answering.run(state, commands.Apply(text, "x", now=now), "killed")


def _in_force(state: Path) -> dict[str, tuple[tuple[int, int], int]]:
    """Order and content of what each site is served; every one is whole, and signed."""
    found = {}
    [key] = setup.signing_keys(state)
    with setup.opened(state) as (store, _):
        for entry in store.list(DOCUMENTS).entries:
            published = Published.read(entry.value or b"")
            assert verify(key, published.raw, published.signature)
            document = decode(published.raw)
            assert document.order == (published.epoch, published.version)
            found[document.site] = (document.order, document.policy.failback_s)
    return found


def _failback(text: str) -> int:
    return int(text.partition("failback_s: ")[2][:2])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
