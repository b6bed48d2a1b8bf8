"""What stays of the hub that a bundle has left, how does it get back there, and where is it carried?"""

from __future__ import annotations

import msgspec

from cpe_agent.core.carried import carrying
from cpe_agent.core.tunnels import LATE_S, Step, step
from cpe_agent.model.dataplane import PROBE_CHILD, Path, Tunnels
from cpe_agent.model.observed import IkeSa
from cpe_agent.model.ops import Initiate, TerminateChild, TerminateIke, TunnelOp
from tests.core.charons import (
    CENTRE,
    CONNECTIONS,
    GOOD_LTE,
    GOOD_WIRED,
    LTE,
    ON_LTE,
    ON_WIRED,
    PLAN,
    SHARED,
    WIRED,
    loaded,
    sa_of,
    young,
)


def test_what_was_left_for_another_hub_waits_for_late_answers() -> None:
    left, cloud = sa_of(WIRED, 1, PROBE_CHILD, SHARED), CONNECTIONS["wired.cloud.a"]
    there = sa_of(cloud, 2, PROBE_CHILD, SHARED)
    there_on = Path("wired", "cloud", "a")
    wanted = Tunnels((WIRED, cloud), {there_on: frozenset({SHARED})})

    def look(sas: tuple[IkeSa, ...], wanted: Tunnels = wanted) -> Step:
        return step(wanted, loaded(*sas, connections=(WIRED, cloud)), {}, 5.0)

    kept = look((left, young(there)))
    assert kept.ops == () and kept.wake_at == 5.0 + LATE_S
    # Once the new one has been there for a while, or where nothing can or should come any more.
    ended = Step((TerminateChild(101),), {}, None)
    assert look((left, there)) == ended
    assert look((left, young(there)), msgspec.structs.replace(wanted, fallen=frozenset({ON_WIRED}))) == ended
    barring = msgspec.structs.replace(wanted, active={}, barred=frozenset({SHARED}))
    assert look((left, young(there)), barring).ops == (TerminateChild(101), TerminateChild(201))
    dead = msgspec.structs.replace(wanted, dead=frozenset({1}))
    assert look((left, young(there)), dead).ops == (TerminateIke(1, force=True),)
    # The hub that it went to dies before that: what was kept carries at once, if nothing newer is in its way.
    died = msgspec.structs.replace(wanted, active={ON_WIRED: frozenset({SHARED})}, fallen=frozenset({there_on}))
    assert look((left, young(there)), died).ops == (TerminateIke(2, force=True),)


def test_a_bundle_that_goes_back_before_that_has_the_newest_child_there_first() -> None:
    """charon sends by the other hub's until then: ended now, it would take packets with it."""
    kept, cloud = sa_of(WIRED, 1, PROBE_CHILD, SHARED), CONNECTIONS["wired.cloud.a"]
    newer = young(sa_of(cloud, 2, PROBE_CHILD, SHARED))
    wanted = Tunnels((WIRED, cloud), {ON_WIRED: frozenset({SHARED})})

    def look(*sas: IkeSa) -> tuple[TunnelOp, ...]:
        return step(wanted, loaded(*sas, connections=(WIRED, cloud)), {}, 5.0).ops

    assert look(kept, newer) == (TerminateChild(101),)
    assert look(sa_of(WIRED, 1, PROBE_CHILD), newer) == (Initiate(WIRED.name, SHARED),)
    anew = young(sa_of(WIRED, 3, PROBE_CHILD, SHARED))
    assert look(anew, newer) == (), "and answers may be late again"
    assert look(sa_of(WIRED, 3, PROBE_CHILD, SHARED), newer) == (TerminateChild(201),)
    # One that is being deleted with its IKE_SA is nothing to stay with.
    going = msgspec.structs.replace(newer, state="DELETING")
    assert look(kept, going) == (Initiate(cloud.name, PROBE_CHILD),)


def test_what_was_left_for_another_path_of_the_same_hub_does_not_wait() -> None:
    """The hub answers by the newest, whichever way it was asked."""
    there = young(sa_of(LTE, 2, PROBE_CHILD, CENTRE))
    wanted = Tunnels((WIRED, LTE), {ON_LTE: frozenset({CENTRE})})
    assert step(wanted, loaded(GOOD_WIRED, there), {}, 0.0).ops == (TerminateChild(101),)


def test_carrying_is_where_the_newest_child_is() -> None:
    observed = loaded(sa_of(WIRED, 1, PROBE_CHILD, CENTRE), sa_of(LTE, 2, CENTRE))
    assert carrying(PLAN.bundles, observed) == {"centre": ON_LTE}
    assert carrying(PLAN.bundles, loaded(GOOD_LTE)) == {}
