"""Is the old or the new document in force, whenever the agent is killed while it takes one up?

kill -9 at a random moment after a document is offered, again and again, of a real agent; the next one starts at once.
`KILLS=200` asks for so many (10); chance has a seed, which is printed, and `SEED=n` repeats a run.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from cpe_agent.model.condition import Status
from tests.lab import watch
from tests.lab.lab import Lab
from tests.lab.pace import patience
from tests.scenarios.publishing import publish, served

SITE = "hospital-1"
KILLS = int(os.environ.get("KILLS", "10"))
SEED = int(os.environ.get("SEED", random.SystemRandom().randrange(1_000_000)))
# It takes half a second until a document is offered, and then some four seconds until it is confirmed.
MOMENT_MIN_S, SOON_S, TRIAL_S = 0.4, 0.8, 5.0
START_S = 30.0
CONFIRMED_S = 40.0


def test_that_it_is_never_neither(lab: Lab) -> None:
    chance = random.Random(SEED)
    print(f"seed {SEED} (SEED={SEED} repeats it)")
    document = served(lab, SITE)
    found: Counter[str] = Counter()
    with lab.flow("hospital-1-host", "centre-server", seconds=3000) as flow:
        flow.wait_flowing(5)
        for number in range(KILLS):
            old = watch.wait_for(lab, SITE, "it is at rest", _at_rest, CONFIRMED_S)
            assert old.document_version is not None
            version = max(old.document_version, served(lab, SITE)["version"]) + 1
            # Another content each time, in the kernel too.
            pairs = [pair | {"log": bool(version % 2)} for pair in document["pairs"]]
            new = document | {"version": version, "pairs": pairs}
            with ThreadPoolExecutor(1) as beside:
                # It is offered while the kill is on its way. Every other moment is round the taking up, the others are
                # in the trial or soon after it, however long the offering took.
                offering = beside.submit(publish, lab, SITE, new, version)
                if number % 2:
                    watch.wait_for(lab, SITE, "it has taken it up", _has(version), CONFIRMED_S)
                    time.sleep(patience(chance.random() * TRIAL_S))
                else:
                    time.sleep(patience(MOMENT_MIN_S + chance.random() * SOON_S))
                lab.site(SITE).agent.kill()
                offering.result()
            lab.site(SITE).agent.start()
            report = watch.wait_for(lab, SITE, "it has a document", _has_one, START_S)
            assert report.document_version in (old.document_version, version)
            found["old" if report.document_version == old.document_version else "new"] += 1
            # Offered again, or still on trial: in the end it is the new one's turn.
            watch.wait_for(lab, SITE, "the new one is confirmed", _confirmed(version), CONFIRMED_S)
        assert flow.stop().lost == 0
    print(f"after {KILLS} kills: {dict(found)}")
    assert found["new"] >= KILLS // 2, "what has been taken up stays in force"


def _at_rest(report: Status) -> bool:
    return watch.all_up(report) and report.document_confirmed


def _has(version: int) -> watch.Predicate:
    return lambda report: report.document_version == version


def _has_one(report: Status) -> bool:
    return report.document_version is not None


def _confirmed(version: int) -> watch.Predicate:
    return lambda report: report.document_version == version and report.document_confirmed
