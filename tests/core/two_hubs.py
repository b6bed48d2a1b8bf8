"""What scenarios begin with: a branch with two uplinks, one hub or two, and a minute of health behind it."""

from __future__ import annotations

from cpe_agent.model.dataplane import Bundle, Path
from cpe_agent.model.document import Class
from tests.core.play import ACTIVE_S, MISSES, Play, Road

WIRED, LTE = Path("wired", "centre", "a"), Path("lte", "centre", "a")
WIRED2, LTE2 = Path("wired", "cloud", "a"), Path("lte", "cloud", "a")
FAILBACK_S = 60.0
# A verdict: the probe that is under way, `misses` rounds, patience, and a look.
VERDICT_S = (MISSES + 1) * ACTIVE_S + 0.15
# As the bench has it.
BROWNOUT_S = 5.0


def one(needs: Class | None = None) -> Bundle:
    return Bundle("web", "traffic-web", (WIRED, LTE), ("web",), needs or Class())


def both_hubs(needs: Class | None = None) -> Bundle:
    """The same subnet behind both."""
    return Bundle("shared", "traffic-shared", (WIRED, LTE, WIRED2, LTE2), ("shared",), needs or Class())


def play(*bundles: Bundle, failback_s: float = FAILBACK_S, seed: int = 1) -> Play:
    """After a minute of health: everything has settled."""
    found = Play(bundles or (one(),), failback_s, seed)
    found.run(60.0)
    assert all(found.active[bundle.name] == bundle.paths[0] for bundle in found.bundles)
    return found


def brownout(road: Road, latency_s: float = 0.0, loss: float = 0.0) -> None:
    road.rtt_s += latency_s
    road.loss = loss
