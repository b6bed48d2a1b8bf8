"""Is a hub's return a stampede? Two thousand branches, each with two paths to it, dial while it is away."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import msgspec

from cpe_agent.core.compile import Site, compile_dataplane
from cpe_agent.core.tunnels import RETRY_FIRST_S, RETRY_MAX_S, Attempts, step
from cpe_agent.model.dataplane import Backend, Connection, Tunnels
from cpe_agent.model.observed import Charon, LoadedChild
from cpe_agent.model.ops import Initiate
from tests.core.documents import LINKS, branch

BRANCHES = 2000
PATHS = 2
AWAY_S = 90.0
# By then the pauses of all have grown to the longest.
SETTLED_S = 40.0
CONNECTIONS = tuple(
    connection
    for connection in compile_dataplane(branch(), LINKS, Site("branch", Backend.USERLAND))[0].tunnels.connections
    if connection.stem.endswith("centre.a")
)


def dial_times(number: int) -> list[tuple[str, float]]:
    """(path, when) of each dial of one branch. A dial that nobody answers ends at once here: none is quicker."""
    wanted = Tunnels(tuple(_of_branch(connection, number) for connection in CONNECTIONS))
    loaded = {
        c.name: tuple(LoadedChild(child.name, child.local_ts, child.remote_ts) for child in c.children)
        for c in wanted.connections
    }
    observed = Charon(loaded, (), True)
    dials: list[tuple[str, float]] = []
    attempts: Attempts = {}
    now = 0.0
    while now < AWAY_S:
        made = step(wanted, observed, attempts, now)
        dials += [(op.connection, now) for op in made.ops if isinstance(op, Initiate)]
        assert made.wake_at is not None and made.wake_at > now
        attempts, now = made.attempts, made.wake_at
    return dials


def test_that_two_thousand_branches_do_not_dial_in_step() -> None:
    dials = [dial_times(number) for number in range(BRANCHES)]
    when = [at for found in dials for _, at in found]
    # The hub comes back in some second: whichever it is, no more than twice the even share dials in it.
    seconds = Counter(int(at) for at in when if at >= SETTLED_S)
    even = BRANCHES * PATHS / RETRY_MAX_S
    assert max(seconds.values()) <= 2 * even
    # Nor do they meet within the second. A twentieth of one is what a hub needs for a few handshakes.
    slices = Counter(int(at * 20) for at in when if at >= SETTLED_S)
    assert max(slices.values()) <= 4 * even / 20
    # Already the second dial of all, after one that failed at once, is spread over a quarter of a second.
    second = Counter(int(found[PATHS][1] * 20) for found in dials)
    assert len(second) >= 5 and max(second.values()) <= BRANCHES / 2


def test_that_the_paths_of_one_branch_do_not_dial_in_step_either() -> None:
    apart = 0
    for number in range(100):
        late = [(path, at) for path, at in dial_times(number) if at >= SETTLED_S]
        times = {path: [at for name, at in late if name == path] for path in {path for path, _ in late}}
        one, other = times.values()
        apart += min(abs(a - b) for a in one for b in other) > 0.05
    assert apart >= 90


def test_that_pauses_grow_and_are_bounded() -> None:
    for number in range(20):
        dials = dial_times(number)
        times = [at for path, at in dials if path == dials[0][0]]
        pauses = [later - earlier for earlier, later in pairwise(times)]
        assert 0.75 * RETRY_FIRST_S <= pauses[0] <= 1.25 * RETRY_FIRST_S
        assert all(pause <= 1.25 * RETRY_MAX_S for pause in pauses)
        assert all(pause >= 0.75 * RETRY_MAX_S for pause in pauses[5:])


def _of_branch(connection: Connection, number: int) -> Connection:
    ike = msgspec.structs.replace(connection.ike, local_id=f"branch-{number}.city")
    return msgspec.structs.replace(connection, ike=ike)
