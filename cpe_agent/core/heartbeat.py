"""What is the service manager told of this agent, and when does it hear nothing more?

Pure. In: who has got where (`Beat`), and the time. Out: what to tell it, as it is written (systemd's sd_notify: one
"NAME=value" a line), if anything.

Theory of operation. The service manager knows three things: that the agent is READY, which is once and for good; one
line that says how the site fares; and that it is alive. Alive is not that the process runs, but that what it is for
goes on: the loops that keep kernel and charon as wanted come round every ten seconds, and a pass that is long gets
somewhere all the while. One that has not got anywhere for `STUCK_S` is stuck, and the agent is not said to be alive
any more, however busy the rest of it is. The service manager then ends it and starts it again; the data plane stays.

| event                                       | READY=1 | STATUS=          | WATCHDOG=1        |
|---------------------------------------------|---------|------------------|-------------------|
| the loops do not all run yet                | no      | if it is new     | if no loop sticks |
| they all run for the first time             | once    | if it is new     | if no loop sticks |
| `watchdog_s / 3` since it was last fed      |         | if it is new     | if no loop sticks |
| a loop got nowhere for STUCK_S              |         | says which       | no                |
| it gets somewhere again, before it is ended |         | if it is new     | yes               |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from cpe_agent.model.condition import Condition, Severity

# The loops come round after 10 s at most. One operation of theirs may take this long: the ruleset of a large hub on a
# small processor. (Every call to charon has a shorter bound.)
STUCK_S = 30.0
# How often the service manager is fed within the time that it waits.
FEEDS = 3
# What fits into a line of `systemctl status`.
STATUS_CHARACTERS = 200


class Beat(msgspec.Struct, frozen=True):
    """What is known now. `running`: every loop has begun, and rules and routes were seen to. `progress`: by loop, when
    it last got somewhere. `status`: the line for people."""

    running: bool
    progress: Mapping[str, float]
    status: str


class Told(msgspec.Struct, frozen=True):
    """What the service manager was told last. `fed_at`: when it last heard that the agent is alive."""

    ready: bool = False
    status: str = ""
    fed_at: float = -math.inf


def step(told: Told, beat: Beat, watchdog_s: float | None, now: float) -> tuple[Told, tuple[str, ...]]:
    """What to tell it now, as lines; none if there is nothing new. `watchdog_s`: for so long it waits for a sign of
    life (None: it does not wait)."""
    lines = []
    stuck = sorted(name for name, at in beat.progress.items() if now - at > STUCK_S)
    status = f"stuck: {', '.join(stuck)} got nowhere for {STUCK_S:.0f} s" if stuck else beat.status
    if beat.running and not told.ready:
        lines.append("READY=1")
    if status != told.status:
        lines.append(f"STATUS={status}")
    fed_at = told.fed_at
    if watchdog_s is not None and not stuck and now - fed_at >= watchdog_s / FEEDS:
        lines.append("WATCHDOG=1")
        fed_at = now
    return Told(told.ready or beat.running, status, fed_at), tuple(lines)


def line(site: str, document: tuple[int, int] | None, conditions: Sequence[Condition]) -> str:
    """How the site fares, for somebody who looks at the service: the worst first. `site` "": it belongs to none."""
    who = site or "no site yet"
    of = f" (document {document[0]}.{document[1]})" if document else ""
    telling = [condition for condition in conditions if condition.severity is not Severity.OK]
    if not telling:
        return _one_line(f"{who}{of}: all is well")
    worst = next((c for c in telling if c.severity is Severity.DOWN), telling[0])
    subject = f" {worst.subject}" if worst.subject else ""
    more = f"; {len(telling) - 1} more (cpe-agent status)" if len(telling) > 1 else ""
    said = f"{who}{of}: {worst.severity.value}: {worst.type}{subject}"
    room = STATUS_CHARACTERS - len(said) - len(more) - len(": ")
    return _one_line(f"{said}: {_cut(worst.reason, room)}{more}")


def _one_line(words: str) -> str:
    return " ".join(words.split())


def _cut(words: str, room: int) -> str:
    return words if len(words) <= room else f"{words[: max(0, room - 3)]}..."
